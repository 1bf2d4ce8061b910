"""Checkpoints of a run: their size, the best interval between them, and what failures cost."""

import math
from dataclasses import dataclass

from glm_dist.config.parameter_specs import count_parameters
from glm_dist.config.schema import Dtype, RunConfig
from glm_dist.config.trainable import count_trainable

BYTES_PER_PARAMETER = 12
"""An fp32 master weight and two moments; a frozen parameter has its own dtype and no more."""
HOST_BYTES_PER_SECOND = 20e9
"""Copy of a GPU's state into memory of its host, over PCIe 4."""
BESIDE_SHARE = 0.1
"""Speed that training loses while a save is written beside it, with a core to spare for that
(docs/checkpoints.md)."""
GPU_HOURS_PER_FAILURE = 50_000.0
"""Llama 3 (arXiv 2407.21783, 3.3.4): 419 unexpected interruptions in 54 days of 16,384 GPUs."""
RESTART_SECONDS = 600.0
"""From a failure to the next step: noticing it, the queue, start-up, reading the checkpoint."""


def bytes_of_checkpoint(config: RunConfig) -> int:
    """Compute the size of the tensors in a checkpoint."""
    trained = count_trainable(config)
    frozen = count_parameters(config.model, config.padded_vocab_size) - trained
    return (
        BYTES_PER_PARAMETER * trained + (4 if config.precision.dtype is Dtype.fp32 else 2) * frozen
    )


@dataclass(frozen=True)
class SavePlan:
    """Saves of a job, and what they and failures cost."""

    checkpoint_bytes: int
    cost: float
    """Seconds that training loses by a save."""
    write: float
    """Seconds until a save is on the disk."""
    hours_between_failures: float
    """Of the whole job."""
    interval: float
    """Best time between saves, seconds."""
    lost_share: float
    """Share of time that saves and failures cost at that interval, 0 to 1."""


def plan_saves(
    config: RunConfig,
    gpus: int,
    *,
    storage_bytes_per_second: float,
    gpu_hours_per_failure: float = GPU_HOURS_PER_FAILURE,
) -> SavePlan:
    """Compute the best interval by Young's formula, sqrt(2 x cost x time between failures).

    Args:
        config: Checked configuration.
        gpus: Of the job; each one writes its part.
        storage_bytes_per_second: What the job writes to its file system.
        gpu_hours_per_failure: Hours of one GPU until something fails that ends the job.
    """
    size = bytes_of_checkpoint(config)
    write = size / storage_bytes_per_second
    copy = size / gpus / HOST_BYTES_PER_SECOND
    cost = copy + BESIDE_SHARE * write if config.checkpoint.background else write
    between = 3600 * gpu_hours_per_failure / gpus
    # A save ends before the next one begins.
    interval = max(math.sqrt(2 * cost * between), write)
    lost = cost / interval + (interval / 2 + write + RESTART_SECONDS) / between
    return SavePlan(size, cost, write, between / 3600, interval, min(lost, 1.0))
