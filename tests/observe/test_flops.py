"""Operation counts against brute force over the mask and against known formulas."""

import pytest

from glm_dist.config.load import load_config
from glm_dist.config.schema import Activation, ModelConfig, RecomputeMode
from glm_dist.observe.flops import (
    Frozen,
    Work,
    attended_pairs,
    convention_operations,
    executed_operations,
    masked_pairs,
    peak_tflops,
    row_work,
    useful_operations,
    weights_per_layer,
)

BASE = ModelConfig(
    num_layers=12,
    hidden_size=768,
    num_attention_heads=12,
    max_position_embeddings=512,
    init_std=0.02,
)
VOCAB_SIZE = 30524


def brute_force_pairs(prefix: int, length: int) -> int:
    """Every query and key, one by one."""
    return sum(j <= i or j < prefix for i in range(length) for j in range(length))


@pytest.mark.parametrize("length", [1, 2, 17, 64])
def test_attended_pairs_are_those_of_the_mask(length: int) -> None:
    for prefix in range(length + 1):
        assert attended_pairs(prefix, length) == brute_force_pairs(prefix, length)


def test_a_known_number_of_pairs() -> None:
    # 20^2 + 20 * 44 + 44 * 45 / 2 = 400 + 880 + 990
    assert attended_pairs(20, 64) == 2270
    # 20^2 + 44 * 64
    assert masked_pairs(20, 64) == 3216


def test_a_row_with_padding() -> None:
    work = row_work([(60, 20)], row_length=64, num_targets=40)

    assert work == Work(
        positions=64,
        real_tokens=60,
        targets=40,
        useful_pairs=brute_force_pairs(20, 60),
        executed_pairs=brute_force_pairs(20, 64),  # padding is the end of Part B
        dense_pairs=64 * 64,
    )


def test_a_packed_row_with_padding() -> None:
    work = row_work([(30, 20), (10, 0)], row_length=64, num_targets=20, is_packed=True)

    useful = brute_force_pairs(20, 30) + brute_force_pairs(0, 10)
    assert work.useful_pairs == useful
    assert work.executed_pairs == useful + brute_force_pairs(0, 24)  # padding stands alone


def test_work_adds_up() -> None:
    row = row_work([(60, 20)], row_length=64, num_targets=40)

    assert (row + row).positions == 128
    assert useful_operations(BASE, row + row, vocab_size=VOCAB_SIZE) == 2 * useful_operations(
        BASE, row, vocab_size=VOCAB_SIZE
    )


def test_the_convention_is_the_formula_of_megatron() -> None:
    # 72 B l s h^2 (1 + s / 6h + v / 12lh) for B = 3 rows, arXiv 2104.04473 eq. 3 without recompute
    rows, length, layers, hidden, vocab = 3, 576, 12, 768, 30524
    row = row_work([(length, 400)], row_length=length, num_targets=176)
    expected = 72 * rows * layers * length * hidden**2
    expected *= 1 + length / (6 * hidden) + vocab / (12 * layers * hidden)

    assert convention_operations(BASE, row + row + row, vocab_size=VOCAB_SIZE) == pytest.approx(
        expected, rel=1e-12
    )


def test_useful_work_is_what_the_convention_counts_but_for_pairs_and_targets() -> None:
    # All positions real, all predicted and all pairs attended: nothing is left to differ.
    full = Work(
        positions=576,
        real_tokens=576,
        targets=576,
        useful_pairs=576**2,
        executed_pairs=576**2,
        dense_pairs=576**2,
    )

    assert useful_operations(BASE, full, vocab_size=VOCAB_SIZE) == convention_operations(
        BASE, full, vocab_size=VOCAB_SIZE
    )
    assert executed_operations(
        BASE, full, fused_attention=False, vocab_size=VOCAB_SIZE
    ) == useful_operations(BASE, full, vocab_size=VOCAB_SIZE)


def test_recomputed_layers_add_one_forward_of_the_blocks() -> None:
    row = row_work([(576, 400)], row_length=576, num_targets=176)
    forward = 2 * 12 * (12 * 768**2) * 576 + 4 * 12 * 768 * row.executed_pairs
    plain = executed_operations(BASE, row, vocab_size=VOCAB_SIZE)

    assert (
        executed_operations(BASE, row, recompute=RecomputeMode.full, vocab_size=VOCAB_SIZE) - plain
        == forward
    )
    assert (
        executed_operations(
            BASE, row, recompute=RecomputeMode.full, recomputed_share=0.25, vocab_size=VOCAB_SIZE
        )
        - plain
        == forward // 4
    )
    assert (
        executed_operations(BASE, row, recompute=RecomputeMode.selective, vocab_size=VOCAB_SIZE)
        - plain
        == 4 * 12 * 768 * row.executed_pairs
    )


def test_a_gated_mlp_has_three_matrices() -> None:
    gated = ModelConfig(
        num_layers=1,
        hidden_size=8,
        num_attention_heads=2,
        max_position_embeddings=4,
        ffn_hidden_size=32,
        activation=Activation.geglu,
        init_std=0.02,
    )

    assert weights_per_layer(gated) == 4 * 64 + 3 * 8 * 32


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H800 PCIe", 756.0),
        ("NVIDIA H100 NVL", 835.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H20", 148.0),
        ("NVIDIA A100-SXM4-40GB", 312.0),
        ("NVIDIA A100 80GB PCIe", 312.0),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA RTX A4000", None),
        ("Tesla V100-SXM2-32GB", 125.0),
        ("NVIDIA GeForce RTX 9999", None),
        ("cpu", None),
    ],
)
def test_peaks_are_known_or_missing_never_guessed(name: str, peak: float | None) -> None:
    assert peak_tflops(name, is_16_bit=True, override=0) == peak
    assert peak_tflops(name, is_16_bit=False, override=0) is None
    assert peak_tflops(name, is_16_bit=False, override=1.5) == 1.5


def test_frozen_matrices_have_no_product_for_their_own_gradient() -> None:
    # Two layers of 12 x 64 weights; LoRA of rank 2 on the attention: (8 + 24) 2 and (8 + 8) 2
    # elements that learn. Of the head's three products of 8 x 100 the third is left out too.
    config = load_config(
        [
            "experiment=tiny",
            *("model.num_layers=2", "model.hidden_size=8", "model.num_attention_heads=2"),
            "model.lora_rank=2",
        ]
    )
    work = Work(positions=10, real_tokens=9, targets=4)
    layer, update = 12 * 64, 2 * (8 + 24) + 2 * (8 + 8)
    forward = 2 * 2 * (layer + update) * 9 + 2 * 8 * 100 * 4
    own = 2 * 2 * update * 9

    frozen = Frozen.of(config)

    assert frozen == Frozen(2 * layer, table=True)
    assert useful_operations(config.model, work, vocab_size=100, frozen=frozen) == 2 * forward + own
