"""Predicted times against measured ones, published ones, and arithmetic by hand."""

import math
import random

import pytest

from glm_dist.config.load import load_config
from glm_dist.config.parameter_specs import count_parameters
from glm_dist.config.schema import RunConfig
from glm_dist.observe.flops import attended_pairs
from glm_dist.parallel.layout import Layout
from glm_dist.plan.cluster import LINK_SHARE, MESSAGE_SECONDS, NETWORK_SHARE, Cluster
from glm_dist.plan.cost import StepTime, step_time, step_work
from glm_dist.plan.gpus import gpu_named
from glm_dist.plan.products import Product
from glm_dist.plan.saves import plan_saves
from glm_dist.plan.search import make_plan
from glm_dist.plan.workload import MeanRow

NO_DROPOUT = ("model.hidden_dropout=0", "model.attention_dropout=0")
ONE_H200 = (*NO_DROPOUT, "parallel=single", "zero=stage1", "precision=bf16")

# A GPT of Megatron-LM (arXiv 2205.05198): selective recomputation, sequence parallelism, rows of
# 2048, vocabulary 51,200.
GPT = (
    "experiment=glm_130b",
    *NO_DROPOUT,
    "parallel.stage_layers=[]",
    "parallel.sequence_parallel=true",
    "parallel.tensor_parallel_size=8",
    "model.activation=gelu",
    "model.ffn_hidden_size=null",
    "tokenizer.vocab_size=51200",
    "corruption.task=causal_lm",
    "recompute=selective",
)


def predicted(gpus: int, gpu: str, *overrides: str) -> float:
    config = load_config(overrides)
    cluster = Cluster(gpu_named(gpu), 8, network_gb_per_second=25.0)
    return step_time(config, Layout.from_config(config, gpus), cluster).total


@pytest.mark.parametrize(
    ("layers", "hidden", "heads", "pipeline", "virtual", "gpus", "rows", "micro", "seconds"),
    [
        (48, 6144, 64, 1, 1, 8, 4, 4, 1.10),
        (96, 12288, 96, 8, 3, 64, 64, 1, 13.75),
        (105, 20480, 128, 35, 3, 280, 280, 1, 37.83),
        (128, 25600, 160, 64, 1, 512, 512, 1, 71.49),
    ],
    ids=["22B", "175B", "530B", "1T"],
)
def test_published_steps_of_megatron_lm_are_met_within_a_quarter(
    layers: int,
    hidden: int,
    heads: int,
    pipeline: int,
    virtual: int,
    gpus: int,
    rows: int,
    micro: int,
    seconds: float,
) -> None:
    found = predicted(
        gpus,
        "a100-80",
        *GPT,
        f"model.num_layers={layers}",
        f"model.hidden_size={hidden}",
        f"model.num_attention_heads={heads}",
        f"parallel.pipeline_parallel_size={pipeline}",
        f"parallel.virtual_stages={virtual}",
        f"batch.global_batch_size={rows}",
        f"batch.micro_batch_size={micro}",
    )
    assert found == pytest.approx(seconds, rel=0.25)


def test_the_published_step_of_glm_130b_is_met_within_a_quarter() -> None:
    assert predicted(768, "a100-40", "experiment=glm_130b") == pytest.approx(88.5, rel=0.25)


@pytest.mark.parametrize(
    ("overrides", "seconds"),
    [
        (
            ("experiment=glm_2b", "batch.row_length=1024", "model.max_position_embeddings=1100"),
            0.771,
        ),
        (("experiment=glm_large", "batch.row_length=512"), 0.598),
    ],
    ids=["2B", "Large"],
)
def test_steps_of_the_same_mathematics_on_an_h200_are_met(
    overrides: tuple[str, ...], seconds: float
) -> None:
    rows = 8 if "experiment=glm_2b" in overrides else 64
    batch = (f"batch.micro_batch_size={rows}", f"batch.global_batch_size={4 * rows}")
    assert predicted(1, "h200", *overrides, *ONE_H200, *batch) == pytest.approx(seconds, rel=0.15)


def test_a_product_takes_its_operations_at_the_rate_of_whole_waves() -> None:
    gpu = gpu_named("h100")
    # 64 x 33 tiles of 128 x 256 are 16 whole waves of 132 multiprocessors.
    whole = Product(8192, 4096, 33 * 256)
    assert whole.busy_share(132) == 1.0
    rate = 2 * 8192 * 4096 * 33 * 256 / whole.seconds(gpu, element_bytes=2)
    assert rate == pytest.approx(0.84 * 989.4e12)
    # One more column of tiles costs a 17th wave.
    assert Product(8192, 4096, 34 * 256).busy_share(132) == pytest.approx(64 * 34 / 132 / 17)


def test_a_thin_product_is_bound_by_memory() -> None:
    gpu = gpu_named("h100")
    found = Product(1, 8192, 8192).seconds(gpu, element_bytes=2)
    assert found == pytest.approx((8192**2 + 2 * 8192) * 2 / (0.85 * 3350e9))


@pytest.mark.parametrize(
    ("ranks", "stride", "world_size", "rate"),
    [
        (8, 1, 64, 450e9 * LINK_SHARE),  # the GPUs of a node
        (4, 2, 64, 450e9 * LINK_SHARE),
        (16, 8, 128, 50e9 * NETWORK_SHARE),  # one GPU of each node
        (16, 2, 128, 4 * 50e9 * NETWORK_SHARE),  # four of each node, with four parts of its network
        (6, 1, 24, 2 * 50e9 * NETWORK_SHARE),  # ranks 6 to 11: two on a node, four on the next
        (3, 1, 24, 50e9 * NETWORK_SHARE),  # ranks 6 to 8: two and one
        (12, 1, 24, 4 * 50e9 * NETWORK_SHARE),  # eight on a node, four on the next
    ],
)
def test_a_ring_is_as_fast_as_its_slowest_link(
    ranks: int, stride: int, world_size: int, rate: float
) -> None:
    cluster = Cluster(gpu_named("h100"), 8, network_gb_per_second=50.0)
    found = cluster.exchange_seconds(1e9, ranks=ranks, stride=stride, world_size=world_size)
    assert found == pytest.approx(1e9 / rate + MESSAGE_SECONDS)


def test_replicas_that_straddle_nodes_pay_for_the_network() -> None:
    # Stage 1 of 3 has ranks 4 to 7; nodes of 6 end between its replicas, nodes of 12 do not.
    config = small("parallel.pipeline_parallel_size=3", "batch.global_batch_size=64")
    layout = Layout.from_config(config, 12)
    within, across = (
        step_time(config, layout, Cluster(gpu_named("h100"), each, 50.0)).replicas
        for each in (12, 6)
    )
    assert across > 3 * within  # two parts of 42.5 GB/s instead of 337.5


def test_a_network_is_never_faster_than_the_links_behind_it() -> None:
    cluster = Cluster(gpu_named("h100"), 8, network_gb_per_second=10_000.0)
    found = cluster.exchange_seconds(1e9, ranks=16, stride=8, world_size=128)
    assert found == pytest.approx(1e9 / (450e9 * LINK_SHARE) + MESSAGE_SECONDS)


def small(*overrides: str) -> RunConfig:
    return load_config(["experiment=glm_large", *NO_DROPOUT, "precision=bf16", *overrides])


def test_the_bubble_is_that_of_1f1b_and_shrinks_by_interleaving() -> None:
    def bubble(virtual: int) -> float:
        stages = ("parallel.pipeline_parallel_size=4", f"parallel.virtual_stages={virtual}")
        config = small(*stages, "batch.global_batch_size=64", "batch.micro_batch_size=8")
        time = time_of(config, 4)
        parts = (time.products, time.attention, time.pointwise, time.other, time.head)
        return time.bubble / sum(parts)

    # 3 of 8 micro-batches; the stages without the head are a little shorter than the last.
    assert bubble(1) == pytest.approx(3 / 8, rel=0.06)
    assert bubble(2) == pytest.approx(bubble(1) / 2)


def time_of(config: RunConfig, gpus: int, network: float = 50.0) -> StepTime:
    return step_time(
        config, Layout.from_config(config, gpus), Cluster(gpu_named("h100"), 8, network)
    )


@pytest.mark.parametrize(
    ("stage", "bytes_sent"),
    # Two replicas send half of everything: fp32 sums, and fp32 sums or 16-bit weights back.
    [(0, 4 / 2 + 4 / 2), (1, 4 / 2 + 2 / 2), (2, 4 * 4 / 2 + 2 / 2), (3, 4 * 4 / 2 + 8 * 2 / 2)],
)
def test_replicas_exchange_sums_and_weights(stage: int, bytes_sent: float) -> None:
    batch = ("batch.global_batch_size=64", "batch.micro_batch_size=8")  # four micro-batches
    config = small("parallel=dp", f"zero.stage={stage}", *batch)
    parameters = count_parameters(config.model, config.padded_vocab_size)
    expected = parameters * bytes_sent / (450e9 * LINK_SHARE)
    assert time_of(config, 2).replicas == pytest.approx(expected, rel=0.02)


def test_tensor_ranks_exchange_four_sums_a_layer() -> None:
    config = small("parallel=tp2", "batch.global_batch_size=8", "batch.micro_batch_size=8")
    size = 8 * config.batch.row_length * 1024 * 2
    one = 2 * size / 2 / (450e9 * LINK_SHARE) + MESSAGE_SECONDS
    # The two of backward run beside the products of weights' gradients, which take longer.
    assert time_of(config, 2).tensor == pytest.approx(24 * 2 * one)


def test_an_update_moves_what_the_rank_holds() -> None:
    config = small("parallel=dp", "zero=stage1")
    parameters = count_parameters(config.model, config.padded_vocab_size)
    expected = parameters * (12 + 30 / 8) / (0.85 * 3350e9)
    assert time_of(config, 8).update == pytest.approx(expected, rel=0.01)


LINK = 450e9 * LINK_SHARE
FOUR = ("batch.global_batch_size=32", "batch.micro_batch_size=8")  # micro-batches of one replica


def test_stages_send_activations_and_gradients_and_share_the_table() -> None:
    stages = "parallel.pipeline_parallel_size=2"
    config = small(stages, *FOUR)
    size = 8 * config.batch.row_length * 1024 * 2
    message = size / LINK + MESSAGE_SECONDS
    plain = time_of(config, 2)
    assert plain.pipeline == pytest.approx(2 * 4 * message)
    table = 4 * config.padded_vocab_size * 1024
    assert plain.replicas == pytest.approx(table / LINK + MESSAGE_SECONDS)
    chunks = time_of(small(stages, "parallel.virtual_stages=2", *FOUR), 2)
    assert chunks.pipeline == pytest.approx(2 * plain.pipeline)
    both = ("parallel.tensor_parallel_size=2", "parallel.sequence_parallel=true")
    split = time_of(small(stages, *both, *FOUR), 4)
    assert split.pipeline == pytest.approx(2 * 4 * (size / 2 / LINK + MESSAGE_SECONDS))


def test_the_ends_of_a_pipeline_on_one_node_share_the_table_over_its_links() -> None:
    time = time_of(small("parallel.pipeline_parallel_size=8", *FOUR), 8, network=1.0)
    table = 4 * small().padded_vocab_size * 1024
    assert time.replicas == pytest.approx(table / LINK + MESSAGE_SECONDS)


def test_a_pipeline_is_as_fast_as_its_message_between_nodes() -> None:
    stages = ("parallel.pipeline_parallel_size=4", "parallel.tensor_parallel_size=2", *FOUR)
    on_one, on_two = (
        Cluster(gpu_named("h100"), per_node, network_gb_per_second=1.0) for per_node in (8, 4)
    )
    config = small(*stages)
    layout = Layout.from_config(config, 8)  # stages are 2 ranks apart: stage 1 to 2 leaves a node
    size = 8 * config.batch.row_length * 1024 * 2
    found = [step_time(config, layout, cluster).pipeline for cluster in (on_one, on_two)]
    rates = (LINK, 1e9 * NETWORK_SHARE)
    assert found == pytest.approx([8 * (size / rate + MESSAGE_SECONDS) for rate in rates])


def test_only_the_last_stage_has_the_head() -> None:
    stages = ("parallel.pipeline_parallel_size=2", *FOUR)
    assert time_of(small(*stages, "parallel.stage_layers=[20,4]"), 2).head == 0
    assert time_of(small(*stages, "parallel.stage_layers=[4,20]"), 2).head > 0


def test_small_micro_batches_wait_for_the_host() -> None:
    config = small("parallel=single", "batch.global_batch_size=8", "batch.micro_batch_size=1")
    time = time_of(config, 1)
    launches = 8 * (24 * 39 + 60) + 45
    busy = time.total - time.host - time.update
    assert time.host + busy == pytest.approx(40e-6 * launches)


def test_overlapped_exchanges_hide_behind_a_micro_batch() -> None:
    layout = ("parallel=dp", "zero=stage1", "batch.global_batch_size=64")
    assert time_of(small(*layout), 2).replicas > 0
    assert time_of(small(*layout, "zero.overlap_comm=true"), 2).replicas == 0


@pytest.mark.parametrize(("stage", "beside"), [(1, 1), (2, 4), (3, 4)])
def test_deepspeed_exchanges_beside_every_micro_batch(stage: int, beside: int) -> None:
    batch = ("batch.global_batch_size=64", "batch.micro_batch_size=8")  # four micro-batches
    config = ("parallel=dp", f"zero.stage={stage}", *batch)
    cluster = Cluster(gpu_named("h100"), 1, network_gb_per_second=1.0)
    after, during = (
        step_time(found, Layout.from_config(found, 2), cluster)
        for found in (small(*config), small(*config, "zero.overlap_comm=true"))
    )
    busy = sum((after.products, after.attention, after.pointwise, after.head, after.other)) / 4
    assert after.replicas - during.replicas == pytest.approx(beside * busy)


def test_tensor_ranks_share_the_mlp_and_with_sequences_everything() -> None:
    tensor = ("parallel.tensor_parallel_size=2", *FOUR)
    whole = time_of(small("parallel=single", *FOUR), 1)
    assert time_of(small(*tensor), 2).pointwise == pytest.approx(whole.pointwise * 50 / 60)
    split = time_of(small(*tensor, "parallel.sequence_parallel=true"), 2)
    assert split.pointwise == pytest.approx(whole.pointwise / 2)
    again = time_of(small(*tensor, "recompute=full"), 2)
    assert again.tensor == pytest.approx(2 * time_of(small(*tensor), 2).tensor)


@pytest.mark.parametrize(
    ("gpu", "ratio"),
    [("v100-32", 125 / 15.7), ("l40s", 362 / 91.6), ("a100-80", 312 / 19.5), ("h100", 989.4 / 67)],
)
def test_fp32_multiplies_without_tensor_cores_in_attention_as_well(gpu: str, ratio: float) -> None:
    cluster = Cluster(gpu_named(gpu), 8, 50.0)
    half, full = (
        step_time(config, Layout(), cluster)
        for config in (small("parallel=single", f"precision={d}") for d in ("fp16", "fp32"))
    )
    assert full.attention == pytest.approx(ratio * half.attention)
    assert full.products == pytest.approx(ratio * half.products)


def test_mfu_divides_by_the_peak_of_the_number_format() -> None:
    cluster = Cluster(gpu_named("v100-32"), 8, 50.0)
    half, full = (
        make_plan(small("parallel=single", f"precision={d}"), cluster, 1) for d in ("fp16", "fp32")
    )
    # Products and attention take most of the time, and are slower by the ratio of the peaks.
    assert full.mfu == pytest.approx(half.mfu, rel=0.15)


def test_frozen_parameters_have_no_gradients() -> None:
    layout = ("parallel=dp", "zero=stage1", *FOUR)
    whole, frozen = small(*layout), small(*layout, "optimizer.trainable=['*final_layernorm*']")
    learning, resting = time_of(whole, 2), time_of(frozen, 2)
    assert resting.products == pytest.approx(learning.products * 2 / 3, rel=0.12)
    assert resting.head < learning.head
    assert max(resting.replicas, resting.update) < 0.01 * learning.replicas
    # ZeRO 3 gathers frozen weights too, and reduces nothing of them.
    gathered = time_of(small(*layout, "zero.stage=3", "optimizer.trainable=['*layernorm*']"), 2)
    weights = 2 * count_parameters(whole.model, whole.padded_vocab_size)
    expected = 2 * 2 * weights / 2 / LINK + 6 * MESSAGE_SECONDS
    assert gathered.replicas == pytest.approx(expected, rel=0.01)
    # As a run counts its MFU: 4 operations for each frozen weight, not 6.
    share = step_work(frozen) / step_work(whole)
    assert 2 / 3 < share < 0.72


def test_deepspeed_moves_every_parameter_in_every_micro_batch() -> None:
    one, two = (time_of(small("parallel=single", f"zero.stage={z}", *FOUR), 1) for z in (1, 2))
    config = small()
    parameters = count_parameters(config.model, config.padded_vocab_size)
    expected = 4 * 50 * parameters / (0.85 * 3350e9)
    assert two.update - one.update == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    "layout",
    [
        ("parallel.tensor_parallel_size=2",),
        ("parallel.pipeline_parallel_size=4", "parallel.virtual_stages=2"),
        ("parallel.tensor_parallel_size=4", "parallel.sequence_parallel=true", "zero=stage1"),
        ("zero=stage3",),
    ],
    ids=" ".join,
)
def test_what_helps_helps_and_what_costs_costs(layout: tuple[str, ...]) -> None:
    rows = "batch.global_batch_size=256"
    plain = time_of(small(rows, *layout), 16)
    assert time_of(small(rows, *layout), 16, network=100.0).total <= plain.total
    again = time_of(small(rows, *layout, "recompute=full"), 16)
    # A forward pass: a third of the products, of what is between them, and attention's part of it.
    parts = plain.products + plain.pointwise + plain.attention
    assert plain.products / 3 < again.recompute < parts / 2
    assert again.total - again.host > plain.total - plain.host + plain.products / 3
    dropped = time_of(small(rows, *layout, "model.attention_dropout=0.1"), 16)
    assert dropped.attention == pytest.approx(1.6 * plain.attention)
    wide = time_of(small("batch.global_batch_size=512", *layout), 16)
    assert plain.total < wide.total < 2.01 * plain.total


def test_tensor_parallelism_across_nodes_is_slower_than_within_one() -> None:
    config = small("parallel.tensor_parallel_size=8", "batch.global_batch_size=64")
    layout = Layout.from_config(config, 8)
    within, across = (
        step_time(config, layout, Cluster(gpu_named("h100"), per_node, 50.0)).tensor
        for per_node in (8, 4)
    )
    assert across > 1.5 * within


@pytest.mark.parametrize("task", ["glm_mixed", "glm_doc", "bert", "gpt"])
def test_the_mean_row_is_that_of_drawn_rows(task: str) -> None:
    config = small(f"corruption={task}", "batch.row_length=512")
    corruption, length, generator = config.corruption, 2000, random.Random(0)
    targets = pairs = 0.0
    for _ in range(4000):
        if task == "bert":
            share, prefix = corruption.span_mask_ratio, length
        elif task == "gpt":
            share, prefix = 1.0, 0
        else:
            share = corruption.span_mask_ratio
            weights = (
                corruption.span_share,
                corruption.sentence_share,
                corruption.document_share,
            )
            if generator.choices("abc", weights)[0] == "c":
                share = generator.uniform(corruption.document_min_ratio, 1)
            prefix = round(length * (1 - share))
        targets += share / 4000
        pairs += attended_pairs(prefix, length) / length**2 / 4000
    found = MeanRow.of(config)
    assert found.targets == pytest.approx(targets, rel=0.03)
    assert found.pairs == pytest.approx(pairs, rel=0.03)


def test_saves_follow_young() -> None:
    config = small("checkpoint.background=false")
    saves = plan_saves(config, 64, storage_bytes_per_second=1e9, gpu_hours_per_failure=6400)
    size = 12 * 334_094_336  # GLM-Large; a master weight and two moments each
    assert saves.checkpoint_bytes == pytest.approx(size, rel=0.02)
    assert saves.hours_between_failures == 100
    cost = saves.checkpoint_bytes / 1e9
    assert saves.interval == pytest.approx(math.sqrt(2 * cost * 360_000))
    # Half an interval is repeated after a failure, a save may not have ended, and the job restarts.
    lost = cost / saves.interval + (saves.interval / 2 + cost + 600) / 360_000
    assert saves.lost_share == pytest.approx(lost)
    beside = plan_saves(
        small("checkpoint.background=true"),
        64,
        storage_bytes_per_second=1e9,
        gpu_hours_per_failure=6400,
    )
    assert beside.interval < saves.interval / 2
