"""Refusal of idle GPUs, for the commands that train."""

import os
import sys
from importlib import import_module

from glm_dist.cli.once import print_once
from glm_dist.config.launch import LaunchEnvironment
from glm_dist.errors import LaunchError


def refuse_idle_gpus(launch: LaunchEnvironment) -> int | None:
    """Refuse to train on the CPUs where GPUs are paid for, or warn of it; loads torch.

    Args:
        launch: Identity of this process.

    Returns:
        Exit status of the refusal, which is printed; None: go on.
    """
    try:
        warning = import_module("glm_dist.parallel.gpus").check_gpus(launch, os.environ)
    except LaunchError as error:
        return print_once(error, launch, is_everywhere=False)
    if warning is not None and launch.rank == 0:
        sys.stderr.write(f"warning: {warning}\n")
    return None
