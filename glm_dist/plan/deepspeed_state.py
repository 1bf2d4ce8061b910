"""State that DeepSpeed (0.19.8) keeps on a rank: ZeRO 2 and 3, and offloading.

Stages 1 and 2 pad each parameter group to twice the number of replicas and cut it into equal parts.
Stage 3 cuts every parameter. Masters in fp32 exist even for an fp32 model.
"""

from collections.abc import Iterable, Sequence
from itertools import accumulate

from glm_dist.config.schema import Dtype, Offload, RunConfig
from glm_dist.plan.state_memory import FP32_BYTES, MOMENTS, StateMemory

PADDED_TO = 2
"""Elements for each replica to which a parameter group of stages 1 and 2 is padded."""


def deepspeed_state(
    config: RunConfig,
    trained: Sequence[Sequence[int]],
    frozen: Iterable[int],
    *,
    replicas: int,
    replica: int,
) -> StateMemory:
    """Compute the state of a rank.

    Args:
        config: Configuration of the run.
        trained: Elements of each parameter that learns on this rank, by parameter group.
        frozen: Elements of the others.
        replicas: Number of replicas.
        replica: Index of this rank's.
    """
    is_fp32 = config.precision.dtype is Dtype.fp32
    number = FP32_BYTES if is_fp32 else 2
    if config.zero.stage == 3:
        own = sum(_share(size, replicas) for group in trained for size in group)
        held = own + sum(_share(size, replicas) for size in frozen)
        gradients = own
    else:
        padded = [_padded(sum(group), PADDED_TO * replicas) for group in trained]
        own, held = sum(padded) // replicas, sum(padded) + sum(frozen)
        gradients = own
        if is_fp32:
            # Parameters that cross the border of two parts are kept as a whole.
            gradients = sum(
                _touched(group, size // replicas, replica)
                for group, size in zip(trained, padded, strict=True)
            )
    optimizer = own * (MOMENTS + 1) * FP32_BYTES
    host = 0
    if config.zero.offload_optimizer is not Offload.none:
        # fp32 gradients of the update, and stage 3's sums or the others' new 16-bit weights.
        further = FP32_BYTES if config.zero.stage == 3 else number
        optimizer, host = 0, optimizer + own * (FP32_BYTES + further)
        if config.zero.stage == 3:
            gradients = 0
        elif config.zero.stage == 1:
            # Micro-batches add up whole gradients on the device.
            gradients = sum(map(sum, trained)) + (0 if is_fp32 else own)
        elif is_fp32:
            gradients = 0
    return StateMemory(
        weights=held * number, gradients=gradients * FP32_BYTES, optimizer=optimizer, host=host
    )


def _share(size: int, replicas: int) -> int:
    return -(-size // replicas)


def _padded(size: int, unit: int) -> int:
    return -(-size // unit) * unit


def _touched(sizes: Sequence[int], part: int, replica: int) -> int:
    """Sum the parameters of a group that lie, at least partly, in a replica's part."""
    first, last = replica * part, (replica + 1) * part
    ends = list(accumulate(sizes))
    return sum(
        size for size, end in zip(sizes, ends, strict=True) if end > first and end - size < last
    )
