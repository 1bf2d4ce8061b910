"""Every fused operation against its definition in fp64; the tests of CPUs and GPUs share it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from glm_dist.model.fused import FusedPointwise
from glm_dist.model.pointwise import ONE_BY_ONE, Pointwise

Outputs = torch.Tensor | tuple[torch.Tensor, ...]
DTYPES = [torch.float32, torch.bfloat16]
ROUNDINGS = {torch.float32: 16, torch.bfloat16: 2, torch.float16: 2}
"""Allowed error in units of the format's rounding, of the largest number: 16-bit results are
rounded once; in fp32 sums over rows are what is rounded."""


@dataclass(frozen=True)
class Operation:
    """A call and the shapes of its arguments, in letters of the sizes."""

    call: Callable[..., Outputs]
    shapes: tuple[str, ...]
    """``x`` [s, b, f], ``w`` [s, b, 2 f], ``f`` [f], ``g`` [2 f]."""


def _add_and_norm(p: Pointwise, u, b, r, w, n, *, alpha: float, dropout: float = 0.0) -> Outputs:
    return p.add_and_norm(u, b, r, (w, n), eps=1e-5, alpha=alpha, dropout=dropout)


OPERATIONS: dict[str, Operation] = {
    "layer_norm": Operation(lambda p, x, w, b: p.layer_norm(x, w, b, eps=1e-5), ("x", "f", "f")),
    "gelu": Operation(lambda p, x, b: p.gelu(x, b), ("x", "f")),
    "geglu": Operation(lambda p, x, b: p.geglu(x, b), ("w", "g")),
    "add": Operation(lambda p, u, b, r: p.add(u, b, r, alpha=1.0, dropout=0.0), ("x", "f", "x")),
    "add, DeepNorm": Operation(
        lambda p, u, b, r: p.add(u, b, r, alpha=2.5, dropout=0.0), ("x", "f", "x")
    ),
    "add_and_norm": Operation(
        lambda *inputs: _add_and_norm(*inputs, alpha=1.0), ("x", "f", "x", "f", "f")
    ),
    "add_and_norm, DeepNorm": Operation(
        lambda *inputs: _add_and_norm(*inputs, alpha=2.5)[1], ("x", "f", "x", "f", "f")
    ),
    "sum_and_drop": Operation(
        lambda p, *parts: p.sum_and_drop(parts, dropout=0.0), ("x", "x", "x")
    ),
}


def inputs_of(
    operation: Operation,
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    sizes: tuple[int, int, int] = (5, 3, 24),
) -> list[torch.Tensor]:
    """Random arguments with gradients."""
    s, b, f = sizes
    shapes = {"x": (s, b, f), "w": (s, b, 2 * f), "f": (f,), "g": (2 * f,)}
    generator = torch.Generator().manual_seed(5)
    return [
        torch.randn(shapes[letter], generator=generator).to(device, dtype).requires_grad_()
        for letter in operation.shapes
    ]


def results(
    operation: Operation, pointwise: Pointwise, inputs: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Outputs, then gradients of the inputs for fixed gradients of the outputs."""
    found = operation.call(pointwise, *inputs)
    outputs = found if isinstance(found, tuple) else (found,)
    generator = torch.Generator().manual_seed(6)
    weights = [torch.randn(x.shape, generator=generator).bfloat16().to(x) for x in outputs]
    return [*outputs, *torch.autograd.grad(outputs, inputs, weights)]


def check_operation(name: str, dtype: torch.dtype, *, device: str = "cpu") -> None:
    """Compare the fused operation with its definition in fp64."""
    operation = OPERATIONS[name]
    inputs = inputs_of(operation, dtype, device=device)
    exact = [x.detach().double().requires_grad_() for x in inputs]

    found = results(operation, FusedPointwise(), inputs)
    expected = results(operation, ONE_BY_ONE, exact)

    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype is dtype
        atol = ROUNDINGS[dtype] * torch.finfo(dtype).eps * float(theirs.detach().abs().max())
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=atol)


def check_dropout(*, device: str = "cpu") -> torch.Tensor:
    """Compare mean, scale, repetition and gradient of dropout with what they must be.

    Returns:
        The update after dropout [64, 8, 96], of ones; a seed's mask is the same everywhere.
    """
    update = torch.ones(64, 8, 96, device=device, requires_grad=True)
    zero = torch.zeros(96, device=device)

    def dropped(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        pointwise = FusedPointwise()
        return pointwise.add(update, zero, torch.zeros_like(update), alpha=1.0, dropout=0.25)

    first, again, other = dropped(1), dropped(1), dropped(2)
    (gradient,) = torch.autograd.grad(first.sum(), update)
    assert torch.equal(first, again)
    assert torch.equal(gradient, first), "backward dropped other numbers"
    kept = first > 0
    torch.testing.assert_close(first[kept], torch.full_like(first[kept], 1 / 0.75))
    # 49 152 numbers, 4 standard deviations: 4 sqrt(0.25 0.75 / 49152) = 0.008
    assert abs(float(kept.float().mean()) - 0.75) < 0.008
    # Masks of two seeds, and neighbours in any dim, agree by chance: 0.75^2 + 0.25^2 = 0.625
    pairs = [(kept, other > 0), *((kept.narrow(d, 0, 7), kept.narrow(d, 1, 7)) for d in range(3))]
    for one, two in pairs:
        width = 4 * (0.625 * 0.375 / one.numel()) ** 0.5
        assert abs(float((one == two).float().mean()) - 0.625) < width
    return first.detach()
