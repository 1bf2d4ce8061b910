"""The compiled attention kernels on a GPU: against dense fp64, at real sizes, and in graphs."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no build for this machine")

from glm_dist.data.rows import Segment
from glm_dist.model.attention.dropout import DropoutWords
from glm_dist.model.attention.launch import attend
from glm_dist.model.attention.operator import fused_prefix_attention, has_kernels
from tests.gpu.device import DEVICE
from tests.model.attention.dropout_mask import kept
from tests.model.attention.kernel_cases import (
    HEAD_SIZES,
    LAYER,
    KernelCase,
    random_case,
    random_tensors,
    words_of,
)

ALLOWED = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
"""Error of the output and of the whole gradient, relative to their norm: some roundings of the
format; fp32 products are not rounded to TF32."""
DTYPES = list(ALLOWED)


def worst(case: KernelCase) -> float:
    """Largest error of a case in units of what is allowed; NaN where nothing was written."""
    errors = case.errors(case.run())
    errors["log_sum"] *= ALLOWED[case.query.dtype] / ALLOWED[torch.float32]
    return max(errors.values()) / ALLOWED[case.query.dtype]


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("head_size", [*HEAD_SIZES, 160])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_kernels_equal_dense_fp64(dtype: torch.dtype, head_size: int, seed: int) -> None:
    case = random_case(seed, dtype, device=DEVICE, longest=400, head_size=head_size)

    assert worst(case) <= 1


@pytest.mark.parametrize("rate", [0.0, 0.1])
@pytest.mark.parametrize(("s", "d"), [(1024, 64), (2048, 128)], ids=["2B", "130B"])
def test_long_rows_equal_dense_fp64(s: int, d: int, rate: float) -> None:
    torch.manual_seed(0)
    rows = [
        [Segment(s, int(0.82 * s))],
        [Segment(s - 300, 100), Segment(171, 171), Segment(129, 0)],
    ]
    tensors = random_tensors(0, (s, 2, 2, d), torch.bfloat16, DEVICE)
    grad = torch.randn(s, 2, 2, d, device=DEVICE).bfloat16()
    dropped = words_of(rate, 2, s, DEVICE) if rate else None

    assert worst(KernelCase(rows, *tensors, grad, dropped)) <= 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_runs_agree_to_the_bit(dtype: torch.dtype) -> None:
    case = random_case(4, dtype, device=DEVICE, longest=400)

    first, second = case.run(), case.run()

    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("rate", [0.1, 0.5])
def test_kernels_drop_what_the_words_say(rate: float) -> None:
    s, b, a = 256, 2, 2
    dropped = words_of(rate, b, s, DEVICE)
    table = torch.tensor([[row, 0, s, s] for row in range(b)], dtype=torch.int32, device=DEVICE)
    zeros = torch.zeros(s, b, a, 256, device=DEVICE)
    values = torch.eye(s, device=DEVICE)[:, None, None].expand(s, b, a, s)

    # Equal scores: a kept weight is 1 / (s (1 - rate)), and value j is the j-th unit vector.
    out, _ = attend(zeros, zeros, values, table, dropped)

    stay = kept(dropped.seed, dropped.keys, rate=rate, layer=LAYER, heads=range(3, 5))
    assert torch.equal(out.cpu() > 0, stay.permute(2, 0, 1, 3))


def projection() -> tuple[torch.Tensor, torch.Tensor]:
    """A projection [s, b, a, 3 d] of which a gradient is asked for, and its segments."""
    torch.manual_seed(0)
    mixed = torch.randn(200, 2, 2, 3 * 64, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    table = [[0, 0, 200, 70], [1, 0, 120, 30], [1, 120, 80, 0]]
    return mixed, torch.tensor(table, dtype=torch.int32, device=DEVICE)


def test_the_operator_keeps_the_rules_of_torch() -> None:
    mixed, table = projection()
    words = words_of(0.2, 2, 200, DEVICE)
    arguments = (mixed, table, words.seed, words.keys, words.origin, 0.2)

    torch.library.opcheck(torch.ops.glm_dist.prefix_attention.default, arguments)


def test_compiled_code_has_no_break_and_compiles_once() -> None:
    mixed, table = projection()
    words = words_of(0.1, 2, 200, DEVICE)
    given = {"rate": 0.1, "words": DropoutWords(words.seed, words.keys)}

    def attention(mixed: torch.Tensor, table: torch.Tensor, origin: torch.Tensor) -> torch.Tensor:
        return fused_prefix_attention(2 * mixed, table, origin=origin, **given)

    compiled = torch.compile(attention, fullgraph=True)
    for layer in range(3):
        origin = torch.tensor([layer, 0], dtype=torch.int32, device=DEVICE)
        with torch.compiler.set_stance("fail_on_recompile" if layer else "default"):
            found, expected = (
                (out, *torch.autograd.grad(out.square().sum(), mixed))
                for out in (f(mixed, table, origin) for f in (compiled, attention))
            )
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_this_gpu_has_the_kernels() -> None:
    device = torch.device(DEVICE)
    is_new = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)

    assert has_kernels(device, torch.bfloat16, head_size=64) is is_new
