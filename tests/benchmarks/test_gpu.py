"""The GPU benchmark: what it counts, and that it survives its contestants."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.ceilings import ceilings
from benchmarks.gpu.child import WARM_UP, configure, measure
from benchmarks.gpu.contestants import (
    ATTENTION,
    GPT_FLASH,
    GPT_OWN,
    MACHINE,
    MICRO_BATCHES,
    OPTIONS,
    STANDARD,
    Contestant,
    Job,
    Problem,
    chosen,
    dry_jobs,
    jobs,
)
from benchmarks.gpu.device_time import Kernel, busy, by_kind, device_figures, kind_of, longest
from benchmarks.gpu.processes import LEAST, NOT_RUN, Budget, results
from benchmarks.gpu.table import GpuReport, disagreements, markdown, short_table
from benchmarks.problems import model_config
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.groups import build_groups
from glm_dist.parallel.layout import Layout
from tests.ranks import run_ranks
from tests.train.jobs import ROOT, clean_environment

TOY = Problem("tiny", 64)


def test_busy_time_is_the_union_of_the_intervals() -> None:
    kernels = [
        Kernel("gemm", 0, 10),
        Kernel("memcpy", 5, 12),  # on another stream, 7 of it beside the product
        Kernel("gelu", 6, 8),  # inside
        Kernel("nccl", 20, 30),
    ]

    assert busy(reversed(kernels)) == 12 + 10
    assert busy([]) == 0


def test_idle_is_what_a_step_takes_beyond_its_kernels() -> None:
    kernels = [Kernel("gemm", 0, 6_000_000), Kernel("elementwise", 8_000_000, 10_000_000)]

    figures = device_figures(kernels, step_ms=10.5, layers=2, micro_batches=4)

    assert figures["GPU busy, ms"] == 8.0
    assert figures["GPU idle, ms"] == 2.5
    assert figures["launches"] == 2
    assert figures["launches per micro-batch and layer"] == 0.25
    assert (figures["products, ms"], figures["pointwise, ms"]) == (6.0, 2.0)
    assert device_figures(kernels, step_ms=7, layers=2, micro_batches=4)["GPU idle, ms"] == 0


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT", "products"),
        ("void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16>", "products"),
        ("void cublasLt::splitKreduce_kernel<32, 16, int, __nv_bfloat16>", "products"),
        ("void pytorch_flash::flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel<...>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_fprop_wgmma_f16_knob_6", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80(PyTorchMemEffAttention...)", "attention"),
        ("void at::native::vectorized_elementwise_kernel<4, CUDAFunctor_add<float>>", "pointwise"),
        ("void at::native::vectorized_layer_norm_kernel<c10::BFloat16, float>", "pointwise"),
        ("triton_poi_fused_add_gelu_native_dropout_0", "pointwise"),
        ("triton_red_fused__to_copy_addmm_native_layer_norm_backward_3", "pointwise"),
        ("triton_tem_fused_mm_7", "products"),
        ("void at::native::elementwise_kernel<128, 4, direct_copy_kernel_cuda>", "copies"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<float>>", "optimizer"),
        ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL", "communication"),
        ("something_of_the_driver", "other"),
    ],
)
def test_kernels_are_sorted_by_their_names(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_our_attention_kernels_are_known_by_their_names() -> None:
    kernels = pytest.importorskip("glm_dist.model.attention.launch", reason="needs triton")

    named = [name for name in dir(kernels) if name.endswith("_kernel")]
    assert len(named) == 4
    assert {kind_of(name) for name in named} == {"attention"}


def test_kernels_add_up_by_kind_and_name() -> None:
    kernels = [Kernel("gemm_a", 0, 4), Kernel("gemm_b", 4, 5), Kernel("gemm_a", 9, 12)]

    assert by_kind(kernels)["products"] == 8
    assert [(each["name"], each["launches"]) for each in longest(kernels, 1)] == [("gemm_a", 2)]


def scripted(job: Job, file: Path) -> list[str]:
    """A process that does what its contestant's name says."""
    lines = {
        "measured": "say({'ms a step': 2.0, 'GPU busy, ms': 1.0})",
        "crashes": "print('it broke'); sys.exit(3)",
        "crashes in the profiler": "say({'ms a step': 3.0}); sys.exit(1)",
        "has no memory": "say({'ms a step': 'out of memory'}); sys.exit('out of memory: 99 GiB')",
        "hangs": "say({'loss of step 3': 7.5}); time.sleep(60)",
    }
    head = (
        "import json, sys, time\n"
        "def say(x): open(sys.argv[1], 'a').write(json.dumps(x) + '\\n')\n"
        "sys.stdin.readline()\n"
    )
    return [sys.executable, "-c", head + lines[job.contestant.name], str(file)]


@pytest.mark.parametrize("ahead", [False, True])
def test_a_contestant_that_fails_leaves_a_row_and_the_others_go_on(
    tmp_path: Path, ahead: bool
) -> None:
    names = ["crashes", "crashes in the profiler", "has no memory", "hangs", "measured"]
    listed = [Job(TOY, Contestant(name)) for name in names]

    found = results(
        listed, Budget(600), limit=2, log=tmp_path / "log", command=scripted, ahead=ahead
    )

    assert [(job.contestant.name, figures) for job, figures in found] == [
        ("crashes", {"note": "failed: it broke"}),
        ("crashes in the profiler", {"ms a step": 3.0, "note": "measured, not profiled"}),
        ("has no memory", {"ms a step": "out of memory"}),
        ("hangs", {"loss of step 3": 7.5, "note": "stopped after 2 s"}),
        ("measured", {"ms a step": 2.0, "GPU busy, ms": 1.0}),
    ]
    assert "it broke" in (tmp_path / "log").read_text()


def test_the_budget_ends_the_benchmark(tmp_path: Path) -> None:
    clock = iter([0.0, 0.0, 0.0, 100.0, 100.0])  # the first process takes all but LEAST
    budget = Budget(100 + LEAST / 2, clock=lambda: next(clock))
    listed = [Job(TOY, Contestant("measured"))] * 3

    found = results(listed, budget, limit=50, log=tmp_path / "log", command=scripted)

    notes = [figures.get("note") for _, figures in found]
    assert notes == [None, NOT_RUN, NOT_RUN]


def test_the_largest_model_comes_first_and_arguments_choose() -> None:
    listed = jobs(has_te=False, steps=5)

    assert [str(job) for job in listed[:4]] == [
        "ceilings of the machine (2b, 1024, dropout 0)",
        "GLM, ZeRO 1 (2b, 1024, dropout 0)",
        "GPTModel, flash attention (2b, 1024, dropout 0)",
        "GLM, ZeRO 1 (2b, 1024, dropout 0.1)",
    ]
    assert len({str(job) for job in listed}) == len(listed)
    kinds = [job.contestant.kind for job in listed]
    assert kinds.index(ATTENTION) < [job.problem.size for job in listed].index("large")
    kept = chosen(listed, sizes=["large"], dropout=0.1, only="GLM", attention=False)
    assert [str(job) for job in kept] == ["GLM, ZeRO 1 (large, 512, dropout 0.1)"]
    assert [Job.from_json(json.loads(json.dumps(job.as_json()))) for job in listed] == listed


def test_every_contestant_and_size_can_be_configured() -> None:
    listed = jobs(has_te=True, steps=5)
    contestants = {job.contestant for job in listed}
    problems = {replace(job.problem, dropout=0.0) for job in listed}

    for each in contestants:
        configure(Job(TOY, each))
    for each in problems:
        config = configure(Job(each, STANDARD))
        assert config.num_micro_batches(1) == MICRO_BATCHES
        assert config.precision.dtype.name == "bf16"


def test_contestants_of_equal_mathematics_must_agree() -> None:
    def row(what: str, loss: float, norm: float, dropout: float = 0.0) -> dict[str, object]:
        problem = {"size": "2b", "positions": 1024, "dropout": dropout}
        kind = {"what": what, "mathematics": "GLM"}
        return {**problem, **kind, "loss of step 3": loss, "norm of step 3": norm}

    rows = [row("a", 7.0, 2.0), row("b", 7.004, 2.01), row("c", 7.02, 2.0), row("d", 7.0, 1.0)]
    rows += [row("e", 9.0, 9.0, dropout=0.1), row("f", 7.0, float("nan"))]

    assert disagreements(rows) == [
        "2b, 1024: loss of step 3 of c is 7.02, of a 7.",
        "2b, 1024: norm of step 3 of d is 1, of a 2.",
        "2b, 1024: norm of step 3 of f is nan, of a 2.",
    ]


def test_tables_show_what_there_is() -> None:
    problem = {"size": "2b", "positions": 1024, "dropout": 0.0}
    rows = [
        problem | {"what": "GLM", "ms a step": 800.0, "useful MFU": 0.5, "kept": 1},
        problem | {"what": "GPTModel", "note": "failed: it broke"},
        problem | {"what": "ceilings", "copy, GB/s": 4300.0},
    ]

    assert short_table(rows).splitlines() == [
        "| size | positions | dropout | what | ms a step | useful MFU |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 2b | 1024 | 0 | GLM | 800 | 0.5 |",
    ]
    assert "| 2b | 1024 | 0 | GPTModel |  |  | failed: it broke |" in markdown(
        rows, ("ms a step", "useful MFU", "note")
    )
    rows.append(problem | {"what": "GLM, ZeRO 2", "note": NOT_RUN})
    shown = GpuReport("gpu", "title", {}, rows).markdown()
    assert "| 4300 |" in shown
    assert "Not run, as time was out: GLM, ZeRO 2 (2b, 0)." in shown
    assert NOT_RUN not in shown


def measured(contestants: list[Contestant]) -> list[dict[str, object]]:
    """Figures of contestants on a toy, as their own processes report them."""
    enable_cpu()
    groups = build_groups(Layout(), timedelta(minutes=5))
    found = []
    for contestant in contestants:
        figures: dict[str, object] = {}
        measure(Job(TOY, contestant, steps=1), groups, figures.update)
        found.append(figures)
    return found


def test_contestants_train_and_agree_on_a_cpu() -> None:
    other_stage = replace(GPT_OWN, overrides=("zero=stage2",))  # another way to the same sums
    contestants = [STANDARD, OPTIONS[-1], GPT_FLASH, other_stage]
    glm, recomputed, flash, own = run_ranks(measured, contestants, world_size=1)[0]

    loss, norm = f"loss of step {WARM_UP}", f"norm of step {WARM_UP}"
    for one, other in ((glm, recomputed), (flash, own)):
        assert one[loss] == pytest.approx(other[loss], rel=1e-3)
        assert one[norm] == pytest.approx(other[norm], rel=2e-2)
    for figures in (glm, flash):
        assert figures["ms a step"] >= figures["fastest"] > 0
        assert figures["tokens/s"] > 0
        assert figures["useful TFLOP/s"] > 0
        assert figures["GPU busy, ms"] > 0
        assert figures["products, ms"] > 0
        assert figures["kernels"]


def test_ceilings_are_measured_on_a_toy() -> None:
    model = model_config("tiny", positions=64, dropout=0.0)

    found = ceilings(model, tokens=128, micro_batches=4, device=torch.device("cpu"))

    assert found["at m x n x k"] == "64 x 64 x 64"
    assert min(value for value in found.values() if not isinstance(value, str)) > 0
    # ms = operations / rate; a layer of width h has 12 h^2 weights, and three passes of 2 each
    operations = 3 * 2 * 12 * model.hidden_size**2 * 128 * model.num_layers * 4
    assert found["layer products of a step, ms"] == pytest.approx(
        operations / found["layer products, TFLOP/s"] / 1e9
    )


@pytest.mark.slow
def test_the_benchmark_runs_dry(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry-run", "--output", str(tmp_path)]

    run = subprocess.run(
        command, cwd=ROOT, env=clean_environment(), capture_output=True, text=True, timeout=300
    )

    assert run.returncode == 0, run.stderr[-3000:]
    record = json.loads((tmp_path / "gpu_dry_run.json").read_text())
    assert [row["what"] for row in record["rows"]] == [
        each.name for each in (MACHINE, STANDARD, GPT_FLASH)
    ]
    assert not [row for row in record["rows"] if "note" in row]
    assert record["command"].startswith("python -m benchmarks.gpu --dry-run")
    assert "load_at_start" in record["machine"]
    assert len(json.loads((tmp_path / "gpu_dry_run_kernels.json").read_text())) == 2
    table = [sys.executable, "-m", "benchmarks.gpu", "--table", str(tmp_path / "gpu_dry_run.json")]
    shown = subprocess.run(table, cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.count("\n| tiny |") == len(dry_jobs()) - 1
