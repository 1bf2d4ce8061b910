"""``glm-dist data trace``: from training rows back to documents, with source file and line."""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from glm_dist.cli.arguments import whole_number
from glm_dist.config.load import load_config, load_config_file
from glm_dist.config.schema import RunConfig
from glm_dist.data.corpus.manifest import read_manifest
from glm_dist.data.corpus.origins import Origins
from glm_dist.data.row_source import RowSource, open_row_source
from glm_dist.errors import ConfigError
from glm_dist.observe.run_folder import CONFIG_FILE
from glm_dist.train.preflight import rows_passed_over


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the action."""
    parser.add_argument(
        "overrides", nargs="*", metavar="run | key=value", help="folder of a run, or overrides"
    )
    parser.add_argument(
        "--step", type=whole_number(at_least=1), help="all rows of this training step, from 1"
    )
    parser.add_argument("--row", type=whole_number(at_least=0), help="first row (default: 0)")
    parser.add_argument("--rows", type=whole_number(at_least=1), help="number of rows (default: 1)")


def run(arguments: argparse.Namespace) -> None:
    """Print a line for each document of the rows."""
    config = read_config(arguments.overrides)
    source = open_row_source(config)
    first = arguments.row or 0
    rows = range(first, first + (arguments.rows or 1))
    if arguments.step is not None:
        _check_step(arguments, config)
        size = config.batch.global_batch_size
        rows = range((arguments.step - 1) * size, arguments.step * size)
    sources = DocumentSources(source)
    for number in rows:
        index = config.data.row_index(number)
        for corpus, document, origin in sources.of_row(number):
            sys.stdout.write(f"row {index}: {corpus} document {document}, {origin}\n")


def _check_step(arguments: argparse.Namespace, config: RunConfig) -> None:
    """Refuse a step that the run does not have, and rows beside a step.

    Raises:
        ConfigError: The options have no meaning.
    """
    if arguments.step > config.run.steps or arguments.row is not None or arguments.rows is not None:
        problem = f"is beyond the last step, run.steps={config.run.steps}"
        if arguments.step <= config.run.steps:
            problem = "lists all rows of the step, which --row and --rows contradict"
        raise ConfigError(
            f"--step {arguments.step} {problem}.\n"
            f"  Choose a step up to {config.run.steps}, or rows alone.",
            key="--step",
            value=arguments.step,
            fix=f"--step {config.run.steps}",
        )


def read_config(overrides: list[str]) -> RunConfig:
    """Load the configuration of a run's folder, or compose one from overrides.

    Rows that rewinds of a run have passed over are skipped in it.

    Raises:
        ConfigError: A key or value is wrong.
    """
    if overrides and "=" not in overrides[0]:
        folder = Path(overrides[0])
        if len(overrides) > 1:
            raise ConfigError(
                f"{folder} is a run, whose configuration is fixed; {overrides[1]} cannot change"
                " it.\n"
                "  Name the run alone, or only key=value.",
                key=overrides[1],
                fix="name the run alone",
            )
        config = load_config_file(folder / CONFIG_FILE)
        return replace(config, data=config.data.passing_over(rows_passed_over(folder)))
    return load_config(overrides)


class DocumentSources:
    """Source files and lines of the documents of rows."""

    def __init__(self, source: RowSource) -> None:
        """Open the origins of every corpus that has a manifest."""
        self._source = source
        self._origins = {
            name: Origins(corpus.prefix, manifest)
            for name, corpus in source.opened.items()
            if (manifest := read_manifest(corpus.prefix)) is not None
        }

    def of_row(self, number: int) -> Iterator[tuple[str, int, str]]:
        """Yield corpus, document number and source of each document of a training row.

        Args:
            number: Training rows that are read before it; skipped ones do not count.
        """
        corpus, documents = self._source.documents(number)
        origins = self._origins.get(corpus)
        for document in documents:
            yield corpus, document, "no manifest" if origins is None else str(origins.of(document))
