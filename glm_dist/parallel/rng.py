"""Random numbers of a training step: a pure function of (seed, step, coordinates).

Generators are reseeded at every step, so there is no generator state to save or restore, and a
resumed run draws the same dropout masks as an uninterrupted one. Three streams per rank: the
default one is equal within a tensor-parallel group (activations outside the sharded regions must
get the same mask on every slice); megatron's tensor-parallel stream differs by slice; the words of
attention's dropout (``model/attention/dropout.py``) are equal within the group and have a stream of
their own, so that drawing them moves no other.
"""

from megatron.core.tensor_parallel.random import (
    get_cuda_rng_tracker,
    model_parallel_cuda_manual_seed,
)

from glm_dist.parallel.layout import Coordinates
from glm_dist.seeds import derive_seed

__all__ = ["ATTENTION_STREAM", "get_cuda_rng_tracker", "seed_step"]

ATTENTION_STREAM = "attention words"
"""Name of the third stream in megatron's tracker."""


def seed_step(seed: int, step: int, *, coordinates: Coordinates) -> None:
    """Seed this rank's dropout streams for one optimizer step.

    Args:
        seed: Seed of the run.
        step: Optimizer step about to be computed.
        coordinates: Coordinates of this rank; replicas and stages draw independent masks.
    """
    # megatron adds small offsets to the seed for its streams; the shift leaves room for them.
    stream = derive_seed("dropout", seed, step, coordinates.data, coordinates.pipeline) >> 16
    model_parallel_cuda_manual_seed(stream, tp_rank=coordinates.tensor, ep_rank=0, etp_rank=0)
    words = derive_seed(ATTENTION_STREAM, seed, step, coordinates.data, coordinates.pipeline) >> 16
    get_cuda_rng_tracker().add(ATTENTION_STREAM, words)
