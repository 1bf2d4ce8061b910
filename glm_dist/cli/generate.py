"""``glm-dist generate``: fill every blank of the texts given, with a trained run.

Texts are read and written in UTF-8.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import glm_dist
from glm_dist.cli.arguments import whole_number
from glm_dist.config.load import load_config_file
from glm_dist.errors import EXIT_USER_ERROR, DataError
from glm_dist.generate.prompt import check_fills_blanks, not_utf_8
from glm_dist.generate.sampling import GREEDY, Sampling
from glm_dist.observe.run_folder import CONFIG_FILE

if TYPE_CHECKING:
    from glm_dist.generate.load import TrainedModel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    parser.add_argument("run", type=Path, help="folder of a run, such as runs/quickstart")
    parser.add_argument(
        "text",
        nargs="*",
        help="texts with [MASK], [sMASK] or [gMASK] where the model shall write; "
        "without any, lines of standard input",
    )
    parser.add_argument(
        "--step", type=whole_number(at_least=0), help="checkpoint to use (default: the newest)"
    )
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="files of its tokenizer (default: those in the run's folder)",
    )
    parser.add_argument("--greedy", action="store_true", help="always take the likeliest token")
    parser.add_argument(
        "--temperature", type=float, default=0.9, help="divides the logits (default: %(default)s)"
    )
    parser.add_argument(
        "--top-k",
        type=whole_number(at_least=0),
        default=40,
        help="draw from the k likeliest; 0: all (%(default)s)",
    )
    parser.add_argument(
        "--top-p", type=float, default=1.0, help="draw from the likeliest reaching p (%(default)s)"
    )
    parser.add_argument(
        "--max-tokens",
        type=whole_number(at_least=1),
        default=64,
        help="longest answer of a blank (%(default)s)",
    )
    parser.add_argument(
        "--jsonl",
        action="store_true",
        help='lines are objects {"text": ...}; "filled" and "answers" are added to each',
    )
    parser.add_argument(
        "--candidates",
        type=whole_number(at_least=1),
        metavar="N",
        help="show the N likeliest answers of each blank with their probabilities, draw nothing",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the draws (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Print every text with its blanks filled; texts that cannot be filled are named and left out.

    Returns:
        Exit status: 2 if a text was left out.

    Raises:
        GlmDistError: The run or its checkpoint cannot be used.
    """
    sampling = _sampling(arguments)
    config = load_config_file(arguments.run / CONFIG_FILE)
    check_fills_blanks(config.corruption, run=str(arguments.run))
    trained = glm_dist.load(arguments.run, step=arguments.step, tokenizer=arguments.tokenizer)
    speaks = trained.groups.rank == 0
    left_out = 0
    for where, line in _texts(arguments.text):
        try:
            record = _record(line) if arguments.jsonl else {"text": _decoded(line)}
            if arguments.candidates is None:
                answer = _filled(trained, record, arguments, sampling)
            else:
                answer = _candidates(trained, record, arguments)
        except DataError as error:
            left_out += 1
            if speaks:
                sys.stderr.write(f"{where}: {error}\n")
            continue
        if speaks:
            sys.stdout.buffer.write(f"{answer}\n".encode())  # as read, whatever the locale
            sys.stdout.flush()
    if left_out and speaks:
        sys.stderr.write(f"{left_out} texts were left out\n")
    return EXIT_USER_ERROR if left_out else 0


def _sampling(arguments: argparse.Namespace) -> Sampling:
    if arguments.greedy:
        return GREEDY
    return Sampling(temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p)


def _filled(
    trained: "TrainedModel",
    record: dict[str, Any],
    arguments: argparse.Namespace,
    sampling: Sampling,
) -> str:
    """Fill the blanks of a text."""
    filled = trained.fill(
        record["text"], sampling=sampling, max_tokens=arguments.max_tokens, seed=arguments.seed
    )
    if not arguments.jsonl:
        return filled.text
    return json.dumps(
        record | {"filled": filled.text, "answers": filled.answers}, ensure_ascii=False
    )


def _candidates(
    trained: "TrainedModel", record: dict[str, Any], arguments: argparse.Namespace
) -> str:
    """List the likeliest answers of each blank of a text."""
    blanks = trained.answers(
        record["text"], count=arguments.candidates, max_tokens=arguments.max_tokens
    )
    if arguments.jsonl:
        found = [[vars(answer) for answer in answers] for answers in blanks]
        return json.dumps(record | {"candidates": found}, ensure_ascii=False)
    lines = [record["text"]]
    for answers in blanks:
        shown = [f"{answer.text or '(nothing)'} {answer.probability:.1%}" for answer in answers]
        lines.append("    " + "   ".join(shown).replace("\n", "\\n"))
    return "\n".join(lines)


def _texts(typed: list[str]) -> Iterator[tuple[str, bytes]]:
    """Yield texts as bytes, and where each stands: arguments or else lines of standard input."""
    if typed:
        for number, text in enumerate(typed, 1):
            yield f"text {number}", os.fsencode(text)
        return
    for number, line in enumerate(sys.stdin.buffer, 1):
        yield f"<stdin>:{number}", line.rstrip(b"\r\n")


def _decoded(line: bytes) -> str:
    """Decode a text.

    Raises:
        DataError: It is not UTF-8.
    """
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise not_utf_8(repr(line)[1:]) from error


def _record(line: bytes) -> dict[str, Any]:
    """Read a JSON object with a text.

    Raises:
        DataError: The line is something else.
    """
    try:
        record = json.loads(_decoded(line))
    except ValueError as error:
        raise _no_record(f"is not JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise _no_record('has no "text" with a string')
    return record


def _no_record(problem: str) -> DataError:
    return DataError(
        f"The line {problem}.\n"
        '  Write one object a line, {"text": "... [MASK] ..."}, or leave --jsonl out.',
        key="--jsonl",
        value=problem,
        fix="leave --jsonl out",
    )
