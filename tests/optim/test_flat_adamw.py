"""ZeRO 0 and 1 over flat buffers: the norm, overlap, and steps that wait for nothing."""

import re
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode

from glm_dist.optim.arrivals import Arrivals
from glm_dist.optim.flat_adamw import FlatAdamW
from glm_dist.optim.flat_buffers import plan_buckets
from glm_dist.optim.state import Rates
from glm_dist.optim.weight_gathers import WeightGathers
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.train import job
from glm_dist.train.engine import TrainingEngine
from tests.ranks import run_ranks
from tests.train.grid import (
    Case,
    build_engine,
    groups_of,
    micro_batches_of,
    rows_of_step,
    run_config,
    run_steps,
    whole_weights,
)

OVERLAPPED = [
    Case(dp=2, zero=1, micro_batch=2),
    Case(dp=2, zero=0, micro_batch=4, dtype="bf16"),
    Case(dp=2, zero=1, micro_batch=4, dtype="bf16", recompute="full", dropout=0.1),
    Case(dp=2, zero=1, micro_batch=4, dtype="fp16", architecture=("lora",)),
]
INTERLEAVED = [Case(pp=2, dp=2, zero=1, micro_batch=2, vp=2, recompute="full")]
BUCKET_SIZE = 5_000
"""Elements; a layer has 12 x 32 x 32 = 12 288 in its matrices alone."""


def engine_of(case: Case, *, overlaps: bool) -> TrainingEngine:
    """The engine of a case with small buckets."""
    config = run_config(case)
    zero = replace(config.zero, overlap_comm=overlaps, reduce_bucket_size=BUCKET_SIZE)
    return job.build_engine(
        replace(config, zero=zero),
        groups_of(case.layout),
        device=torch.device("cpu"),
        world_size=case.layout.world_size,
    )


def both_ways(cases: list[Case]) -> list[tuple[bool, bool]]:
    """Train with and without overlap; whether all bits are equal, and reductions began early."""
    enable_cpu()
    answers = []
    for case in cases:
        found, early = [], 0
        for overlaps in (False, True):
            engine = engine_of(case, overlaps=overlaps)
            zero = engine.zero
            assert isinstance(zero, FlatAdamW)
            reduce = zero.reduce_gradients

            def reduce_the_rest(zero: FlatAdamW = zero, reduce=reduce) -> None:  # type: ignore[no-untyped-def]
                nonlocal early
                early = len(zero._reductions)
                reduce()

            zero.reduce_gradients = reduce_the_rest  # type: ignore[method-assign]
            losses, norms = run_steps(engine, case, range(3))
            found.append((losses, norms, whole_weights(engine)))
        (losses, norms, weights), other = found
        is_equal = other[:2] == (losses, norms) and all(
            np.array_equal(other[2][name], weights[name]) for name in weights
        )
        answers.append((is_equal, early > 1))
    return answers


@pytest.mark.parametrize(("world_size", "cases"), [(2, OVERLAPPED), (4, INTERLEAVED)])
def test_overlap_changes_no_bit(world_size: int, cases: list[Case]) -> None:
    for answers in run_ranks(both_ways, cases, world_size=world_size, timeout=300):
        assert dict(zip(map(str, cases), answers, strict=True)) == {
            str(case): (True, True) for case in cases
        }


def collectives_before_the_first_layer(case: Case) -> list[bool]:
    """Whether each collective between an update and the first layer is of the gathering group."""
    enable_cpu()
    engine = engine_of(case, overlaps=True)
    seen: list[bool] = []
    run_steps(engine, case, range(1))
    all_reduce, is_noted = dist.all_reduce, True

    def noted(tensor: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        if is_noted:
            seen.append(options.get("group") is engine.groups.data)
        return all_reduce(tensor, *arguments, **options)

    def end(*_: object) -> None:
        nonlocal is_noted
        is_noted = False

    engine.model.chunks[0].decoder.layers[0].register_forward_hook(end)
    dist.all_reduce = noted
    try:
        run_steps(engine, case, range(1, 2))
    finally:
        dist.all_reduce = all_reduce
    return seen


def test_nothing_waits_for_all_weights_before_the_first_layer() -> None:
    case = Case(dp=2, zero=1, micro_batch=8)

    for seen in run_ranks(collectives_before_the_first_layer, case, world_size=2):
        assert seen == [False]  # the step's number of targets


def test_a_parameter_in_no_block_is_refused() -> None:
    block, lonely = torch.nn.Linear(2, 2, bias=False), torch.nn.Parameter(torch.zeros(2))

    WeightGathers({block.weight: 0}, [block]).close()
    with pytest.raises(RuntimeError, match="no block waits for the weights of 1 parameters"):
        WeightGathers({block.weight: 0, lonely: 0}, [block])


def test_a_block_completes_all_buckets_of_its_weights_and_no_others() -> None:
    block = torch.nn.Linear(2, 2)
    gathers = WeightGathers({block.weight: 0, block.bias: 2}, [block])
    waited: list[int] = []
    for bucket in range(3):
        gathers.add(bucket, SimpleNamespace(wait=lambda bucket=bucket: waited.append(bucket)))

    block(torch.zeros(1, 2))
    assert waited == [0, 2]
    gathers.complete()
    assert waited == [0, 2, 1]


def test_a_gradient_that_arrives_too_late_is_an_error() -> None:
    listeners: list[Any] = []
    pieces = [SimpleNamespace(shard=name) for name in "ab"]
    buffers: Any = SimpleNamespace(
        buckets=[SimpleNamespace(is_late=late, pieces=pieces) for late in (False, True)],
        listen=lambda shard, listener: listeners.append(listener),
    )
    begun: list[int] = []
    arrivals = Arrivals(buffers, begun.append)
    arrivals.expect(2)

    assert len(listeners) == 2  # not of the late bucket
    for listener in listeners * 2:
        assert begun == []
        listener()
    assert begun == [0]
    with pytest.raises(RuntimeError, match="after the reduction of bucket 0 began"):
        listeners[0]()
    arrivals.finish()
    assert begun == [0, 1]


NORMS = [
    Case(tp=2, zero=0, micro_batch=8, sp=True, dtype="bf16"),
    Case(pp=2, zero=1, micro_batch=8, dtype="fp16"),
    *(Case(dp=2, zero=zero, micro_batch=8, dtype="bf16") for zero in (0, 1, 2, 3)),
    Case(dp=2, zero=1, micro_batch=8),
]


def squares_of(engine: TrainingEngine) -> dict[tuple[object, ...], float]:
    """Squares in fp64 of this rank's reduced gradients, before the update, by what they belong to.

    Ranks that hold the same elements give them the same key.
    """
    zero: Any = engine.zero
    if isinstance(zero, FlatAdamW):
        return {
            (own.shard.name, own.shard.offset, own.in_parameter): square(
                own.within(zero._parts[own.bucket].gradient)
            )
            for own in zero._ranges.values()
        }
    rank = dist.get_rank()
    return {
        (rank, group, number): square(gradient)
        for group, gradients in zero._inner.averaged_gradients.items()
        for number, gradient in enumerate(gradients)
    }


def square(gradient: torch.Tensor) -> float:
    """The sum of squares, by numpy."""
    return float(np.square(gradient.detach().double().numpy()).sum())


def norms_of(cases: list[Case]) -> list[tuple[float, float]]:
    """Norm of a step, and the norm in fp64 of the gradients that it was computed of."""
    enable_cpu()
    answers = []
    for case in cases:
        engine = build_engine(case)
        batches = micro_batches_of(rows_of_step(0), case, engine.groups.coordinates.data)
        task = [engine.task.batch(each, torch.device("cpu")) for each in batches]
        engine.forward_backward(task, loss_scales=[torch.tensor(0.01)] * len(task))
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, squares_of(engine))
        total = sum({key: value for each in gathered for key, value in each.items()}.values())
        divisor = engine.zero.loss_scale or 1.0
        if isinstance(engine.zero, FlatAdamW):
            divisor *= case.dp  # it sums over replicas; the update divides
        norm = engine.step(Rates.known(1e-3)).norm
        answers.append((float(norm), total**0.5 / divisor))
    return answers


def test_the_norm_is_that_of_the_same_gradients_in_fp64() -> None:
    for answers in run_ranks(norms_of, NORMS, world_size=2, timeout=300):
        for case, (norm, expected) in zip(NORMS, answers, strict=True):
            assert norm == pytest.approx(expected, rel=1e-6), case


class Waits(TorchDispatchMode):
    """Notes the operators after which the host waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operator."""
        name = str(func)
        if re.search(r"_local_scalar_dense|nonzero|masked_select|unique|equal", name):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


def waits_of_a_step(cases: list[Case]) -> list[list[str]]:
    """Operators of the update that wait for the device, without and with a judge."""
    enable_cpu()
    answers = []
    for case in cases:
        for accept in (None, lambda norm: bool(norm < 1e9)):
            engine = build_engine(case)
            batches = micro_batches_of(rows_of_step(0), case, engine.groups.coordinates.data)
            task = [engine.task.batch(each, torch.device("cpu")) for each in batches]
            engine.forward_backward(task, loss_scales=[torch.tensor(0.01)] * len(task))
            with Waits() as waits:
                engine.zero.step(Rates(1e-3, 2e-3), accept)
            answers.append(waits.seen)
    return answers


def test_an_update_does_not_wait_for_the_device() -> None:
    cases = [Case(micro_batch=16), Case(micro_batch=16, dtype="bf16", zero=1)]

    found = run_ranks(waits_of_a_step, cases, world_size=1)[0]

    assert [bool(waits) for waits in found] == [False, True, False, True]


def queued_steps(case: Case, first: str) -> tuple[list[bool], int, bool]:
    """Queue two steps before the first is settled, and compare with one after the other.

    The first is good, bad (a gradient is not finite) or refused.

    Returns whether the steps were skipped, the updates made, and whether all bits are equal.
    """
    enable_cpu()
    weights, skipped, updates = [], [], 0
    for waits in (True, False):
        engine = build_engine(case)
        steps = []
        for number, rates in enumerate([Rates.known(1e-3), Rates(3e-3, 7e-3)]):
            batches = micro_batches_of(rows_of_step(number), case, engine.groups.coordinates.data)
            task = [engine.task.batch(each, torch.device("cpu")) for each in batches]
            engine.forward_backward(task, loss_scales=[torch.tensor(0.01)] * len(task))
            if first == "bad" and number == 0:
                gradient = engine.zero.gradient(engine.shards[0].parameter)
                gradient.view(-1)[5] = torch.nan
            if waits and number == 1:
                steps[0].settle()
                rates = Rates.known(3e-3 if first == "good" else 7e-3)
            accept = (lambda norm: False) if first == "refused" and number == 0 else None
            steps.append(engine.zero.step(rates, accept))
        skipped = [step.settle().is_skipped for step in steps]
        updates = engine.zero.counters().updates
        weights.append(whole_weights(engine))
    is_equal = all(np.array_equal(weights[0][name], found) for name, found in weights[1].items())
    return skipped, updates, is_equal


@pytest.mark.parametrize("first", ["good", "bad", "refused"])
def test_the_rate_of_a_queued_step_depends_on_the_step_before(first: str) -> None:
    case = Case(micro_batch=16, dtype="bf16", zero=1)

    found = run_ranks(queued_steps, case, first, world_size=1)[0]

    is_dropped = first != "good"
    assert found == ([is_dropped, False], 1 if is_dropped else 2, True)


def plan(bucket_size: int, parts: int) -> list[tuple[list[str], int, int, bool, bool]]:
    """Names, start, size and flags of the buckets of a small model's parameters."""

    def shard(name: str, numel: int, *, decays: bool = True, is_trained: bool = True) -> Any:
        return SimpleNamespace(
            name=name, parameter=torch.empty(numel), decays=decays, is_trained=is_trained
        )

    shards = [
        shard("table", 300),
        shard("norm1", 10, decays=False),
        shard("weight1", 200),
        shard("frozen", 1000, is_trained=False),
        shard("norm2", 10, decays=False),
        shard("weight2", 200),
    ]
    return [
        ([piece.shard.name for piece in b.pieces], b.start, b.size, b.decays, b.is_late)
        for b in plan_buckets(
            shards, bucket_size=bucket_size, parts=parts, is_late=lambda s: s.name == "table"
        )
    ]


def test_buckets_follow_backward_and_end_with_the_late_ones() -> None:
    # 200 elements take 256 and 10 take 64, as both are aligned to 64; two parts of 64 make 128.
    assert plan(200, 2) == [
        (["weight2"], 0, 256, True, False),
        (["weight1"], 256, 256, True, False),
        (["norm2", "norm1"], 512, 128, False, False),
        (["table"], 640, 384, True, True),
    ]
    assert plan(201, 1) == [
        (["weight2", "weight1"], 0, 512, True, False),
        (["norm2", "norm1"], 512, 128, False, False),
        (["table"], 640, 320, True, True),
    ]
