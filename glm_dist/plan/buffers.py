"""Bytes of the largest temporary tensors of a step: gradients, head, communication.

The start needs memory as well: weights exist as a whole before DeepSpeed cuts them, and the largest
parameter is drawn in fp32 before a rank takes its slice.
"""

from collections.abc import Sequence

from glm_dist.config.schema import Dtype, Offload, RunConfig
from glm_dist.parallel.layout import Layout
from glm_dist.plan.activations import FP32_BYTES, Sizes, workspace_bytes

LOGITS = 1 << 26
"""Logits that the head computes at once on a GPU (``model/head.py``)."""
LIVE_PARAMETERS = 1_000_000_000
"""Elements that ZeRO 3 keeps gathered at once (DeepSpeed's stage3_max_live_parameters)."""


def buffer_bytes(
    config: RunConfig,
    layout: Layout,
    stage: int,
    *,
    sizes: Sizes,
    parameters: Sequence[int],
    recomputed: int,
) -> int:
    """Compute what a stage allocates besides state and kept activations.

    Args:
        config: Configuration of the run.
        layout: Layout of its processes.
        stage: Pipeline coordinate.
        sizes: Sizes of a micro-batch.
        parameters: Elements of each of the stage's parameters on one tensor rank, before ZeRO cuts
            them.
        recomputed: Bytes of activations that exist only during backward, not yet in the head.
    """
    is_last = stage == layout.pipeline_parallel_size - 1
    in_backward = workspace_bytes(sizes) + _exchanged(layout, sizes)
    head = _head_bytes(config, sizes) - recomputed if is_last else 0
    return max(in_backward, head) + sharding_bytes(config, layout, parameters)


def start_bytes(config: RunConfig, *, parameters: int, largest: int) -> int:
    """Compute what a rank needs before its optimizer exists.

    Args:
        config: Configuration of the run.
        parameters: Elements of the rank's parameters before ZeRO cuts them.
        largest: Elements of the largest parameter of the whole model.
    """
    number = FP32_BYTES if config.precision.dtype is Dtype.fp32 else 2
    return parameters * number + largest * FP32_BYTES


def _exchanged(layout: Layout, sizes: Sizes) -> int:
    """Gathered rows of sequence parallelism, and hidden states between stages."""
    gathered = sizes.wide_hidden if layout.sequence_parallel else 0
    return gathered + (2 * sizes.hidden if layout.pipeline_parallel_size > 1 else 0)


def _head_bytes(config: RunConfig, sizes: Sizes) -> int:
    """The loss of a micro-batch of which every token is a target, the most there can be."""
    rows = config.padded_vocab_size // sizes.tensor_size
    table = 0
    if sizes.trains_table:
        table = rows * config.model.hidden_size * FP32_BYTES  # its gradient waits for the scale
    logits = min(sizes.tokens, max(LOGITS // rows, 1)) * rows
    each = 2 * sizes.number + (0 if sizes.is_fused else FP32_BYTES)
    return table + 2 * sizes.wide_hidden + logits * each


def sharding_bytes(config: RunConfig, layout: Layout, parameters: Sequence[int]) -> int:
    """Compute what DeepSpeed needs for its buckets of gradients and the weights it gathers.

    Args:
        config: Configuration of the run.
        layout: Layout of its processes.
        parameters: Elements of each of the rank's parameters, before ZeRO cuts them.
    """
    zero = config.zero
    if zero.stage <= 1 and zero.offload_optimizer is Offload.none:
        return 0
    number = FP32_BYTES if config.precision.dtype is Dtype.fp32 else 2
    bucket, largest = zero.reduce_bucket_size, max(parameters)
    has_copy = number < FP32_BYTES and layout.data_parallel_size > 1
    # With overlap a bucket is filled while another is reduced.
    at_once = 2 if zero.overlap_comm and zero.stage > 1 else 1
    if zero.stage == 1 or (zero.stage == 3 and has_copy):
        filled = bucket * FP32_BYTES
    else:
        filled = bucket * number * (at_once if zero.stage == 2 else 1)
    # Replicas sum an fp32 copy of a bucket that is first made contiguous; stage 3 keeps the sum as
    # well. What is larger than a bucket is reduced as a whole.
    copies = 2 if zero.stage == 3 else at_once
    copied = max(bucket, largest) * FP32_BYTES * copies if has_copy else 0
    if zero.stage == 2:
        copied += bucket * number * at_once
        if number == FP32_BYTES:  # a micro-batch's part is added to the sum of the others
            copied += sum(parameters) // layout.data_parallel_size * FP32_BYTES
    gradient = largest * number  # of the parameter that is about to be reduced
    gathered = min(sum(parameters), LIVE_PARAMETERS) * number if zero.stage == 3 else 0
    return filled + copied + gradient + gathered
