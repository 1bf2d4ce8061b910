"""Consoles for tables."""

import os

from rich.console import Console

TABLE_WIDTH = 160
"""Columns in a file or a pipe, which have room for whole tables."""


def table_console(*, stderr: bool = False, width: int = TABLE_WIDTH) -> Console:
    """Return a console as wide as the terminal, or as COLUMNS says.

    Args:
        stderr: Write to standard error.
        width: Columns where there is neither.
    """
    console = Console(stderr=stderr)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(stderr=stderr, width=width)
