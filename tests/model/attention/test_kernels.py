"""The attention kernels in Triton's interpreter, against dense fp64.

The interpreter multiplies bf16 as integers, so bf16 is tested on GPUs only; the kernels do not
mention the format.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no build for this machine")

from glm_dist.model.attention import kernels, kernels_backward, launch
from glm_dist.model.attention.blocks import INTERPRETED, Blocks, blocks_for, shared_bytes
from glm_dist.model.attention.dropout import DropoutWords
from glm_dist.model.attention.operator import fused_prefix_attention
from tests.model.attention.dropout_mask import kept
from tests.model.attention.kernel_cases import LAYER, KernelCase, random_case, whole_case, words_of

ROOT = Path(__file__).resolve().parents[3]
ALLOWED = {torch.float32: 1e-6, torch.float16: 1e-3}
"""Error of the output and of the whole gradient, relative to their norm."""
DTYPES = list(ALLOWED)
MEMORIES = (232448, 166912, 101376, 65536)
"""Shared memory of a block of threads: Hopper, A100, consumer Ampere, Turing."""


def worst(case: KernelCase) -> float:
    """Largest error of a case in units of what is allowed; NaN where nothing was written."""
    errors = case.errors(case.run())
    # The log-sum-exp is fp32 in every format, of inputs that are exact.
    errors["log_sum"] *= ALLOWED[case.query.dtype] / ALLOWED[torch.float32]
    return max(errors.values()) / ALLOWED[case.query.dtype]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels_equal_dense_fp64(dtype: torch.dtype, seed: int) -> None:
    assert worst(random_case(seed, dtype)) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(30, 230))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_more_cases_equal_dense_fp64(dtype: torch.dtype, seed: int) -> None:
    assert worst(random_case(seed, dtype, longest=150)) <= 1


def test_two_runs_agree_to_the_bit() -> None:
    case = whole_case()
    assert worst(case) <= 1

    first, second = case.run(), case.run()

    assert all(torch.equal(first[name], second[name]) for name in first)


FORWARD, BACKWARD = (Path(module.__file__).read_text() for module in (kernels, kernels_backward))
MUTATIONS = {
    "a query of Part A misses the last of it": (FORWARD, "prefix - 1), l", "prefix - 2), l"),
    "a query sees one key of the future": (FORWARD, "m(ii, prefix", "m(ii + 1, prefix"),
    "a tile of keys is left out": (FORWARD, "clear, stop, N", "clear, stop - N, N"),
    "the mask starts a tile late": (FORWARD, "first + 1), length", "first + M), length"),
    "the running sum does not shrink": (FORWARD, "total * shrink", "total"),
    "queries before a tile are left out": (BACKWARD, "first < prefix", "first + N < prefix"),
    "gradients of keys are not masked": (BACKWARD, "DROP, True", "DROP, False"),
    "dropout forgets delta": (BACKWARD, "delta * keep", "delta"),
    "gradients of queries miss a tile": (BACKWARD, "0, clear, N", "0, clear - N, N"),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_kernel_is_noticed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, right, wrong = MUTATIONS[name]
    assert right in source
    (tmp_path / "mutant.py").write_text(source.replace(right, wrong))
    spec = importlib.util.spec_from_file_location("mutant", tmp_path / "mutant.py")
    mutant = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(mutant)
    for kernel in ("forward_kernel", "prepare_kernel", "keys_kernel", "queries_kernel"):
        if hasattr(mutant, kernel):
            monkeypatch.setattr(launch, kernel, getattr(mutant, kernel))

    assert not worst(whole_case()) <= 1


@pytest.mark.parametrize("rate", [0.1, 0.25, 0.5])
def test_kernels_drop_what_the_words_say(rate: float) -> None:
    s, b, a = 50, 2, 2
    dropped = words_of(rate, b, s, "cpu")
    table = torch.tensor([[row, 0, s, s] for row in range(b)], dtype=torch.int32)
    zeros = torch.zeros(s, b, a, 64)
    values = torch.zeros(s, b, a, 64)
    values[:, :, :, :s] = torch.eye(s)[:, None, None]

    # Equal scores: a kept weight is 1 / (s (1 - rate)), and value j is the j-th unit vector.
    out, _ = launch.attend(zeros, zeros, values, table, dropped)

    stay = kept(dropped.seed, dropped.keys, rate=rate, layer=LAYER, heads=range(3, 5))
    expected = stay.permute(2, 0, 1, 3) / (s * (1 - rate))
    torch.testing.assert_close(out[..., :s].double(), expected.double(), rtol=1e-6, atol=0)


def operator_arguments() -> tuple[object, ...]:
    """A projection of which a gradient is asked for, segments and words."""
    torch.manual_seed(0)
    mixed = torch.randn(20, 2, 2, 3 * 16, requires_grad=True)
    table = torch.tensor([[0, 0, 20, 7], [1, 0, 12, 3], [1, 12, 8, 0]], dtype=torch.int32)
    words = words_of(0.2, 2, 20, "cpu")
    return mixed, table, words.seed, words.keys, words.origin, 0.2


def test_the_operator_keeps_the_rules_of_torch() -> None:
    torch.library.opcheck(torch.ops.glm_dist.prefix_attention.default, operator_arguments())


def test_compiled_code_has_no_break_and_the_same_gradient() -> None:
    mixed, table, seed, keys, origin, rate = operator_arguments()

    def attention(mixed: torch.Tensor, table: torch.Tensor, origin: torch.Tensor) -> torch.Tensor:
        words = DropoutWords(seed, keys)
        return fused_prefix_attention(2 * mixed, table, rate=rate, words=words, origin=origin)

    compiled = torch.compile(attention, fullgraph=True, backend="aot_eager")
    found, expected = (
        (out, *torch.autograd.grad(out.square().sum(), mixed))
        for out in (f(mixed, table, origin) for f in (compiled, attention))
    )

    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_tiles_shrink_until_they_fit_the_shared_memory() -> None:
    for kernel in ("forward", "keys", "queries"):
        for head_size in (32, 64, 80, 96, 128, 160, 256):
            for itemsize in (2, 4):
                for memory in MEMORIES:
                    size = {"head_size": head_size, "itemsize": itemsize}
                    blocks = blocks_for(kernel, **size, shared_memory=memory)
                    assert max(blocks.queries, blocks.keys) * launch.FARTHEST <= 2**31
                    assert shared_bytes(kernel, blocks, **size) <= max(
                        memory, shared_bytes(kernel, Blocks(16, 16, 4, 1), **size)
                    )

    assert blocks_for("forward", head_size=64, itemsize=2, shared_memory=232448).stages == 3


def test_rows_of_the_cases_have_several_tiles() -> None:
    assert max(random_case(seed, torch.float32).query.size(0) for seed in range(30)) > 2 * max(
        INTERPRETED.queries, INTERPRETED.keys
    )


def test_the_package_works_without_triton() -> None:
    program = (
        "import sys; sys.modules['triton'] = None\n"
        "from glm_dist.model.attention import dispatch, operator\n"
        "import torch\n"
        "assert not operator.HAVE_TRITON\n"
        "gpu = torch.device('cuda')\n"
        "assert dispatch.uses_mask(gpu, torch.bfloat16, dropout=0.0, head_size=64)\n"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=ROOT, capture_output=True, text=True
    )

    assert run.returncode == 0, run.stderr[-2000:]
