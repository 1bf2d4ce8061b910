"""Random problems for the attention kernels, and their exact solution."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from glm_dist.data.rows import Segment
from glm_dist.model.attention.launch import Dropped, attend, attend_backward
from glm_dist.model.attention.plan import plan_attention
from tests.model.attention.dropout_mask import kept
from tests.model.attention.test_dispatch import random_row, with_padding
from tests.model.masks import dense_mask

HEAD_SIZES = (32, 64, 80, 96, 128, 256)
LAYER, FIRST_HEAD = 5, 3


@dataclass
class KernelCase:
    """One problem; tensors [s, b, a, d]."""

    rows: list[list[Segment]]
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    grad: torch.Tensor
    dropped: Dropped | None
    results: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def table(self) -> torch.Tensor:
        plan = plan_attention(
            [0] * len(self.rows), row_length=self.query.size(0), segments=self.rows
        )
        return plan.table.to(self.query.device)

    def run(self, **blocks: object) -> dict[str, torch.Tensor]:
        """Output, log-sum-exp and gradients; every number is written by the kernels."""
        inputs = (self.query, self.key, self.value)
        forward = {"blocks": blocks["forward"]} if "forward" in blocks else {}
        out, log_sum = attend(*inputs, self.table, self.dropped, **forward)
        fused = torch.full_like(out, torch.nan).repeat(1, 1, 1, 3)
        grads = fused.chunk(3, dim=3)
        attend_backward(self.grad, *inputs, out, log_sum, self.table, grads, self.dropped)
        return {"out": out, "log_sum": log_sum, "grad": fused}

    def solve(self) -> dict[str, torch.Tensor]:
        """The same in fp64 from the dense mask and the written-down dropout mask."""
        parts = [x.detach().double().requires_grad_() for x in (self.query, self.key, self.value)]
        query, key, value = (x.permute(1, 2, 0, 3) for x in parts)
        scores = query @ key.transpose(2, 3) / query.size(3) ** 0.5
        mask = dense_mask(self.rows, scores.size(3)).to(scores.device)
        scores = scores.masked_fill(~mask[:, None], float("-inf"))
        weights = scores.softmax(dim=3)
        if self.dropped is not None:
            heads = range(FIRST_HEAD, FIRST_HEAD + scores.size(1))
            rate = self.dropped.rate
            stay = kept(self.dropped.seed, self.dropped.keys, rate=rate, layer=LAYER, heads=heads)
            weights = weights * stay.to(scores.device) / (1 - rate)
        out = (weights @ value).permute(2, 0, 1, 3)
        grads = torch.autograd.grad(out, parts, self.grad.double())
        log_sum = scores.logsumexp(dim=3) / np.log(2)
        return {"out": out.detach(), "log_sum": log_sum.detach(), "grad": torch.cat(grads, dim=3)}

    def errors(self, found: dict[str, torch.Tensor]) -> dict[str, float]:
        """Errors relative to the norm of the exact result.

        A query with one key has no gradient at all; its error is relative to the incoming one.
        """
        exact, incoming = self.solve(), self.grad.double().norm()
        return {
            name: float((found[name].double() - value).norm() / (value.norm() or incoming))
            for name, value in exact.items()
        }


def words_of(rate: float, rows: int, row_length: int, device: str) -> Dropped:
    """Dropout with words that look random."""
    words = torch.randint(-(2**31), 2**31, (rows * row_length + 2,)).int()
    return Dropped(
        rate,
        seed=words[-2:].to(device),
        keys=(words[:-2] | 1).view(rows, row_length).to(device),
        origin=torch.tensor([LAYER, FIRST_HEAD], dtype=torch.int32, device=device),
    )


def random_tensors(
    kind: int, shape: tuple[int, int, int, int], dtype: torch.dtype, device: str
) -> Sequence[torch.Tensor]:
    """Query, key and value [s, b, a, d]: views of one projection, of parts of it, or by heads."""
    s, b, a, d = shape
    if kind == 0:
        return torch.randn(s, b, a, 3 * d, device=device).to(dtype).chunk(3, dim=3)
    if kind == 1:
        larger = torch.randn(s + 2, b + 1, a + 1, 3 * d + 8, device=device).to(dtype)
        return larger[1:-1, 1:, :-1, : 3 * d].chunk(3, dim=3)
    by_heads = torch.randn(3, b, a, s, d, device=device).to(dtype)
    return by_heads.permute(0, 3, 1, 2, 4).unbind(0)


def random_case(
    seed: int,
    dtype: torch.dtype,
    *,
    device: str = "cpu",
    longest: int = 72,
    head_size: int | None = None,
) -> KernelCase:
    """Prefixes from nothing to all, packed rows, padding, strided tensors, dropout."""
    rng = np.random.default_rng(seed)
    s, b, a = int(rng.integers(1, longest + 1)), int(rng.integers(1, 3)), int(rng.integers(1, 3))
    d = head_size or HEAD_SIZES[seed % len(HEAD_SIZES)]
    torch.manual_seed(seed)
    rows = with_padding([random_row(rng, s) for _ in range(b)], s)
    query, key, value = random_tensors(int(rng.integers(3)), (s, b, a, d), dtype, device)
    grad = torch.randn(a, s, b, d, device=device).to(dtype).permute(1, 2, 0, 3)
    rate = float(rng.choice([0.0, 0.0, 0.1, 0.5]))
    dropped = words_of(rate, b, s, device) if rate else None
    return KernelCase(rows, query, key, value, grad, dropped)


def whole_case() -> KernelCase:
    """A case with everything: prefixes inside tiles, packing, padding, dropout, several tiles."""
    torch.manual_seed(1)
    s, b, a, d = 72, 2, 1, 32
    rows = [[Segment(s, 45)], [Segment(40, 23), Segment(19, 0), Segment(13, 0)]]
    query, key, value = random_tensors(0, (s, b, a, d), torch.float32, "cpu")
    grad = torch.randn(s, b, a, d)
    return KernelCase(rows, query, key, value, grad, words_of(0.1, b, s, "cpu"))
