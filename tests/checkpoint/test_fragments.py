"""Boxes cover exactly the flat range, and views carry exactly its elements."""

import math

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint.metadata import MetadataIndex

from glm_dist.checkpoint.fragments import Fragment, as_fragment, boxes_of_flat_range
from glm_dist.config.parameter_specs import RowPiece

SHAPES = [(), (1,), (7,), (3, 5), (1, 9), (9, 1), (4, 3, 5), (2, 1, 3, 4)]


def slices(box: tuple[tuple[int, ...], tuple[int, ...]]) -> tuple[slice, ...]:
    return tuple(slice(o, o + n) for o, n in zip(*box, strict=True))


def painted(fragment: Fragment) -> torch.Tensor:
    """The global tensor with this fragment's values in place and NaN elsewhere."""
    whole = torch.full(fragment.shape, math.nan)
    for chunk in fragment.__create_chunk_list__():
        box = slices((tuple(chunk.offsets), tuple(chunk.sizes)))
        whole[box] = fragment.__get_tensor_shard__(MetadataIndex("x", chunk.offsets))
    return whole


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_boxes_cover_every_flat_range_exactly_once_and_in_order(shape: tuple[int, ...]) -> None:
    size = math.prod(shape)
    order = np.arange(size).reshape(shape)
    for start in range(size + 1):
        for end in range(start, size + 1):
            boxes = boxes_of_flat_range(shape, start, end)
            met = [order[slices(box)].reshape(-1) for box in boxes]
            assert np.array_equal(np.concatenate([np.empty(0, int), *met]), np.arange(start, end))
            assert len(boxes) <= max(1, 2 * len(shape) - 1)


def test_boxes_of_large_random_ranges_hold_as_many_elements_as_the_range() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        shape = tuple(int(n) for n in rng.integers(1, 3000, size=rng.integers(1, 5)))
        start, end = sorted(int(n) for n in rng.integers(0, math.prod(shape) + 1, size=2))
        boxes = boxes_of_flat_range(shape, start, end)
        assert sum(math.prod(sizes) for _, sizes in boxes) == end - start


def test_a_range_inside_a_matrix_is_end_of_row_whole_rows_start_of_row() -> None:
    # rows of 4: elements 6, 7 | 8..15 | 16
    assert boxes_of_flat_range((5, 4), 6, 17) == [
        ((1, 2), (1, 2)),
        ((2, 0), (2, 4)),
        ((4, 0), (1, 1)),
    ]


@pytest.mark.parametrize(("start", "end"), [(-1, 2), (3, 2), (0, 21)])
def test_a_range_outside_the_array_is_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match="is not a range"):
        boxes_of_flat_range((5, 4), start, end)


def test_a_flat_range_of_a_column_shard_lands_at_its_global_place() -> None:
    whole = torch.arange(24.0).view(4, 6)
    local = whole[:, 3:].contiguous()  # [4, 3], 12 elements
    fragment = Fragment(
        local.view(-1)[4:9].clone(),  # rows 1 and 2, without the first column of row 1
        global_shape=(4, 6),
        offset=(0, 3),
        local_shape=(4, 3),
        start=4,
    )
    expected = torch.full((4, 6), math.nan)
    expected[1, 4:6] = torch.tensor([10.0, 11.0])
    expected[2, 3:6] = torch.tensor([15.0, 16.0, 17.0])
    torch.testing.assert_close(painted(fragment), expected, equal_nan=True)


def test_padding_past_the_end_of_the_parameter_is_neither_written_nor_read() -> None:
    flat = torch.tensor([4.0, 5.0, -1.0, -1.0])
    fragment = Fragment(flat, global_shape=(2, 3), local_shape=(2, 3), start=4)
    assert [tuple(c.sizes) for c in fragment.__create_chunk_list__()] == [(1, 2)]


def test_a_partition_that_is_all_padding_has_no_boxes() -> None:
    fragment = Fragment(torch.zeros(4), global_shape=(2, 3), local_shape=(2, 3), start=8)
    assert fragment.__create_write_items__("x", fragment) == []
    assert fragment.shape == (2, 3)


def test_loading_into_a_box_fills_the_data_it_was_made_of() -> None:
    flat = torch.zeros(5)
    fragment = Fragment(flat, global_shape=(3, 4), local_shape=(3, 4), start=3)
    for chunk in fragment.__create_chunk_list__():
        fragment.__get_tensor_shard__(MetadataIndex("x", chunk.offsets)).fill_(7.0)
    assert flat.tolist() == [7.0] * 5


def test_a_whole_tensor_need_not_be_contiguous() -> None:
    weight = torch.arange(6.0).view(2, 3).t()
    assert torch.equal(painted(as_fragment(weight)), weight)


def test_a_scalar_is_one_box() -> None:
    fragment = as_fragment(torch.tensor(3.0))
    assert len(fragment.__create_chunk_list__()) == 1
    assert painted(fragment).item() == 3.0


def test_row_pieces_put_local_rows_at_their_global_rows() -> None:
    local = torch.arange(8.0).view(4, 2)
    pieces = [RowPiece(0, 1, 2), RowPiece(2, 5, 2)]  # rows 0, 1 -> 1, 2 and rows 2, 3 -> 5, 6
    fragment = Fragment(
        local.view(-1)[1:7], global_shape=(7, 2), local_shape=(4, 2), start=1, rows=pieces
    )
    expected = torch.full((7, 2), math.nan)
    expected[1, 1] = 1.0
    expected[2] = torch.tensor([2.0, 3.0])
    expected[5] = torch.tensor([4.0, 5.0])
    expected[6, 0] = 6.0
    torch.testing.assert_close(painted(fragment), expected, equal_nan=True)


def test_row_pieces_that_leave_a_row_out_are_refused() -> None:
    with pytest.raises(ValueError, match="row pieces cover 2 of rows 0 to 3"):
        Fragment(torch.zeros(3, 2), global_shape=(5, 2), rows=[RowPiece(0, 0, 2)])


def test_a_part_that_leaves_the_global_tensor_is_refused() -> None:
    with pytest.raises(ValueError, match=r"leaves a tensor of \(4, 4\)"):
        Fragment(torch.zeros(2, 4), global_shape=(4, 4), offset=(3, 0))


def test_arithmetic_on_a_fragment_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="checkpoint fragment"):
        as_fragment(torch.zeros(2)) + 1


def test_an_unsaved_copy_reads_but_does_not_write() -> None:
    fragment = Fragment(torch.zeros(2), global_shape=(2,), is_saved=False)
    assert fragment.__create_write_items__("x", fragment) == []
    assert len(fragment.__create_chunk_list__()) == 1
