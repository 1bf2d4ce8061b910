"""Partly frozen models, updates of low rank and prompts train alike in every layout."""

from functools import cache

import pytest

from glm_dist.config.trainable import trainable_names
from tests.ranks import run_ranks
from tests.train import plain
from tests.train.grid import (
    OPTIMIZER,
    STEPS,
    VOCAB_SIZE,
    Case,
    Trace,
    initial_weights,
    rows_of_case,
    run_config,
    train_cases,
)
from tests.train.test_layout_grid import TOLERANCE, differences

PARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "lora": {"architecture": ("lora", "geglu")},
    "prompt": {"architecture": ("prompt_lstm",), "trainable": ("*.prompt.*",)},
    "both": {"architecture": ("lora", "prompt_mlp", "deep_norm")},
    "prompt_and_all": {"architecture": ("prompt_none", "shrink")},
    "biases": {"trainable": ("*.bias",)},
    "last_layer": {"trainable": ("decoder.layers.3.*",)},
    "table": {"trainable": ("embedding.word_embeddings.*", "*.final_layernorm.*")},
}
"""Fields of Case: what is added to the model, and what learns."""

SLOW = pytest.mark.slow

LAYOUTS: list[tuple[str, Case]] = [
    ("lora", Case(tp=2, zero=0, micro_batch=8)),
    ("both", Case(tp=2, zero=1, micro_batch=8, sp=True, recompute="full")),
    ("biases", Case(tp=2, zero=3, micro_batch=8, sp=True)),
    ("prompt", Case(pp=2, zero=0, micro_batch=4)),
    ("both", Case(pp=2, zero=1, micro_batch=8, vp=2, recompute="full")),
    ("biases", Case(pp=2, zero=1, micro_batch=4)),
    ("lora", Case(dp=2, zero=1, micro_batch=8)),
    ("prompt", Case(dp=2, zero=2, micro_batch=8)),
    ("both", Case(dp=2, zero=3, micro_batch=8)),
]
MORE: dict[int, list[tuple[str, Case]]] = {
    2: [
        ("prompt", Case(tp=2, zero=1, micro_batch=4, sp=True)),
        ("prompt_and_all", Case(dp=2, zero=2, micro_batch=4)),
        ("lora", Case(pp=2, zero=0, micro_batch=4)),
        ("prompt", Case(pp=2, zero=1, micro_batch=4)),
        ("last_layer", Case(pp=2, zero=1, micro_batch=4)),
        ("last_layer", Case(pp=2, zero=1, micro_batch=4, vp=2)),
        ("table", Case(pp=2, zero=1, micro_batch=4)),
        ("both", Case(dp=2, zero=1, micro_batch=4)),
        ("lora", Case(dp=2, zero=2, micro_batch=4, offload=True)),
        ("last_layer", Case(dp=2, zero=3, micro_batch=4, recompute="full")),
    ],
    4: [
        ("both", Case(tp=2, pp=2, zero=1, micro_batch=4, sp=True, vp=2, recompute="full")),
        ("lora", Case(tp=4, zero=1, micro_batch=4, sp=True)),
        ("prompt", Case(tp=2, dp=2, zero=3, micro_batch=4, sp=True, recompute="full")),
        ("last_layer", Case(pp=2, dp=2, zero=0, micro_batch=4)),
        ("table", Case(pp=2, dp=2, zero=1, micro_batch=4)),
        ("biases", Case(tp=2, dp=2, zero=2, micro_batch=4, sp=True)),
    ],
}


def with_part(part: str, case: Case) -> Case:
    """The case of a layout with what is added and what learns."""
    return Case(**{**vars(case), **PARTS[part]})


@cache
def one_process(part: str) -> Trace:
    """One process, the whole batch in one micro-batch."""
    case = with_part(part, Case(micro_batch=16))
    (traces,) = run_ranks(train_cases, [case], world_size=1)
    return traces[0]


@pytest.mark.parametrize(
    "part",
    [
        pytest.param(part, marks=[] if part in ("lora", "prompt", "both", "biases") else SLOW)
        for part in PARTS
    ],
)
def test_one_process_trains_what_plain_torch_trains(part: str) -> None:
    case = with_part(part, Case(micro_batch=16))
    losses, norms, weights = plain.train(
        run_ranks(initial_weights, case, world_size=1)[0],
        [rows_of_case(step, case) for step in range(STEPS)],
        loss_of=lambda weights, rows: (
            plain.loss_sum(
                weights, rows, vocab_size=VOCAB_SIZE, options=frozenset(case.architecture)
            )
            / plain.num_targets(rows)
        ),
        learning_rate=OPTIMIZER.learning_rate,
        betas=(OPTIMIZER.beta1, OPTIMIZER.beta2),
        epsilon=OPTIMIZER.epsilon,
        weight_decay=OPTIMIZER.weight_decay,
        clip=OPTIMIZER.gradient_clipping,
        trainable=trainable_names(run_config(case)).__contains__,
    )

    found = differences(one_process(part), Trace(losses, norms, weights))

    assert max(found) <= TOLERANCE, found


def check_layouts(world_size: int, layouts: list[tuple[str, Case]]) -> None:
    """Train each part in its layout, and demand one process's numbers."""
    cases = [with_part(part, case) for part, case in layouts]
    traces = run_ranks(train_cases, cases, world_size=world_size, timeout=900)[0]
    wrong = []
    for (part, _), case, trace in zip(layouts, cases, traces, strict=True):
        found = differences(trace, one_process(part))
        if not max(found) <= TOLERANCE:
            wrong.append(f"{case}: {found}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.timeout(900)
def test_layouts_train_the_same_part_of_the_model() -> None:
    check_layouts(2, LAYOUTS)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("world_size", [2, 4])
def test_more_layouts_train_the_same_part_of_the_model(world_size: int) -> None:
    check_layouts(world_size, MORE[world_size])
