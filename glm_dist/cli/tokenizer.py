"""Train a tokenizer on one's own text, show what is in one, or try it.

glm-dist tokenizer train text/*.jsonl --output data/tokenizer.model --vocab-size 50000
glm-dist tokenizer show --tokenizer data/tokenizer.model
glm-dist tokenizer encode --tokenizer data/tokenizer.model "To be, or [MASK] to be."
"""

import argparse
import math
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from glm_dist.config.schema import pad_vocabulary
from glm_dist.data.prepare.bad_lines import BadLine, BadLines
from glm_dist.data.prepare.inputs import select_inputs
from glm_dist.data.prepare.output import output_file
from glm_dist.data.prepare.readers import (
    TextOptions,
    TextUnit,
    documents_of,
    read_blocks,
)
from glm_dist.data.tokenizer.choice import add_tokenizer_arguments, choose_tokenizer
from glm_dist.data.tokenizer.tokenizer import Tokenizer, open_tokenizer
from glm_dist.data.tokenizer.training import train_sentencepiece
from glm_dist.errors import DataError
from glm_dist.generate.prompt_checks import check_utf_8

LEAST_SHARE = 0.2
"""Least share of the wanted sample that is no surprise; halving its bound leaves about half."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare train, show and encode."""
    actions = parser.add_subparsers(dest="action", metavar="train | show | encode", required=True)
    train = actions.add_parser("train", help="train a SentencePiece model on text files")
    train.add_argument("inputs", nargs="+", help="files, folders or patterns")
    train.add_argument("--output", required=True, help="model file to write")
    train.add_argument(
        "--vocab-size",
        type=int,
        required=True,
        help="ids in all, with GLM's special tokens; set tokenizer.vocab_size to the same",
    )
    train.add_argument("--model-type", choices=["unigram", "bpe"], default="unigram")
    train.add_argument(
        "--sample-mb",
        type=_megabytes,
        default=10.0,
        help="text to learn from, spread evenly over the files (default: %(default)s MB)",
    )
    train.add_argument("--text-key", default="text", help="JSON field or Parquet column")
    train.add_argument(
        "--text-unit", choices=[unit.value for unit in TextUnit], default=TextUnit.line.value
    )
    show = actions.add_parser("show", help="print size and special tokens")
    add_tokenizer_arguments(show)
    encode = actions.add_parser("encode", help="print the ids and pieces of a text")
    add_tokenizer_arguments(encode)
    encode.add_argument("text", nargs="?", help="text; from standard input if left out")


def _megabytes(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 1 <= number * 1e6 < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: expected a number of megabytes above 0")
    return number


def run(arguments: argparse.Namespace) -> int:
    """Train, show or encode."""
    console = Console()
    if arguments.action == "train":
        _train(arguments)
    elif arguments.action == "show":
        _show(open_tokenizer(choose_tokenizer(arguments)), console)
    else:
        text = sys.stdin.read() if arguments.text is None else arguments.text
        check_utf_8(text)
        _encode(open_tokenizer(choose_tokenizer(arguments)), text, console)
    return 0


def _train(arguments: argparse.Namespace) -> None:
    console = Console(stderr=True)
    output = output_file(arguments.output)
    if output.suffix != ".model":
        raise DataError(
            f"--output {arguments.output} does not end in .model, by which the other commands tell"
            " a SentencePiece model.\n"
            f"  Write --output {output}.model.",
            key="--output",
            value=arguments.output,
            fix=f"--output {output}.model",
        )
    options = TextOptions(arguments.text_key, TextUnit(arguments.text_unit))
    selection = select_inputs(arguments.inputs)
    for line in selection.describe():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    bad_lines = BadLines()
    texts = _Counted(_documents(selection.files, options, bad_lines))
    try:
        size = _learn(arguments, texts, console)
    finally:
        for line in bad_lines.describe():
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if size < LEAST_SHARE * min(texts.characters, arguments.sample_mb * 1e6):
        console.print(
            f"only {size} bytes of {texts.characters} characters were taken: the text repeats few"
            " paragraphs, and the sample takes all copies of one or none.\n"
            "  Remove the copies, or raise --sample-mb.",
            style="yellow",
            highlight=False,
            soft_wrap=True,
        )
    console.print(
        f"wrote {arguments.output}: vocab_size={arguments.vocab_size}"
        f" learnt_from={size / 1e6:.1f}MB",
        highlight=False,
        soft_wrap=True,
    )


class _Counted:
    """Texts, counted while they are read."""

    def __init__(self, texts: Iterator[str]) -> None:
        self._texts = texts
        self.characters = 0

    def __iter__(self) -> Iterator[str]:
        for text in self._texts:
            self.characters += len(text)
            yield text


def _learn(arguments: argparse.Namespace, texts: Iterable[str], console: Console) -> int:
    with console.status("learning a vocabulary"):
        return train_sentencepiece(
            texts,
            Path(arguments.output),
            vocab_size=arguments.vocab_size,
            model_type=arguments.model_type,
            max_sample_bytes=int(arguments.sample_mb * 1e6),
        )


def _documents(files: list[Path], options: TextOptions, bad_lines: BadLines) -> Iterator[str]:
    """Read the texts of all files, and note the lines that hold none."""
    for file in files:
        for block in read_blocks(file, options):
            for document in documents_of(block, options):
                if isinstance(document, BadLine):
                    bad_lines.add([document])
                else:
                    yield document.text


def _show(tokenizer: Tokenizer, console: Console) -> None:
    padded = pad_vocabulary(tokenizer.vocab_size)
    console.print(f"ids: {tokenizer.vocab_size}, padded to {padded} rows in the model")
    console.print(f"fingerprint: {tokenizer.fingerprint}", highlight=False, soft_wrap=True)
    table = Table("role", "id", "written as")
    for role, number in vars(tokenizer.special).items():
        if role != "sentinel_pairs" and 0 <= number < tokenizer.vocab_size:
            table.add_row(role, str(number), escape(tokenizer.decode([number])))
    console.print(table)


def _encode(tokenizer: Tokenizer, text: str, console: Console) -> None:
    ids = tokenizer.encode(text)
    console.print(*ids, highlight=False)
    pieces = [repr(tokenizer.decode([number]))[1:-1] for number in ids]
    console.print("|".join(pieces), markup=False, highlight=False, soft_wrap=True)
