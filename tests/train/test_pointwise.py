"""Training with fused operations against training with torch's own."""

import logging
import shutil
from dataclasses import replace

import pytest
import torch

from glm_dist.config.schema import CompileConfig, Fusing
from glm_dist.errors import ConfigError
from glm_dist.model.fused import FusedPointwise
from glm_dist.model.fusing import choose_pointwise, refuse_or_warn
from glm_dist.model.pointwise import use_pointwise
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.train import job
from tests.ranks import run_ranks
from tests.train.grid import (
    FEW_STEPS,
    Case,
    Trace,
    build_engine,
    groups_of,
    run_config,
    run_steps,
    train_cases,
    whole_weights,
)
from tests.train.test_layout_grid import differences

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
ALL_OF_130B = ("geglu", "rotary_2d", "shrink", "deep_norm")


def fused_traces(cases: list[Case], stance: str) -> list[Trace]:
    """Train each case with fused operations."""
    enable_cpu()
    traces = []
    for case in cases:
        engine = build_engine(case)
        use_pointwise(engine.model, FusedPointwise())
        with torch.compiler.set_stance(stance):
            losses, norms = run_steps(engine, case, range(FEW_STEPS))
        traces.append(Trace(losses, norms, whole_weights(engine)))
    return traces


def both_traces(cases: list[Case], stance: str) -> list[tuple[Trace, Trace]]:
    """Train each case in both ways."""
    plain = train_cases(cases, FEW_STEPS)
    return list(zip(fused_traces(cases, stance), plain, strict=True))


@pytest.mark.parametrize(
    "stance",
    [
        "force_eager",
        pytest.param("default", marks=[pytest.mark.slow, needs_compiler, pytest.mark.timeout(900)]),
    ],
)
def test_a_fused_run_equals_a_plain_one(stance: str) -> None:
    cases = [
        Case(tp=2, micro_batch=4),
        Case(tp=2, micro_batch=4, sp=True, zero=1, architecture=ALL_OF_130B),
        Case(pp=2, micro_batch=4, recompute="full"),
        Case(dp=2, zero=3, micro_batch=4),
        Case(tp=2, micro_batch=4, architecture=("lora",), trainable=("*.lora_a", "*.lora_b")),
    ]

    for fused, plain in run_ranks(both_traces, cases, stance, world_size=2)[0]:
        assert max(differences(fused, plain)) < 1e-5


@pytest.mark.parametrize("sp", [False, True], ids=["tp2", "tp2, sp"])
def test_fused_dropout_repeats_when_layers_are_recomputed(sp: bool) -> None:
    kept = Case(tp=2, zero=1, micro_batch=4, sp=sp, dropout=0.2)
    cases = [replace(kept, recompute=mode) for mode in ("none", "selective", "full")]

    # Replicated weights must agree on both ranks to the bit (``whole_weights``): outside of
    # sequence parallelism the ranks have drawn the same masks.
    none, *others = run_ranks(fused_traces, cases, "force_eager", world_size=2)[0]

    for other in others:
        assert max(differences(none, other)) < 1e-5
    (plain,) = run_ranks(train_cases, [replace(kept, dropout=0.0)], FEW_STEPS, world_size=2)[0]
    assert abs(none.losses[0] / plain.losses[0] - 1) > 1e-5, "nothing was dropped"


def choose_without_compiler(setting: Fusing) -> tuple[bool, str]:
    """What is chosen where nothing can be compiled, with a GPU's default; and the message."""
    enable_cpu()
    torch._inductor.config.cpp.cxx = ("/no/such/compiler",)
    torch._inductor.config.force_disable_caches = True
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("glm_dist.model.fusing").addHandler(handler)
    config = CompileConfig(pointwise=setting)
    try:
        chosen = choose_pointwise(config, device=torch.device("cpu"))
    except ConfigError as error:
        return False, str(error)
    return chosen.is_fused, "".join(messages)


def test_fusing_without_a_compiler_is_refused_before_training() -> None:
    ((is_fused, message),) = run_ranks(choose_without_compiler, Fusing.on, world_size=1)

    assert not is_fused
    assert message.startswith("compile.pointwise=on needs torch.compile, which does not work here:")
    assert message.endswith("Install g++, or set compile.pointwise=off.")
    # On CPUs auto does not even ask.
    assert run_ranks(choose_without_compiler, Fusing.auto, world_size=1) == [(False, "")]


def test_a_gpu_without_a_compiler_trains_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    refuse_or_warn(CompileConfig(), "ImportError: triton", device=torch.device("cuda"))

    assert caplog.messages == [
        "compile.pointwise=auto: torch.compile does not work here, so training is slower:"
        " ImportError: triton. Install triton and gcc, or set compile.pointwise=off to hide this"
        " warning."
    ]


def fuse_where_one_rank_cannot() -> bool:
    """Whether this rank fuses; the second one has no compiler."""
    enable_cpu()
    if torch.distributed.get_rank() == 1:
        torch._inductor.config.cpp.cxx = ("/no/such/compiler",)
        torch._inductor.config.force_disable_caches = True
    try:
        choose_pointwise(CompileConfig(pointwise=Fusing.on), device=torch.device("cpu"))
    except ConfigError:
        return False
    return True


@needs_compiler
def test_all_ranks_decide_alike() -> None:
    assert run_ranks(fuse_where_one_rank_cannot, world_size=2) == [False, False]


def fused_modules(compile_config: CompileConfig) -> dict[str, bool]:
    """Modules that choose between operations, by name: whether they are fused in a job."""
    enable_cpu()
    case = Case()
    engine = job.build_engine(
        replace(run_config(case), compile=compile_config),
        groups_of(case.layout),
        device=torch.device("cpu"),
        world_size=1,
    )
    (stage,) = engine.model.chunks
    return {
        name: module.pointwise.is_fused
        for name, module in stage.named_modules()
        if hasattr(module, "pointwise")
    }


@needs_compiler
def test_a_job_fuses_what_its_configuration_says() -> None:
    (found,) = run_ranks(fused_modules, CompileConfig(pointwise=Fusing.on), world_size=1)
    # Stage, embedding, final norm; layer, MLP and two norms in each of 4 layers.
    assert len(found) == 3 + 4 * 4
    assert all(found.values())

    both = CompileConfig(enabled=True, pointwise=Fusing.on)
    (found,) = run_ranks(fused_modules, both, world_size=1)
    assert {name for name, fused in found.items() if fused} == {
        "",
        "embedding",
        "decoder.final_layernorm",
    }
