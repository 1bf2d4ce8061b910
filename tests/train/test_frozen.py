"""Frozen parameters keep every bit, cost no optimizer memory, and are saved and restored."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from glm_dist.checkpoint.load import find_checkpoint
from glm_dist.config.trainable import trainable_names
from glm_dist.train.state import restore_state, save_state
from tests.optim.test_zero import living_tensors
from tests.ranks import run_ranks
from tests.train.grid import Case, Trace, build_engine, run_config, run_steps, whole_weights
from tests.train.test_resume import assert_equal_bits

PROMPT = {"architecture": ("prompt_mlp",), "trainable": ("*.prompt.*",)}
LORA = {"architecture": ("lora",)}
LAST = {"trainable": ("*layers.3.*",)}
PLAIN = [Case(dp=2, zero=zero, micro_batch=8, **LORA) for zero in (0, 1, 2, 3)]
CASES = [
    PLAIN[1],
    PLAIN[3],
    Case(dp=2, zero=3, micro_batch=8, offload=True, dtype="bf16", **PROMPT),
    Case(tp=2, zero=1, micro_batch=8, dtype="bf16", **PROMPT),
    Case(pp=2, zero=0, micro_batch=8, **LORA),
    Case(pp=2, zero=1, micro_batch=8, dtype="bf16", **LAST),
    Case(pp=2, zero=1, micro_batch=8, dtype="fp16", **PROMPT),
    Case(dp=2, zero=2, micro_batch=8, dtype="fp16", offload=True, **LORA),
]
STOP, END = 2, 3
PADDING = 64
"""Elements that may be added to each parameter in a rank's shards."""


@dataclass(frozen=True)
class Result:
    """A case's run with a restart in the middle."""

    before: dict[str, np.ndarray]
    updated: tuple[int, int]
    """Elements of this rank's parameters that learn, and of its shards of master weights."""
    trace: Trace
    resumed: Trace
    saved: dict[str, str]
    """Names and dtypes of the tensors in the checkpoint."""


def stop_and_resume(cases: list[Case], folder: Path) -> list[Result]:
    """Train to STOP, save and go on to END; then from the checkpoint to END in a new engine."""
    results = []
    for case in cases:
        engine = build_engine(case)
        before = whole_weights(engine)
        learns = trainable_names(run_config(case))
        shapes = [math.prod(s.local_shape) for s in engine.shards if s.name in learns]
        run_steps(engine, case, range(STOP))
        own = folder / str(case).replace(" ", "_")
        save_state(engine, own, step=STOP, extra={}, keep_last=1)
        trace = Trace(*run_steps(engine, case, range(STOP, END)), whole_weights(engine))
        updated = sum(shapes), sum(master.numel() for master in engine.zero._masters())
        assert all(s.parameter.grad is None for s in engine.shards if not s.is_trained)
        info = find_checkpoint(own)
        assert info is not None
        again = build_engine(case)
        for shard in again.shards:
            if not shard.is_trained:  # the seed's values are those that were saved
                getattr(shard.parameter, "ds_tensor", shard.parameter).data.fill_(7.0)
        assert restore_state(again, info) == STOP
        resumed = Trace(*run_steps(again, case, range(STOP, END)), whole_weights(again))
        saved = {name: record.dtype for name, record in info.manifest.tensors.items()}
        results.append(Result(before, updated, trace, resumed, saved))
    return results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Result]:
    """Results of rank 0, by case."""
    folder = tmp_path_factory.mktemp("checkpoints")
    first: list[Result] = run_ranks(stop_and_resume, CASES, folder, world_size=2)[0]
    return first


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: str(CASES[number]))
def test_frozen_parameters_keep_every_bit(results: list[Result], number: int) -> None:
    result = results[number]
    changed = {
        name
        for name, weights in result.trace.weights.items()
        if not np.array_equal(weights, result.before[name])
    }

    assert changed == trainable_names(run_config(CASES[number]))


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: str(CASES[number]))
def test_a_partly_frozen_run_resumes_with_the_same_bits(results: list[Result], number: int) -> None:
    result = results[number]

    assert_equal_bits(result.resumed, result.trace, str(CASES[number]))


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: str(CASES[number]))
def test_only_what_learns_has_optimizer_state(results: list[Result], number: int) -> None:
    case, result = CASES[number], results[number]
    elements, masters = result.updated
    padding = PADDING * len(trainable_names(run_config(case)))
    replicas = 1 if case.zero == 0 else case.dp
    moments = {n.partition(".")[2] for n in result.saved if not n.startswith("model.")}
    learns = trainable_names(run_config(case))
    own = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}[case.dtype]

    assert elements / replicas <= masters <= elements / replicas + padding
    assert moments == learns
    for name in result.before:
        dtype = "float32" if name in learns else own
        assert result.saved[f"model.{name}"].endswith(dtype), name


def held_bytes(cases: list[Case]) -> list[tuple[int, int]]:
    """Bytes of an engine after two steps without its parameters, and the elements that learn."""
    run_steps(build_engine(cases[0]), cases[0], range(1))  # first use makes things that stay
    answers = []
    for case in cases:
        before = living_tensors()
        engine = build_engine(case)
        run_steps(engine, case, range(2))
        parameters = sum(shard.parameter.numel() for shard in engine.shards)
        trained = sum(shard.parameter.numel() for shard in engine.shards if shard.is_trained)
        answers.append((living_tensors() - before - 4 * parameters, trained))
        engine.close()
        del engine
    return answers


def test_frozen_parameters_cost_only_their_own_memory() -> None:
    # fp32: two moments; with ZeRO 1 and 2, half of them on each of two ranks. With ZeRO 0 and 1
    # also the sums of gradients, with ZeRO 2 half of the master weights. The frozen weights alone
    # would be 4 x 61 184 bytes for each.
    for (held, trained), case in zip(
        run_ranks(held_bytes, PLAIN[:3], world_size=2)[0], PLAIN[:3], strict=True
    ):
        assert held <= {0: 12, 1: 8, 2: 6}[case.zero] * trained + 1_000, case
