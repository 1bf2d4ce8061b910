"""Print the configuration that overrides lead to, or the reference of all keys."""

import argparse
import sys
from pathlib import Path

from glm_dist.config.load import dump_config, load_config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare overrides and options."""
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--config-dir", type=Path, help="folder used instead of conf/")


def run(arguments: argparse.Namespace) -> int:
    """Print the resolved and checked configuration as YAML.

    Returns:
        Exit status.

    Raises:
        ConfigError: The configuration is wrong.
    """
    config = load_config(arguments.overrides, config_dir=arguments.config_dir)
    sys.stdout.write(dump_config(config))
    return 0
