"""Look after prepared corpora.

glm-dist data validate data/wiki data/books        read every byte, compare with the manifests
glm-dist data stats data/wiki                      documents, tokens, lengths
glm-dist data inspect experiment=quickstart        show training rows as the model gets them
glm-dist data trace runs/quickstart --step 120     documents of a step, with source file and line
glm-dist data blend experiment=quickstart          what a run reads of each corpus
glm-dist data merge data/a data/b --output data/ab
glm-dist data import-lazy wiki.lazy --output data/wiki --tokenizer ...
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from glm_dist.cli import trace
from glm_dist.cli.arguments import whole_number
from glm_dist.cli.row_view import render_row
from glm_dist.data.corpus.duplicates import (
    PASSAGE_TOKENS,
    count_copies,
    document_hashes,
    find_contamination,
)
from glm_dist.data.corpus.indexed import open_indexed
from glm_dist.data.corpus.merge import merge_corpora
from glm_dist.data.corpus.statistics import (
    QUANTILES,
    blend_records,
    corpus_statistics,
    row_statistics,
)
from glm_dist.data.corpus.validate import validate_corpus
from glm_dist.data.prepare.official_lazy import import_lazy
from glm_dist.data.row_source import open_row_source
from glm_dist.data.tokenizer.choice import add_tokenizer_arguments, choose_tokenizer
from glm_dist.data.tokenizer.tokenizer import load_tokenizer, open_tokenizer
from glm_dist.errors import ConfigError, DataError
from glm_dist.observe.tables import table_console


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the actions."""
    actions = parser.add_subparsers(dest="action", metavar="<action>", required=True)
    validate = actions.add_parser("validate", help="read every byte of corpora")
    validate.add_argument("corpora", nargs="+", help="prefixes, without .bin")
    validate.add_argument(
        "--duplicates", action="store_true", help="count documents that occur twice"
    )
    validate.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="PREFIX",
        help="count the documents of an evaluation set that the corpora hold",
    )
    stats = actions.add_parser("stats", help="documents, tokens and lengths of corpora")
    stats.add_argument("corpora", nargs="+", help="prefixes, without .bin")
    inspect = actions.add_parser("inspect", help="show training rows of a configuration")
    inspect.add_argument("overrides", nargs="*", metavar="run | key=value")
    inspect.add_argument(
        "--row", type=whole_number(at_least=0), default=0, help="first row to show (default: 0)"
    )
    inspect.add_argument(
        "--rows", type=whole_number(at_least=1), default=1, help="rows to show (default: 1)"
    )
    inspect.add_argument("--objective", help="only rows of this objective")
    inspect.add_argument("--validation", action="store_true", help="held-out rows")
    inspect.add_argument("--no-mask", action="store_true", help="without the attention mask")
    trace.add_arguments(
        actions.add_parser("trace", help="documents that rows are made of, with file and line")
    )
    blend = actions.add_parser("blend", help="what a run reads of each corpus")
    blend.add_argument("overrides", nargs="*", metavar="run | key=value")
    blend.add_argument(
        "--rows", type=whole_number(at_least=1), help="training rows (default: those of the run)"
    )
    blend.add_argument(
        "--sample", type=whole_number(at_least=1), default=500, help="rows to build and measure"
    )
    merge = actions.add_parser("merge", help="join corpora of one tokenizer")
    merge.add_argument("corpora", nargs="+", help="prefixes, in order")
    merge.add_argument("--output", required=True, help="prefix to write")
    lazy = actions.add_parser("import-lazy", help="convert a .lazy folder of the official code")
    lazy.add_argument("folder", type=Path)
    lazy.add_argument("--output", required=True, help="prefix to write")
    add_tokenizer_arguments(lazy)
    lazy.add_argument("--overwrite", action="store_true", help="replace a corpus that is there")


def run(arguments: argparse.Namespace) -> int:
    """Carry an action out.

    Returns:
        Exit status: 1 if a corpus is damaged.

    Raises:
        GlmDistError: A corpus is missing, or the configuration is wrong.
    """
    console = table_console()
    match arguments.action:
        case "validate":
            return _validate(arguments, console)
        case "stats":
            _stats(arguments.corpora, console)
        case "inspect":
            _inspect(arguments, console)
        case "trace":
            trace.run(arguments)
        case "blend":
            _blend(arguments, console)
        case "merge":
            merge_corpora(arguments.corpora, arguments.output)
            corpus = open_indexed(arguments.output)
            _wrote(arguments.output, corpus.num_documents, corpus.num_tokens, console)
        case "import-lazy":
            tokenizer = open_tokenizer(choose_tokenizer(arguments))
            manifest = import_lazy(
                arguments.folder, arguments.output, tokenizer, overwrite=arguments.overwrite
            )
            _wrote(arguments.output, manifest.documents, manifest.tokens, console)
    return 0


def _wrote(output: str, documents: int, tokens: int, console: Console) -> None:
    console.print(f"wrote {output}: documents={documents} tokens={tokens}", highlight=False)


def _validate(arguments: argparse.Namespace, console: Console) -> int:
    prefixes: list[str] = arguments.corpora
    if "" in arguments.against:
        raise DataError(
            "--against is empty.\n  Name the prefix of a prepared evaluation set.",
            key="--against",
            value="",
            fix="--against <prefix>",
        )
    evaluations = {prefix: open_indexed(prefix) for prefix in arguments.against}
    verdicts = [validate_corpus(prefix) for prefix in prefixes]
    for verdict in verdicts:
        if verdict.is_sound:
            depth = "every byte as written" if verdict.has_manifest else "no manifest, index sound"
            _say(verdict.prefix, f"{depth}; documents={verdict.documents} tokens={verdict.tokens}")
        for problem in verdict.problems:
            console.print(f"{verdict.prefix}: {problem}", style="red", markup=False)
    if not all(verdict.is_sound for verdict in verdicts):
        return 1
    if arguments.duplicates:
        _count_duplicates(prefixes)
    for name, evaluation in evaluations.items():
        for prefix in prefixes:
            found = find_contamination(open_indexed(prefix), evaluation)
            _say(
                prefix,
                f"holds {found.whole} of the {found.documents} documents of {name}, and shares"
                f" passages of {PASSAGE_TOKENS} tokens with {found.passages} of them",
            )
    return 0


def _count_duplicates(prefixes: list[str]) -> None:
    """Count copies within each corpus, and of documents of the corpora named before."""
    before = np.zeros(0, np.uint64)
    for prefix in prefixes:
        hashes = document_hashes(open_indexed(prefix))
        _say(prefix, f"{count_copies(hashes)} documents are copies of earlier ones")
        if prefix != prefixes[0]:
            shared = int(np.isin(hashes, before).sum())
            _say(prefix, f"{shared} documents are in the corpora named before it")
        before = np.union1d(before, hashes)


def _say(prefix: str, what: str) -> None:
    sys.stdout.write(f"{prefix}: {what}\n")


def _stats(prefixes: list[str], console: Console) -> None:
    lengths = [f"{quantile:.0%}" for quantile in QUANTILES]
    table = Table("corpus", "documents", "tokens", "bytes", *lengths, title="document lengths")
    for prefix in prefixes:
        found = corpus_statistics(open_indexed(prefix))
        table.add_row(
            prefix,
            f"{found.documents:,}",
            f"{found.tokens:,}",
            f"{found.tokens * found.bytes_per_token:,}",
            *(f"{length:,}" for length in found.length_quantiles),
        )
    console.print(table)


def _inspect(arguments: argparse.Namespace, console: Console) -> None:
    config = trace.read_config(arguments.overrides)
    source = open_row_source(config)
    tokenizer = load_tokenizer(config.tokenizer)
    chosen: str | None = arguments.objective
    if chosen not in (None, *source.objectives):
        raise ConfigError(
            f"--objective={chosen} is not drawn by this configuration, which has"
            f" {', '.join(source.objectives)}.\n"
            "  Choose one of these, or leave it out.",
            key="--objective",
            value=chosen,
            fix=f"--objective={source.objectives[0]}",
        )
    wanted = source.objectives if chosen is None else (chosen,)
    shown, index = 0, arguments.row
    sources = trace.DocumentSources(source)
    while shown < arguments.rows:
        if arguments.validation:
            names = source.validation.names()
            turn, corpus = divmod(index, len(names))
            row = source.validation.row(wanted[turn % len(wanted)], names[corpus], turn)
        else:
            row = source.row(index)
        if row.objective in wanted:
            console.print(render_row(row, tokenizer, with_mask=not arguments.no_mask))
            shown += 1
            if not arguments.validation:
                for _, document, origin in sources.of_row(index):
                    sys.stdout.write(f"document {document}: {origin}\n")
        index += 1


def _blend(arguments: argparse.Namespace, console: Console) -> None:
    config = trace.read_config(arguments.overrides)
    source = open_row_source(config)
    rows = arguments.rows or config.run.steps * config.batch.global_batch_size
    records = blend_records(source, rows)
    total = sum(record.tokens for record in records)
    table = Table(
        "corpus",
        "share",
        "rows",
        "off target",
        "tokens",
        "of all",
        "epochs",
        title=f"{rows:,} rows",
    )
    for record in records:
        table.add_row(
            record.corpus,
            f"{100 * record.wanted_rows / rows:.6g}%",
            f"{record.rows:,}",
            f"{record.rows - record.wanted_rows:+.2f}",
            f"{record.tokens:,}",
            f"{record.tokens / total:.4%}",
            f"{record.epochs:.3f}",
        )
    console.print(table)
    measured = Table("objective", "rows", "real tokens", "predicted", "blanks a row")
    for found in row_statistics(source, range(min(rows, arguments.sample))):
        measured.add_row(
            found.objective,
            f"{found.share:.1%}",
            f"{found.real:.2%}",
            f"{found.predicted:.2%}",
            f"{found.blanks:.1f}",
        )
    console.print(measured)
