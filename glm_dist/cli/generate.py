"""``glm-dist generate``: fill every blank of the texts given, with a trained run.

Texts are read and written in UTF-8, and several are filled side by side. A model that is split over
processes runs under torchrun; the first process reads and writes.

  glm-dist generate runs/x "My [MASK], I wish you good night."
  torchrun --no-python --nproc-per-node 2 glm-dist generate runs/x --tensor-parallel-size 2 < texts
  glm-dist generate runs/rte_1 --task own < examples.jsonl
"""

import argparse
import json
import math
import sys
from codecs import BOM_UTF8
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glm_dist.cli import task_answers
from glm_dist.cli.arguments import (
    add_generation_arguments,
    add_layout_arguments,
    generation_options,
    load_for,
    refuse_given,
    whole_number,
)
from glm_dist.cli.lines import Line, batches_of_lines
from glm_dist.config.load import load_config_file
from glm_dist.errors import EXIT_USER_ERROR, DataError
from glm_dist.generate.prompt_checks import check_writes, not_utf_8
from glm_dist.generate.sampling import GenerationOptions
from glm_dist.json_text import json_text
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
    add_layout_arguments(parser)
    parser.add_argument(
        "--jsonl",
        action="store_true",
        help='lines are objects {"text": ...}; "filled" and "answers" are added to each',
    )
    parser.add_argument(
        "--task",
        metavar="TASK",
        help="lines are examples of this task (option of conf/task, YAML file, or own: the one the"
        ' run was finetuned on); "answer" is added to each',
    )
    parser.add_argument(
        "--batch-size",
        type=whole_number(at_least=1),
        default=16,
        help="texts filled side by side, of those that are waiting (%(default)s)",
    )
    parser.add_argument(
        "--candidates",
        type=whole_number(at_least=1),
        metavar="N",
        help="show the N likeliest answers of each blank with their probabilities, draw nothing",
    )
    parser.add_argument(
        "--stream", action="store_true", help="write answers as they come, one text at a time"
    )
    add_generation_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print every text with its blanks filled; texts that cannot be filled are named and left out.

    Returns:
        Exit status: 2 if a text was left out.

    Raises:
        GlmDistError: The run or its checkpoint cannot be used.
    """
    if arguments.task is not None:
        refuse_given(arguments, OF_TEXTS, add_arguments, why="does not go with --task")
        return task_answers.run(arguments)
    _check_together(arguments)
    options = generation_options(arguments)
    config = load_config_file(arguments.run / CONFIG_FILE)
    check_writes(config.corruption, run=str(arguments.run))
    trained = load_for(arguments)
    writer = _Writer(trained, arguments, options)
    size = 1 if arguments.stream else arguments.batch_size
    lines = batches_of_lines(arguments.text, size) if writer.speaks else iter(())
    while batch := trained.from_first_rank(next(lines, None)):
        writer.write(batch)
    if writer.left_out and writer.speaks:
        sys.stderr.write(f"{writer.left_out} texts were left out\n")
    return EXIT_USER_ERROR if writer.left_out else 0


OF_TEXTS = (
    *("candidates", "stream", "jsonl", "greedy", "temperature", "top_k", "top_p", "seed", "stop"),
    *("repetition_penalty", "beams", "length_penalty", "no_repeat_ngram", "max_tokens"),
    *("min_tokens", "truncate"),
)
"""Options that have no effect on a task, which says itself how it is answered."""

DRAWING = ("greedy", "temperature", "top_k", "top_p", "repetition_penalty", "seed")
OF_BEAMS = ("length_penalty", "no_repeat_ngram")


def _check_together(arguments: argparse.Namespace) -> None:
    """Refuse options that others make useless.

    Raises:
        ConfigError: Some are given together.
    """
    useless: list[tuple[bool, tuple[str, ...], str]] = [
        (arguments.stream, ("jsonl", "candidates", "beams"), "does not go with --stream"),
        (
            arguments.candidates is not None,
            (*DRAWING, *OF_BEAMS, "beams", "min_tokens", "stop"),
            "has no effect on --candidates, which draws nothing",
        ),
        (arguments.beams is not None, DRAWING, "has no effect on --beams, which draws nothing"),
        (arguments.beams is None, OF_BEAMS, "has no effect without --beams"),
        (arguments.greedy, ("temperature", "top_k", "top_p"), "has no effect on --greedy"),
    ]
    for applies, names, why in useless:
        if applies:
            refuse_given(arguments, names, add_arguments, why=why)


@dataclass
class _Request:
    """One text, and the record it came in."""

    where: str
    text: str
    record: dict[str, Any]


class _Writer:
    """Fills batches of texts and writes them."""

    def __init__(
        self, trained: "TrainedModel", arguments: argparse.Namespace, options: GenerationOptions
    ) -> None:
        self._trained = trained
        self._arguments = arguments
        self._options = options
        self.speaks = trained.groups.rank == 0
        self.left_out = 0

    def write(self, batch: Sequence[Line]) -> None:
        """Fill a batch and write it in order, after the texts that cannot be filled."""
        requests = [request for line in batch if (request := self._read(line)) is not None]
        if self._arguments.stream:
            for request in requests:
                self._stream(request)
            return
        for answer in self._trained.over_replicas(requests, self._answers):
            self._put(f"{answer}\n")

    def _read(self, line: Line) -> _Request | None:
        """Take a line as a text; say why not."""
        try:
            record = _record(line.content) if self._arguments.jsonl else None
            text = _decoded(line.content) if record is None else record["text"]
            self._trained.check(text, truncate=self._options.truncate)
        except DataError as error:
            self.left_out += 1
            if self.speaks:
                sys.stderr.write(f"{line.where}: {error}\n")
            return None
        return _Request(line.where, text, record or {})

    def _answers(self, requests: Sequence[_Request]) -> Iterator[str]:
        """Return what is written for each of several texts."""
        if self._arguments.candidates is not None:
            return (self._candidates(request) for request in requests)
        filled = self._trained.fill([request.text for request in requests], self._options)
        if not self._arguments.jsonl:
            return (each.text for each in filled)
        return (
            json_text(request.record | {"filled": each.text, "answers": each.answers})
            for request, each in zip(requests, filled, strict=True)
        )

    def _candidates(self, request: _Request) -> str:
        blanks = self._trained.answers(
            request.text,
            count=self._arguments.candidates,
            max_tokens=self._options.max_tokens,
            truncate=self._options.truncate,
        )
        if self._arguments.jsonl:
            found = [[vars(answer) for answer in answers] for answers in blanks]
            return json_text(request.record | {"candidates": found})
        lines = [request.text]
        for answers in blanks:
            shown = [f"{answer.text or '(nothing)'} {answer.probability:.1%}" for answer in answers]
            lines.append("    " + "   ".join(shown).replace("\n", "\\n"))
        return "\n".join(lines)

    def _stream(self, request: _Request) -> None:
        """Write a text up to its first blank, and go on as its answers grow."""
        for piece in self._trained.stream(request.text, self._options):
            self._put(piece)
        self._put("\n")

    def _put(self, text: str) -> None:
        if self.speaks:
            sys.stdout.buffer.write(text.encode())  # as read, whatever the locale
            sys.stdout.flush()


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
        record = json.loads(_decoded(line.removeprefix(BOM_UTF8)), parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise _no_record(f"is not JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise _no_record('has no "text" with a string')
    return record


def _finite(typed: str) -> float:
    """Read a number.

    Raises:
        DataError: No float holds it, so it would come back as Infinity, which is not JSON.
    """
    number = float(typed)
    if math.isinf(number):
        raise _no_record(f"holds {typed}, which is beyond the range of floating-point numbers")
    return number


def _no_record(problem: str) -> DataError:
    return DataError(
        f"The line {problem}.\n"
        '  Write one object a line, {"text": "... [MASK] ..."}, or leave --jsonl out.',
        key="--jsonl",
        value=problem,
        fix="leave --jsonl out",
    )
