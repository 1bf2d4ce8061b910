"""Turn text files into a corpus of token ids: <output>.bin, <output>.idx and <output>.json.

Reads JSON lines, plain text and Parquet, also compressed (.gz, .zst, .xz, .bz2). The output does
not depend on the number of workers. A command that was stopped goes on where it was; one that had
finished does nothing.

  glm-dist prepare wiki/*.jsonl.gz --output data/wiki --tokenizer data/tokenizer.model --workers 8
"""

import argparse
import os
import time
from pathlib import Path

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from glm_dist.cli.arguments import whole_number
from glm_dist.data.prepare.inputs import Selection, select_inputs
from glm_dist.data.prepare.prepare import Prepared, prepare
from glm_dist.data.prepare.prepare import Progress as State
from glm_dist.data.prepare.readers import TextOptions, TextUnit
from glm_dist.data.tokenizer.choice import add_tokenizer_arguments, choose_tokenizer
from glm_dist.errors import DataError

SHOWN_BAD_LINES = 10
SECONDS_BETWEEN_LINES = 30.0
"""Progress where there is no terminal to draw a bar on."""
BYTES_WORTH_A_WORKER = 8_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("inputs", nargs="+", help="files, folders or patterns, in this order")
    parser.add_argument("--output", required=True, help="prefix of the corpus to write")
    add_tokenizer_arguments(parser)
    parser.add_argument(
        "--workers",
        type=whole_number(at_least=1),
        help="processes that tokenise (default: one for each core, fewer for little text)",
    )
    parser.add_argument(
        "--text-key",
        default="text",
        help="JSON field or Parquet column, such as meta.text (default: text)",
    )
    parser.add_argument(
        "--text-unit",
        choices=[unit.value for unit in TextUnit],
        default=TextUnit.line.value,
        help="what is one document of a plain text file (default: line)",
    )
    parser.add_argument(
        "--max-bad-lines",
        type=whole_number(at_least=0),
        default=100,
        help="lines without a document that are skipped and reported (default: 100)",
    )
    parser.add_argument(
        "--shuffle",
        type=whole_number(at_least=0, at_most=2**64 - 1),
        metavar="SEED",
        help="put documents into an order of chance (default: as read)",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a corpus that was made otherwise"
    )


def run(arguments: argparse.Namespace) -> int:
    """Prepare the corpus and tell what is in it."""
    console = Console(stderr=True)
    selection = _selection(arguments.inputs)
    for line in selection.describe():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    bar = Progress(
        TextColumn("{task.fields[state]}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=None, state="starting")
        last_line = time.monotonic()

        def report(state: State) -> None:
            nonlocal last_line
            counts = f"{state.documents:,} documents, {state.tokens:,} tokens"
            bar.update(task, total=state.total_bytes, completed=state.done_bytes, state=counts)
            if bar.disable and time.monotonic() - last_line > SECONDS_BETWEEN_LINES:
                last_line = time.monotonic()
                console.print(f"{state.done_bytes / state.total_bytes:.1%} done: {counts}")

        prepared = prepare(
            arguments.inputs,
            arguments.output,
            tokenizer=choose_tokenizer(arguments),
            options=TextOptions(arguments.text_key, TextUnit(arguments.text_unit)),
            num_workers=arguments.workers or _workers_for(selection.files),
            max_bad_lines=arguments.max_bad_lines,
            shuffle_seed=arguments.shuffle,
            overwrite=arguments.overwrite,
            report=report,
        )
    _tell(prepared, arguments.output, console)
    return 0


def _selection(inputs: list[str]) -> Selection:
    """Find the inputs; none where they are gone, which a finished corpus does not mind."""
    try:
        return select_inputs(inputs)
    except DataError:
        return Selection([], {})


def _workers_for(files: list[Path]) -> int:
    """One for each core, but none that would take longer to start than to finish."""
    size = sum(file.stat().st_size for file in files)
    return max(1, min(os.cpu_count() or 1, size // BYTES_WORTH_A_WORKER))


def _tell(prepared: Prepared, output: str, console: Console) -> None:
    manifest = prepared.manifest
    for line in prepared.bad_lines.describe():
        console.print(line, markup=False, highlight=False, soft_wrap=True)
    verb = "found" if prepared.was_complete else "wrote"
    console.print(
        f"{verb} {output}: documents={manifest.documents} tokens={manifest.tokens}"
        f" files={len(manifest.sources)} skipped_lines={manifest.bad_lines}",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
