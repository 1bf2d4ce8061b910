"""Every way to compute prefix attention against one dense mask."""

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glm_dist.data.rows import Segment
from glm_dist.model.attention.dispatch import prefix_attention, uses_mask
from glm_dist.model.attention.operator import has_kernels
from glm_dist.model.attention.plan import AttentionPlan, plan_attention
from tests.model.masks import dense_attention, dense_mask

CPU = torch.device("cpu")


def random_row(rng: np.random.Generator, row_length: int) -> list[Segment]:
    """One segment, or several with or without padding behind; prefixes from nothing to all."""
    if rng.random() < 0.5:
        return [Segment(row_length, int(rng.integers(0, row_length + 1)))]
    segments, left = [], row_length
    while left > 0 and rng.random() < 0.8:
        length = int(rng.integers(1, left + 1))
        segments.append(Segment(length, int(rng.integers(0, length + 1))))
        left -= length
    return segments or [Segment(row_length, 0)]


def plan_of(
    rows: list[list[Segment]], row_length: int, device: torch.device = CPU
) -> AttentionPlan:
    """The plan of rows of which each may be packed."""
    return plan_attention(
        [row[0].prefix_length for row in rows],
        row_length=row_length,
        segments=[() if row[0].length == row_length else row for row in rows],
    ).to(device)


def with_padding(rows: list[list[Segment]], row_length: int) -> list[list[Segment]]:
    """Segments that cover every row."""
    rests = [row_length - sum(segment.length for segment in row) for row in rows]
    return [
        [*row, *([Segment(rest, 0)] if rest else [])] for row, rest in zip(rows, rests, strict=True)
    ]


def problem(seed: int) -> tuple[list[torch.Tensor], list[list[Segment]], torch.Tensor]:
    """Random query, key, value [s, b, a, d] in fp64, rows, and weights of the output."""
    rng = np.random.default_rng(seed)
    num_rows, row_length = int(rng.integers(1, 5)), int(rng.integers(1, 48))
    rows = [random_row(rng, row_length) for _ in range(num_rows)]
    if seed % 5 == 0:
        rows = [rows[0]] * num_rows
    torch.manual_seed(seed)
    # As megatron-core makes them: views of one projection.
    mixed = torch.randn(row_length, num_rows, 2, 3 * 8, dtype=torch.float64)
    tensors = [x.detach().requires_grad_() for x in mixed.split(8, dim=3)]
    weight = torch.randn(row_length, num_rows, 2, 8, dtype=torch.float64)
    return tensors, rows, weight


def assert_equals_dense_mask(
    found: torch.Tensor,
    tensors: list[torch.Tensor],
    rows: list[list[Segment]],
    weight: torch.Tensor,
) -> None:
    """Compare an output [s, b, a, d] and its gradients with the dense mask's."""
    gradients = torch.autograd.grad((found * weight).sum(), tensors)
    mask = dense_mask(rows, found.size(0))
    expected = dense_attention(*(x.permute(1, 2, 0, 3) for x in tensors), mask).permute(2, 0, 1, 3)
    expected_gradients = torch.autograd.grad((expected * weight).sum(), tensors)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    for a, b in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(a, b, atol=1e-11, rtol=0)


@pytest.mark.parametrize("seed", range(200))
def test_split_calls_equal_a_dense_mask(seed: int) -> None:
    tensors, rows, weight = problem(seed)
    plan = plan_of(rows, weight.size(0))

    found = prefix_attention(*(x.permute(1, 2, 0, 3) for x in tensors), plan=plan, dropout=0.0)

    assert_equals_dense_mask(found.permute(2, 0, 1, 3), tensors, rows, weight)


@pytest.mark.parametrize("seed", range(40))
def test_masked_calls_equal_a_dense_mask(seed: int) -> None:
    tensors, rows, weight = problem(seed)
    plan = plan_of(rows, weight.size(0))

    # The way of dropout; a probability this small drops nothing but takes it.
    found = prefix_attention(*(x.permute(1, 2, 0, 3) for x in tensors), plan=plan, dropout=1e-300)

    assert_equals_dense_mask(found.permute(2, 0, 1, 3), tensors, rows, weight)


def test_16_bits_stay_near_the_exact_result() -> None:
    tensors, rows, _ = problem(8)
    query, key, value = (x.permute(1, 2, 0, 3).to(torch.bfloat16) for x in tensors)
    mask = dense_mask(rows, query.size(2))

    found = prefix_attention(query, key, value, plan=plan_of(rows, query.size(2)), dropout=0.0)

    expected = dense_attention(query.double(), key.double(), value.double(), mask)
    torch.testing.assert_close(found.double(), expected, atol=2e-2, rtol=0)


def test_equal_rows_share_one_call() -> None:
    same, other = [Segment(6, 4)], [Segment(4, 2), Segment(2, 1)]

    segments = plan_of([same, same, other, other, same], 6).segments

    assert [(p.rows, p.start, p.middle, p.stop) for p in segments] == [
        (slice(0, 2), 0, 4, 6),
        (slice(2, 4), 0, 2, 4),
        (slice(2, 4), 4, 5, 6),
        (slice(4, 5), 0, 4, 6),
    ]


def test_the_table_lists_every_segment_once() -> None:
    plan = plan_of([[Segment(3, 2)], [Segment(1, 0), Segment(1, 1)]], 3)

    assert plan.table.dtype is torch.int32
    # Row, first position, length, prefix; the rest of a packed row is a segment too.
    assert plan.table.tolist() == [[0, 0, 3, 2], [1, 0, 1, 0], [1, 1, 1, 1], [1, 2, 1, 0]]


def test_no_query_of_part_a_depends_on_part_b() -> None:
    q, k, v = (torch.randn(1, 1, 6, 4) for _ in range(3))
    changed = v.clone()
    changed[:, :, 4:] += 1.0
    plan = plan_of([[Segment(6, 4)]], 6)

    before = prefix_attention(q, k, v, plan=plan, dropout=0.0)
    after = prefix_attention(q, k, changed, plan=plan, dropout=0.0)

    assert torch.equal(before[:, :, :4], after[:, :, :4])
    assert not torch.equal(before[:, :, 4], after[:, :, 4])


@pytest.mark.parametrize("prefix", [0, 2, 3])
def test_cached_tokens_are_seen_by_every_query(prefix: int) -> None:
    q, k, v = (torch.randn(2, 1, 3, 4, dtype=torch.float64) for _ in range(3))
    more_k, more_v = (torch.randn(2, 1, 8, 4, dtype=torch.float64) for _ in range(2))
    more_k[:, :, 5:], more_v[:, :, 5:] = k, v
    plan = plan_of([[Segment(3, prefix)]] * 2, 3)

    found = prefix_attention(q, more_k, more_v, plan=plan, dropout=0.0)
    masked = prefix_attention(q, more_k, more_v, plan=plan, dropout=1e-300)

    visible = dense_mask([[Segment(3, prefix)]], 3)
    visible = torch.cat([torch.ones(1, 3, 5, dtype=torch.bool), visible], dim=2)
    expected = dense_attention(q, more_k, more_v, visible)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(masked, expected, atol=1e-12, rtol=0)


def test_dropout_drops() -> None:
    q, k, v = (torch.randn(1, 1, 6, 4) for _ in range(3))
    plan = plan_of([[Segment(6, 3)]], 6)

    with_dropout = prefix_attention(q, k, v, plan=plan, dropout=0.5)

    assert not torch.allclose(with_dropout, prefix_attention(q, k, v, plan=plan, dropout=0.0))


class Shapes(TorchDispatchMode):
    """Remembers the shape of every tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.seen.add(tuple(tensor.shape))
        return result


def test_no_tensor_has_the_row_length_twice() -> None:
    rows = [[Segment(37, 21)], [Segment(37, 0)], [Segment(20, 5), Segment(10, 10)]]
    q, k, v = (torch.randn(3, 2, 37, 8, requires_grad=True) for _ in range(3))

    with Shapes() as shapes:
        prefix_attention(q, k, v, plan=plan_of(rows, 37), dropout=0.0).sum().backward()

    assert (3, 2, 37, 8) in shapes.seen
    assert not [shape for shape in shapes.seen if shape.count(37) > 1]


@pytest.mark.parametrize(
    ("dtype", "head_size", "fits"),
    [
        (torch.bfloat16, 64, True),
        (torch.float16, 256, True),
        (torch.float32, 60, True),
        (torch.bfloat16, 264, False),
        (torch.float64, 64, False),
    ],
)
def test_kernels_take_the_formats_of_training_and_heads_to_256(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, head_size: int, fits: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    gpu = torch.device("cuda", 0)

    assert has_kernels(gpu, dtype, head_size=head_size) is fits
    assert uses_mask(gpu, dtype, dropout=0.0, head_size=head_size) is not fits


def test_kernels_begin_with_ampere(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    answers = []
    for capability in ((7, 0), (7, 5), (8, 0), (9, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        answers.append(has_kernels(device, torch.float16, head_size=64))

    assert answers == [False, False, True, True]
    assert not has_kernels(CPU, torch.float16, head_size=64)
