"""``glm-dist sample-corpus``: write real text for a first run."""

import argparse
import sys
from pathlib import Path

from glm_dist.data.prepare.sample_corpus import write_sample


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-command's arguments."""
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("data/sample"),
        help="folder for sotu.jsonl and shakespeare.jsonl (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write both collections as JSON lines.

    Returns:
        Exit status.

    Raises:
        DataError: A package is not installed or holds no text.
    """
    for path, num_documents in write_sample(arguments.output):
        megabytes = path.stat().st_size / 1e6
        sys.stdout.write(f"{path}: {num_documents} documents, {megabytes:.1f} MB\n")
    return 0
