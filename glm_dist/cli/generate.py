"""``glm-dist generate``: fill every blank of the texts given, with a trained run."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from glm_dist.cli.arguments import whole_number
from glm_dist.generate.complete import undecodable
from glm_dist.generate.load import load_trained
from glm_dist.generate.sampling import GREEDY, Sampling


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
    parser.add_argument("--seed", type=int, default=0, help="of the draws (%(default)s)")


def run(arguments: argparse.Namespace) -> int:
    """Print every text with its blanks filled.

    Returns:
        Exit status.

    Raises:
        GlmDistError: The run, its checkpoint or a text cannot be used.
    """
    sampling = (
        GREEDY
        if arguments.greedy
        else Sampling(
            temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p
        )
    )
    trained = load_trained(arguments.run, step=arguments.step, tokenizer=arguments.tokenizer)
    speaks = trained.groups.rank == 0
    for text in arguments.text or lines_of_input():
        answer = trained.complete(
            text,
            sampling=sampling,
            max_tokens=arguments.max_tokens,
            seed=arguments.seed,
        )
        if speaks:
            sys.stdout.write(f"{answer}\n")
            sys.stdout.flush()
    return 0


def lines_of_input() -> Iterator[str]:
    """Lines of standard input.

    Raises:
        DataError: They are not in the encoding of the locale.
    """
    try:
        for line in sys.stdin:
            yield line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise undecodable(str(error)) from error
