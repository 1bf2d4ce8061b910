"""Bytes that a micro-batch's forward pass leaves for backward, on a GPU.

Counted are the tensors that the operations of ``model/`` save: with our attention kernels (fused
query, key and value, output, log-sum-exp) and fused pointwise operations, which keep no dropout
masks. ``compile.pointwise=off`` is counted too; ``compile.enabled`` is taken for the fused
operations. On CPUs attention and dropout keep more.

Letters: n tokens of a micro-batch, h hidden, f MLP size, a heads, t tensor ranks, e bytes of a
number; under sequence parallelism a rank keeps n/t rows outside of tensor-parallel layers.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase

from glm_dist.config.parameter_specs import WORD_EMBEDDINGS
from glm_dist.config.schema import (
    Activation,
    Dtype,
    Fusing,
    PositionEncoding,
    RecomputeMode,
    RunConfig,
)
from glm_dist.parallel.layout import Layout

FP32_BYTES = 4
INT64_BYTES = 8
ID_TENSORS = 3
"""Tokens, positions and block positions of a row."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a micro-batch on one rank."""

    config: RunConfig
    tokens: int
    """n"""
    tensor_size: int
    """t"""
    rows_parts: int
    """t under sequence parallelism, else 1."""

    @classmethod
    def of(cls, config: RunConfig, layout: Layout, *, rows_per_item: int = 1) -> "Sizes":
        """Take them from a configuration.

        Args:
            config: Configuration of the run.
            layout: Layout of its processes.
            rows_per_item: Rows of an example, in finetuning.
        """
        batch, t = config.batch, layout.tensor_parallel_size
        return cls(
            config=config,
            tokens=batch.micro_batch_size * rows_per_item * batch.row_length,
            tensor_size=t,
            rows_parts=t if layout.sequence_parallel else 1,
        )

    @property
    def number(self) -> int:
        """Bytes of a number (e)."""
        return FP32_BYTES if self.config.precision.dtype is Dtype.fp32 else 2

    @property
    def hidden(self) -> int:
        """Bytes of hidden states outside of tensor-parallel layers."""
        return self.tokens * self.config.model.hidden_size * self.number // self.rows_parts

    @property
    def wide_hidden(self) -> int:
        """Bytes of hidden states of all rows."""
        return self.tokens * self.config.model.hidden_size * self.number

    @property
    def shared_hidden(self) -> int:
        """Bytes of a tensor [s, b, h/t]."""
        return self.wide_hidden // self.tensor_size

    @property
    def inner(self) -> int:
        """Bytes of the MLP's inside [s, b, f/t] behind the activation."""
        return self.tokens * self.config.model.mlp_size * self.number // self.tensor_size

    @property
    def mlp_inputs(self) -> int:
        """Bytes of the MLP's inside before the activation; twice as wide if gated."""
        gated = self.config.model.activation is Activation.geglu
        return self.inner * (2 if gated else 1)

    @property
    def is_fused(self) -> bool:
        """True if fused pointwise operations run."""
        return self.config.compile.pointwise is not Fusing.off or self.config.compile.enabled

    @property
    def statistics(self) -> int:
        """Bytes of a norm's mean and deviation of each row of hidden states, in fp32."""
        return 2 * FP32_BYTES * self.tokens // self.rows_parts

    @property
    def trains_table(self) -> bool:
        """True if the word table learns."""
        patterns = self.config.optimizer.trainable
        if patterns:
            return any(fnmatchcase(WORD_EMBEDDINGS, pattern) for pattern in patterns)
        return not self.is_adapted

    @property
    def is_adapted(self) -> bool:
        """True if only updates of low rank learn."""
        return self.config.model.lora_rank > 0 and not self.config.optimizer.trainable

    def input_of(self, linear: str, size: int) -> int:
        """Return the bytes of a linear layer's input, which only a trained layer keeps.

        Args:
            linear: Name of the layer.
            size: Bytes of its input.
        """
        is_frozen = self.is_adapted and linear not in self.config.model.lora_targets
        return 0 if is_frozen else size

    @property
    def mask(self) -> int:
        """Bytes of a mask of hidden dropout; fused operations keep none."""
        drops = self.config.model.hidden_dropout > 0.0 and not self.is_fused
        return self.hidden // self.number if drops else 0


def layer_bytes(sizes: Sizes) -> int:
    """Compute what one layer keeps if nothing is recomputed."""
    return _attention_bytes(sizes) + _core_bytes(sizes) + _mlp_bytes(sizes)


def _attention_bytes(sizes: Sizes) -> int:
    """Count norm, projection and residual sum of attention, with the input of the layer."""
    normed = sizes.input_of("linear_qkv", sizes.hidden)
    projected = 3 * sizes.shared_hidden  # [s, b, 3 h/t]; rotated or not, one copy is kept
    attended = sizes.shared_hidden
    return sizes.hidden + sizes.statistics + normed + projected + attended + sizes.mask


def _core_bytes(sizes: Sizes) -> int:
    """Count only the inside of attention: log-sum-exp of each head in fp32."""
    heads = sizes.config.model.num_attention_heads // sizes.tensor_size
    return sizes.tokens * heads * FP32_BYTES


def _mlp_bytes(sizes: Sizes) -> int:
    """Count norm, products, activation and residual sum of the MLP, with its input."""
    normed = sizes.input_of("linear_fc1", sizes.hidden)
    activated = sizes.input_of("linear_fc2", sizes.inner)
    kept = sizes.hidden + sizes.statistics + normed + sizes.mlp_inputs + activated + sizes.mask
    gated = sizes.config.model.activation is Activation.geglu
    # One by one, the gate's GELU is kept for the product with the value.
    return kept + (sizes.inner if gated and not sizes.is_fused else 0)


def kept_bytes(
    sizes: Sizes, *, layers: int, is_first: bool, is_last: bool, is_sent: bool = False
) -> int:
    """Compute what one micro-batch leaves in a chunk of layers until its backward.

    Args:
        sizes: Sizes of the micro-batch.
        layers: Layers of the chunk.
        is_first: The embedding lies there.
        is_last: The final norm and the head lie there.
        is_sent: The output stays as well, until the next stage has it.
    """
    recompute = sizes.config.recompute
    if recompute.mode is RecomputeMode.full:
        kept = -(-layers // recompute.segment_layers) * sizes.hidden
    else:
        kept = layers * layer_bytes(sizes)
        if recompute.mode is RecomputeMode.selective:
            kept -= layers * _core_bytes(sizes)
        if is_first and sizes.is_adapted:  # nothing before the first update has a gradient
            kept -= sizes.hidden + sizes.statistics
    if is_first:
        kept += ID_TENSORS * INT64_BYTES * sizes.tokens + sizes.mask
    if is_last:
        kept += final_norm_bytes(sizes)
    kept += _plan_bytes(sizes)
    return kept + (sizes.hidden if is_sent else 0)


def final_norm_bytes(sizes: Sizes) -> int:
    """Compute what the final norm keeps."""
    return sizes.hidden + sizes.statistics


def _plan_bytes(sizes: Sizes) -> int:
    """Count what all layers share: the micro-batch itself, and angles of rotary positions."""
    model = sizes.config.model
    shared = ID_TENSORS * INT64_BYTES * sizes.tokens
    if model.position_encoding is PositionEncoding.rotary_2d:
        # cos and sin in fp32, [s, b, 2, d/4] each
        shared += 2 * sizes.tokens * (model.hidden_size // model.num_attention_heads // 2) * 4
    return shared


def recomputed_bytes(sizes: Sizes, *, layers: int) -> int:
    """Compute what backward computes again at once: a segment of layers, or attention's inside.

    Args:
        sizes: Sizes of the micro-batch.
        layers: Layers of the chunk.
    """
    recompute = sizes.config.recompute
    if recompute.mode is RecomputeMode.full:
        return min(recompute.segment_layers, layers) * layer_bytes(sizes) - sizes.hidden
    if recompute.mode is RecomputeMode.selective:
        return _core_bytes(sizes) + sizes.shared_hidden
    return 0


def workspace_bytes(sizes: Sizes) -> int:
    """Compute what backward of a layer allocates at its largest, in the MLP.

    The product behind the activation frees its input before the gradient of a gated activation, the
    widest, exists; what comes later has less than it frees.
    """
    return 2 * sizes.hidden + sizes.mlp_inputs
