"""FLOPs that training needs and executes, and their share of a device's peak.

Multiply and add count as two operations; only matrix products are counted. Three figures:

- useful work: what GLM's objective needs. Real tokens only, attention over exactly the pairs that
  the prefix mask allows, vocabulary logits only where a token is predicted; backward is twice
  forward. Its share of the peak is the useful MFU.
- the published convention: 6 N + 12 l h s operations per token, padding included, as if every
  position attended to every other and had a target (N = block weights + vocabulary table;
  Megatron-LM, arXiv 2104.04473, equation 3). Its share of the peak is the MFU, which compares with
  published numbers.
- executed work: what the kernels run, including padding and recomputed activations. Its share of
  the peak is the HFU.

Letters: l layers, h hidden, v vocabulary, s row length, p prefix, b = s - p.
"""

import re
from collections.abc import Iterable
from dataclasses import astuple, dataclass

from glm_dist.config.architecture import ModelConfig
from glm_dist.config.choices import RecomputeMode
from glm_dist.config.parameter_specs import WORD_EMBEDDINGS, layer_specs, parameter_specs
from glm_dist.config.schema import RunConfig
from glm_dist.config.trainable import trainable_names

TRAINING_PASSES = 3
"""Forward, backward for inputs and backward for weights; each costs the same."""


@dataclass(frozen=True)
class Work:
    """Token and pair counts of some rows; add up over rows, micro-batches, steps and replicas."""

    positions: int = 0
    """Positions of the rows, padding included."""
    real_tokens: int = 0
    """Positions without padding."""
    targets: int = 0
    """Predicted tokens."""
    useful_pairs: int = 0
    """Query and key pairs of real tokens that the mask allows."""
    executed_pairs: int = 0
    """Pairs that kernels compute."""
    dense_pairs: int = 0
    """Pairs of all positions of a row, s * s."""

    def __add__(self, other: "Work") -> "Work":
        """Add the counts."""
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def attended_pairs(prefix: int, length: int) -> int:
    """Count the pairs that the prefix mask allows: p^2 + p b + b (b + 1) / 2.

    Args:
        prefix: Tokens of Part A (p).
        length: Tokens of Part A and Part B (p + b).
    """
    part_b = length - prefix
    return prefix * length + part_b * (part_b + 1) // 2


def masked_pairs(prefix: int, length: int) -> int:
    """Count the pairs computed if Part B has a dense mask: p^2 + b s."""
    return prefix * prefix + (length - prefix) * length


def row_work(
    segments: Iterable[tuple[int, int]],
    *,
    row_length: int,
    num_targets: int,
    is_packed: bool = False,
    uses_mask: bool = False,
) -> Work:
    """Count the work of one row.

    Args:
        segments: Length without padding, and prefix length, of each segment of the row.
        row_length: Positions of the row (s); the rest is padding.
        num_targets: Predicted tokens.
        is_packed: True if padding is a separate segment; otherwise it extends Part B.
        uses_mask: True if the kernels also compute masked pairs.
    """
    segments = list(segments)
    real = sum(length for length, _ in segments)
    if is_packed:
        executed = [*segments, (row_length - real, 0)]
    else:
        executed = [(row_length, prefix) for _, prefix in segments]
    pairs = masked_pairs if uses_mask else attended_pairs
    return Work(
        positions=row_length,
        real_tokens=real,
        targets=num_targets,
        useful_pairs=sum(attended_pairs(prefix, length) for length, prefix in segments),
        executed_pairs=sum(pairs(prefix, length) for length, prefix in executed),
        dense_pairs=row_length * row_length,
    )


@dataclass(frozen=True)
class Frozen:
    """Matrices without a gradient, which saves one of their three products."""

    layers: int = 0
    """Elements of such matrices in all layers."""
    table: bool = False
    """True for the vocabulary table."""

    @classmethod
    def of(cls, config: RunConfig) -> "Frozen":
        """Find what ``optimizer.trainable`` leaves out."""
        learns = trainable_names(config)
        specs = parameter_specs(config.model, config.padded_vocab_size)
        frozen = [spec for spec in specs if spec.name not in learns]
        in_layers = (spec for spec in frozen if spec.layer is not None and len(spec.shape) == 2)
        return cls(
            sum(spec.size for spec in in_layers),
            any(spec.name == WORD_EMBEDDINGS for spec in frozen),
        )

    def saved(self, tokens: int, head: int) -> int:
        """Count the operations that training saves.

        Args:
            tokens: Positions that pass the layers.
            head: Multiplications of the head in forward.
        """
        return 2 * (self.layers * tokens + head * self.table)


ALL_LEARNS = Frozen()


def weights_per_layer(model: ModelConfig) -> int:
    """Count the elements of a layer's matrices: query, key, value, output, and the MLP's."""
    return sum(spec.size for spec in layer_specs(model, 0) if len(spec.shape) == 2)


def useful_operations(
    model: ModelConfig, work: Work, *, vocab_size: int, frozen: Frozen = ALL_LEARNS
) -> int:
    """Count the operations of training that the objective needs.

    Args:
        model: Architecture.
        work: Rows.
        vocab_size: Tokens that exist; padded rows of the table are left out of the products.
        frozen: Matrices without a gradient.
    """
    products = model.num_layers * weights_per_layer(model) * work.real_tokens
    attention = 2 * model.num_layers * model.hidden_size * work.useful_pairs
    head = model.hidden_size * vocab_size * work.targets
    saved = frozen.saved(work.real_tokens, head)
    return TRAINING_PASSES * 2 * (products + attention + head) - saved


def convention_operations(
    model: ModelConfig, work: Work, *, vocab_size: int, frozen: Frozen = ALL_LEARNS
) -> int:
    """Count the operations of training by the published formula, 6 N + 12 l h s per token.

    Frozen matrices count 4 N.

    Args:
        model: Architecture.
        work: Rows.
        vocab_size: Tokens that exist.
        frozen: Matrices without a gradient.
    """
    weights = model.num_layers * weights_per_layer(model) + model.hidden_size * vocab_size
    attention = 12 * model.num_layers * model.hidden_size * work.dense_pairs
    head = model.hidden_size * vocab_size * work.positions
    return 6 * weights * work.positions + attention - frozen.saved(work.positions, head)


def executed_operations(
    model: ModelConfig,
    work: Work,
    *,
    vocab_size: int,
    recompute: RecomputeMode = RecomputeMode.none,
    recomputed_share: float = 1.0,
    fused_attention: bool = True,
    frozen: Frozen = ALL_LEARNS,
) -> int:
    """Count the operations of training that kernels run.

    Args:
        model: Architecture.
        work: Rows.
        vocab_size: Tokens that exist.
        recompute: Recompute mode; ``selective`` covers the scores and weighted sums of core
            attention, ``full`` whole layers.
        recomputed_share: Share of the layers that it applies to, 0 to 1.
        fused_attention: True if attention's backward recomputes the scores instead of storing
            them, as flash kernels do: five products instead of four.
        frozen: Matrices without a gradient.
    """
    products = 2 * model.num_layers * weights_per_layer(model) * work.positions
    scores = 2 * model.num_layers * model.hidden_size * work.executed_pairs  # one product of pairs
    again = 0.0
    if recompute is not RecomputeMode.none:
        again = 2 * scores
    if recompute is RecomputeMode.full:
        again += products
    head = 2 * model.hidden_size * vocab_size * work.targets
    passes = 2 + (5 if fused_attention else 4)
    saved = frozen.saved(work.positions, head // 2)
    extra = passes * scores + round(recomputed_share * again)
    return TRAINING_PASSES * (products + head) + extra - saved


PEAKS_16_BIT = (
    # Dense tensor-core peaks in TFLOP/s from the vendors' data sheets; sheets that only print the
    # number with sparsity are halved. The first pattern found in the device's name counts.
    (r"GB200", 2500.0),
    (r"B200", 2250.0),
    (r"H[18]00 PCIe", 756.0),
    (r"H200 NVL", 835.0),
    (r"H(200|800|100 80GB HBM|100 SXM)|GH200", 989.4),
    (r"H100 NVL", 835.0),
    (r"H20\b", 148.0),
    (r"A[18]00\b", 312.0),
    (r"A40\b", 149.7),
    (r"A30\b", 165.0),
    (r"A10\b", 125.0),
    (r"L40S", 362.0),
    (r"L4\b", 121.0),
    (r"V100-SXM", 125.0),
    (r"V100-PCIE", 112.0),
)


def peak_tflops(device_name: str, *, is_16_bit: bool, override: float) -> float | None:
    """Return the peak of one device for dense matrix products, in TFLOP/s.

    Args:
        device_name: Name reported by the driver.
        is_16_bit: True if training runs in bf16 or fp16; the table has no other peaks.
        override: The user's number; 0 for none.

    Returns:
        None if it is unknown: no figure is better than a guess.
    """
    if override > 0:
        return override
    if not is_16_bit:
        return None
    return next((peak for name, peak in PEAKS_16_BIT if re.search(name, device_name)), None)
