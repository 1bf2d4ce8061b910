"""Print the configuration that overrides lead to, or the reference of all keys."""

import argparse
import sys

from glm_dist.cli.arguments import add_config_arguments, options_of_groups
from glm_dist.config.load import default_config_dir, dump_config
from glm_dist.config.reference import config_reference
from glm_dist.tasks.finetune import configure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare overrides and options."""
    parser.epilog = options_of_groups()
    add_config_arguments(parser)
    parser.add_argument(
        "--reference", action="store_true", help="print docs/config.md: every key and option"
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the resolved and checked configuration as YAML, or the reference as Markdown.

    Returns:
        Exit status.

    Raises:
        GlmDistError: The configuration, or an example of its task, is wrong.
    """
    if arguments.reference:
        sys.stdout.write(config_reference(arguments.config_dir or default_config_dir()))
        return 0
    prepared = configure(arguments.overrides, config_dir=arguments.config_dir)
    sys.stdout.write(dump_config(prepared.config))
    return 0
