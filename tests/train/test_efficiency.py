"""Operation counts against what torch counts in the executed graph, and their way to the record."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils.flop_counter import FlopCounterMode

from glm_dist.config.load import load_config
from glm_dist.config.schema import Dtype, ModelConfig
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.data.rows import Row, Segment
from glm_dist.model.batch import StageBatch
from glm_dist.model.parameters import initialize
from glm_dist.model.stage import GLMStage
from glm_dist.observe.flops import Work, convention_operations, executed_operations
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.groups import build_groups
from glm_dist.parallel.layout import Layout
from glm_dist.parallel.rng import seed_step
from glm_dist.train.efficiency import Efficiency, micro_batch_work
from glm_dist.train.task import Pretraining
from tests.ranks import run_ranks
from tests.train.grid import ARCHITECTURE

VOCAB_SIZE = 251
ROW_LENGTH = 24
MODEL = ModelConfig(
    num_layers=2,
    hidden_size=32,
    num_attention_heads=4,
    max_position_embeddings=ROW_LENGTH,
    init_std=0.02,
)


def row(prefix: int, real: int, segments: tuple[Segment, ...] = ()) -> Row:
    """A random row; every third position of Part B has no target."""
    rng = np.random.default_rng(prefix)
    position = np.arange(ROW_LENGTH)
    return Row(
        tokens=rng.integers(0, VOCAB_SIZE, size=ROW_LENGTH),
        positions=np.minimum(position, prefix),
        block_positions=np.maximum(position - prefix, 0),
        targets=rng.integers(0, VOCAB_SIZE, size=ROW_LENGTH),
        loss_mask=(position >= prefix) & (position < real) & (position % 3 > 0),
        prefix_length=prefix,
        objective="span",
        num_real_tokens=real,
        segments=segments,
    )


ROWS = [
    row(10, 24),
    row(0, 20),
    row(24, 24),
    row(5, 20, (Segment(12, 5), Segment(8, 8))),
]


def causal_pairs_counted_once(per_pair: int) -> Callable[..., int]:
    """torch's counter takes a causal call for a dense one; the kernel skips what lies above."""

    def count(query: Any, key: Any, value: Any, *rest: Any, **_: Any) -> int:
        # forward: (dropout, causal); backward: (out, log_sum, dropout, causal) after value
        is_causal = rest[-1] if rest else False
        (rows, heads, queries, size), keys = query, key[2]
        pairs = queries * (queries + 1) // 2 if is_causal else queries * keys
        return rows * heads * pairs * size * per_pair

    return count


def flash_backward(grad: Any, query: Any, key: Any, value: Any, *rest: Any, **_: Any) -> int:
    return causal_pairs_counted_once(10)(query, key, value, rest[-1])


FLASH_COUNTS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: causal_pairs_counted_once(4),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: flash_backward,
}


def counted_by_torch(dropout: float, options: dict[str, object]) -> int:
    """Operations of forward and backward of ROWS, counted operator by operator."""
    enable_cpu()
    groups = build_groups(Layout(), timedelta(seconds=60))
    model = ModelConfig(
        num_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        max_position_embeddings=32,
        hidden_dropout=dropout,
        attention_dropout=dropout,
        layernorm_epsilon=1e-5,
        init_std=0.02,
        **options,
    )
    stage = GLMStage(
        model,
        vocab_size=VOCAB_SIZE,
        padded_vocab_size=256,
        dtype=Dtype.fp32,
        groups=groups,
        device=torch.device("cpu"),
    )
    initialize(stage.shards(), seed=1)
    seed_step(1, 0, coordinates=groups.coordinates)
    stage.train()
    batch = StageBatch.from_micro_batch(MicroBatch.stack(ROWS), torch.device("cpu"))
    with FlopCounterMode(display=False, custom_mapping=FLASH_COUNTS) as counter:
        Pretraining().loss(stage, stage(batch), batch).total.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_executed_operations_are_those_torch_counts(dropout: float) -> None:
    (counted,) = run_ranks(counted_by_torch, dropout, {}, world_size=1)
    work = micro_batch_work(MicroBatch.stack(ROWS), uses_mask=dropout > 0)

    assert (
        executed_operations(MODEL, work, vocab_size=VOCAB_SIZE, fused_attention=dropout == 0)
        == counted
    )


def test_executed_operations_of_the_options_are_those_torch_counts() -> None:
    options = {key: value for each in ARCHITECTURE.values() for key, value in each.items()}
    (counted,) = run_ranks(counted_by_torch, 0.0, options, world_size=1)
    overrides = [f"model.{key}={getattr(value, 'name', value)}" for key, value in options.items()]
    sizes = ["model.num_layers=2", "model.hidden_size=32", f"tokenizer.vocab_size={VOCAB_SIZE}"]
    config = load_config(["experiment=tiny", *sizes, *overrides])
    work = micro_batch_work(MicroBatch.stack(ROWS), uses_mask=False)

    assert config.model.mlp_size == 44
    assert executed_operations(config.model, work, vocab_size=VOCAB_SIZE) == counted


def test_useful_pairs_are_those_of_the_mask_over_real_tokens() -> None:
    def allowed(prefix: int, length: int) -> int:
        return sum(j <= i or j < prefix for i in range(length) for j in range(length))

    work = micro_batch_work(MicroBatch.stack(ROWS), uses_mask=False)

    assert work.useful_pairs == (
        allowed(10, 24) + allowed(0, 20) + allowed(24, 24) + allowed(5, 12) + allowed(8, 8)
    )
    assert work.real_tokens == 24 + 20 + 24 + 20
    assert work.targets == sum(int(r.loss_mask.sum()) for r in ROWS)
    assert work.positions == 4 * ROW_LENGTH


def take_on_two_replicas(overrides: list[str]) -> tuple[dict[str, float], dict[str, float]]:
    """Each replica does another row; a record and the empty one after it."""
    enable_cpu()
    config = load_config(["experiment=tiny", *overrides])
    groups = build_groups(Layout(1, 1, 2), timedelta(seconds=60))
    efficiency = Efficiency(config, groups=groups, device=torch.device("cpu"))
    efficiency.step_done([MicroBatch.stack([ROWS[dist.get_rank()]])])
    return efficiency.take(2.0), efficiency.take(2.0)


def test_a_record_adds_up_replicas_and_starts_over() -> None:
    overrides = ["observe.peak_tflops=1e-3", "model.attention_dropout=0"]
    results = run_ranks(take_on_two_replicas, overrides, world_size=2)

    assert results[0] == results[1]
    record, empty = results[0]
    assert empty == {}
    assert record["rows/padding_share"] == pytest.approx(4 / 48)
    targets = int(ROWS[0].loss_mask.sum()) + int(ROWS[1].loss_mask.sum())
    assert record["rows/target_share"] == pytest.approx(targets / 48)
    # 2 devices of 10^9 operations a second for 2 seconds
    assert record["speed/useful_mfu"] == pytest.approx(record["speed/useful_tflops_per_gpu"] / 1e-3)
    assert record["speed/useful_mfu"] < record["speed/hfu"]
    both = Work(positions=2 * ROW_LENGTH, dense_pairs=2 * ROW_LENGTH**2)
    config = load_config(["experiment=tiny", *overrides])
    published = convention_operations(config.model, both, vocab_size=config.tokenizer.vocab_size)
    assert record["speed/mfu"] == pytest.approx(published / 4e9)


def test_without_a_known_peak_there_is_no_share_of_it() -> None:
    (record, _), _ = run_ranks(take_on_two_replicas, [], world_size=2)

    assert record["speed/useful_tflops_per_gpu"] > 0
    assert not {"speed/mfu", "speed/hfu", "speed/useful_mfu"} & record.keys()
