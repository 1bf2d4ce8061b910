"""Bytes of the largest temporary tensors of a step: gradients, head, communication.

The start needs memory as well: weights exist as a whole before DeepSpeed cuts them, and the largest
parameter is drawn in fp32 before a rank takes its slice.
"""

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
    parameters: int,
    recomputed: int,
) -> int:
    """Compute what a stage allocates besides state and kept activations.

    Args:
        config: Configuration of the run.
        layout: Layout of its processes.
        stage: Pipeline coordinate.
        sizes: Sizes of a micro-batch.
        parameters: Elements of the stage's parameters on one tensor rank, before ZeRO cuts them.
        recomputed: Bytes of activations that exist only during backward, not yet in the head.
    """
    is_last = stage == layout.pipeline_parallel_size - 1
    in_backward = workspace_bytes(sizes) + _exchanged(layout, sizes)
    head = _head_bytes(config, sizes) - recomputed if is_last else 0
    return max(in_backward, head) + _sharding_bytes(config, layout, parameters)


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


def _sharding_bytes(config: RunConfig, layout: Layout, parameters: int) -> int:
    """DeepSpeed's buckets of gradients, and the weights that ZeRO 3 gathers."""
    zero = config.zero
    if zero.stage <= 1 and zero.offload_optimizer is Offload.none:
        return 0
    number = FP32_BYTES if config.precision.dtype is Dtype.fp32 else 2
    of_bucket = FP32_BYTES if zero.stage == 1 else number
    if zero.stage == 2:
        # A bucket is filled while another is reduced, and several replicas reduce an fp32 copy.
        of_bucket *= 2 if zero.overlap_comm else 1
        of_bucket += FP32_BYTES if number < FP32_BYTES and layout.data_parallel_size > 1 else 0
    elif zero.stage == 3 and layout.data_parallel_size > 1:
        of_bucket = FP32_BYTES
    gathered = min(parameters, LIVE_PARAMETERS) * number if zero.stage == 3 else 0
    return zero.reduce_bucket_size * of_bucket + gathered
