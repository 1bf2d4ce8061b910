"""Memory of a run against that of its device, before anything is allocated."""

import logging

import torch

from glm_dist.config.schema import RunConfig
from glm_dist.errors import LaunchError
from glm_dist.parallel.groups import ParallelGroups
from glm_dist.plan.memory import rank_memory
from glm_dist.plan.verdict import describe_parts
from glm_dist.plan.wording import gib

log = logging.getLogger(__name__)


def check_device_memory(
    config: RunConfig, groups: ParallelGroups, device: torch.device, *, rows_per_item: int = 1
) -> None:
    """Refuse a rank whose weights, gradients and optimizer cannot fit; warn if the rest may not.

    What is refused is known to the byte. The rest depends on estimates, so it is left to the run.

    Args:
        config: Checked configuration.
        groups: This rank's groups.
        device: The rank's device.
        rows_per_item: Rows of an example, in finetuning.

    Raises:
        LaunchError: They do not fit.
    """
    memory = rank_memory(config, groups.layout, groups.rank, rows_per_item=rows_per_item)
    total = total_memory(device)
    if memory.state > total:
        raise LaunchError(
            f"rank {groups.rank} needs {gib(memory.state)} for weights, gradients and optimizer,"
            f" and its GPU has {gib(total)}.\n"
            "  glm-dist check --gpu NAME proposes another layout, ZeRO stage or number of"
            " processes.",
            key="memory",
            value=memory.state,
            fix="glm-dist check --gpu NAME",
        )
    own = groups.coordinates
    if memory.total > total and own.tensor == own.data == 0:
        log.warning(
            "rank %d may run out of memory: the plan is %s, its GPU has %s: %s",
            groups.rank,
            gib(memory.total),
            gib(total),
            describe_parts(memory),
        )


def total_memory(device: torch.device) -> int:
    """Return the bytes of a GPU's memory."""
    return int(torch.cuda.get_device_properties(device).total_memory)
