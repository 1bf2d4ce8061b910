"""Arguments and help texts that several commands share."""

import argparse
import textwrap
from collections.abc import Callable

from glm_dist.config.load import config_groups, default_config_dir

HELP_WIDTH = 90
"""Columns of a help's list of options."""


def options_of_groups() -> str:
    """Return a help's list of groups and their options, experiments first.

    Raises:
        ConfigError: There is no conf/.
    """
    groups = config_groups(default_config_dir())
    names = sorted(groups, key=lambda name: (name != "experiment", name))
    indent = 2 + max(map(len, names)) + 2
    lines = [
        textwrap.fill(
            ", ".join(groups[name]),
            HELP_WIDTH,
            initial_indent=f"  {name}".ljust(indent),
            subsequent_indent=" " * indent,
            break_on_hyphens=False,
        )
        for name in names
    ]
    return "\n".join(["options of the groups (group=option):", *lines])


def whole_number(*, at_least: int) -> Callable[[str], int]:
    """Make a ``type`` for argparse.

    Args:
        at_least: Smallest number that is taken.
    """

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = at_least - 1
        if number < at_least:
            message = f"{text!r} is not a whole number of at least {at_least}"
            raise argparse.ArgumentTypeError(message)
        return number

    return read
