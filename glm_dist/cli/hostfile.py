"""Write the list of hosts that `deepspeed --hostfile` reads, from a SLURM job or from names.

glm-dist hostfile > hostfile                          in a SLURM job: its nodes and their tasks
glm-dist hostfile 'gpu[01-16]' --slots 8 > hostfile
glm-dist hostfile --exports > .deepspeed_env          variables that deepspeed would not hand on
deepspeed --hostfile hostfile train.py experiment=glm_large
"""

import argparse
import os
import sys

from glm_dist.cli.arguments import whole_number
from glm_dist.config.hosts import expand_hosts, slots_of_job
from glm_dist.config.surroundings import variables
from glm_dist.errors import LaunchError

FURTHER = ("HYDRA_", "TORCH_", "WANDB_", "GLOO_", "TOKENIZERS_")
"""Beginnings of variables that ranks read and that may differ without changing results."""

SECRET = ("KEY", "TOKEN", "SECRET", "PASSWORD")
"""Parts of names whose values do not belong into a file."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare hosts and options."""
    parser.add_argument("hosts", nargs="*", help="names, such as gpu[01-16]; default: SLURM's job")
    parser.add_argument(
        "--slots", type=whole_number(at_least=1), help="processes on each host (default: SLURM's)"
    )
    parser.add_argument(
        "--exports", action="store_true", help="write variables for .deepspeed_env instead"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the hosts, or the variables.

    Returns:
        Exit status.

    Raises:
        LaunchError: There are no hosts, or nothing says how many processes each one gets.
    """
    if arguments.exports:
        sys.stdout.write("".join(f"{name}={value}\n" for name, value in _exports().items()))
        return 0
    typed = " ".join(arguments.hosts) or os.environ.get("SLURM_JOB_NODELIST", "")
    if not typed:
        raise LaunchError(
            "There is no SLURM job here whose nodes could be listed (SLURM_JOB_NODELIST).\n"
            "  Name the hosts: glm-dist hostfile 'gpu[01-16]' --slots 8",
            key="hosts",
            value=None,
            fix="glm-dist hostfile 'gpu[01-16]' --slots 8",
        )
    hosts = expand_hosts(typed)
    slots = [] if arguments.hosts else slots_of_job(os.environ, len(hosts))
    if arguments.slots is not None:
        slots = [arguments.slots] * len(hosts)
    if not slots:
        raise LaunchError(
            f"Nothing says how many processes each of the {len(hosts)} hosts gets.\n"
            "  Give the number of its GPUs, for example --slots 8.",
            key="--slots",
            value=None,
            fix="--slots 8",
        )
    pairs = zip(hosts, slots, strict=True)
    sys.stdout.write("".join(f"{host} slots={count}\n" for host, count in pairs))
    return 0


def _exports() -> dict[str, str]:
    mine = dict(os.environ)
    names = {*variables(mine), *(name for name in mine if name.startswith(FURTHER))}
    return {
        name: mine[name]
        for name in sorted(names)
        if not any(part in name for part in SECRET if name != "TOKENIZERS_PARALLELISM")
    }
