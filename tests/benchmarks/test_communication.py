"""Communication on paper, against numbers worked out by hand."""

import pytest

from benchmarks.communication import (
    NETWORK,
    NVLINK,
    PEAK,
    SHAPES,
    Shape,
    bytes_per_second,
    pipeline,
    table,
    tensor_parallel,
    zero_1,
)
from tests.train.jobs import ROOT

# GLM-2B: h = 2048, l = 36; hidden states of 8 rows of 1024 are 8 * 1024 * 2048 * 2 bytes.
SHAPE = SHAPES["2B"]
HIDDEN_STATES = 33_554_432
STEP = 4 * HIDDEN_STATES * 36
"""All of a step's micro-batches and layers."""


def test_a_ring_is_as_fast_as_its_slowest_link() -> None:
    assert bytes_per_second(8) == NVLINK
    assert bytes_per_second(16) == 8 * NETWORK  # 400 GB/s: every card of a node
    assert bytes_per_second(2, distance=8) == NETWORK
    assert bytes_per_second(4, distance=2) == NVLINK
    assert bytes_per_second(8, distance=2) == 4 * NETWORK


def test_zero_1_sends_six_bytes_per_parameter() -> None:
    # blocks 36 * (12 h^2 + 13 h), the table, two position tables of 1025, the last norm
    parameters = 36 * (12 * 2048**2 + 13 * 2048) + 30592 * 2048 + 2 * 1025 * 2048 + 2 * 2048
    assert SHAPE.parameters == parameters

    waits, hidden = zero_1(SHAPE, 8, overlaps=False), zero_1(SHAPE, 8, overlaps=True)

    assert waits.num_bytes == pytest.approx(7 / 8 * 6 * parameters)
    assert waits.exposed == waits.seconds == pytest.approx(waits.num_bytes / NVLINK)
    assert hidden.seconds == waits.seconds
    assert hidden.exposed == 0
    shared = zero_1(SHAPE, 8, tensor=8, overlaps=False)
    assert shared.num_bytes == pytest.approx(waits.num_bytes / 8)
    assert shared.seconds == pytest.approx(shared.num_bytes / NETWORK)


def test_overlap_hides_no_more_than_a_micro_batch() -> None:
    short = Shape("10b", 1, 1024, micro_batches=1)

    cost = zero_1(short, 8, tensor=8, overlaps=True)

    out, back = cost.seconds * 4 / 6, cost.seconds * 2 / 6
    assert cost.exposed == pytest.approx(
        max(out - 2 / 3 * cost.computing, 0) + back - cost.computing / 3
    )
    assert cost.share == pytest.approx(cost.exposed / (cost.exposed + cost.computing))


def test_tensor_parallelism_reduces_hidden_states_four_times_a_layer() -> None:
    plain = tensor_parallel(SHAPE, 4, sequence_parallel=False)
    split = tensor_parallel(SHAPE, 4, sequence_parallel=True)

    assert plain.num_bytes == pytest.approx(4 * 2 * 3 / 4 * STEP)
    assert plain.exposed == pytest.approx(plain.seconds / 2)
    assert split.num_bytes == pytest.approx(plain.num_bytes * 10 / 8)
    assert split.exposed == pytest.approx(6 * 3 / 4 * STEP / NVLINK)
    assert split.computing == pytest.approx(SHAPE.computing_seconds() / 4)


def test_a_pipeline_waits_for_its_first_and_last_micro_batch() -> None:
    cost = pipeline(SHAPE, 4, chunks=2)  # 4 micro-batches

    assert cost.num_bytes == 2 * HIDDEN_STATES * 4 * 2
    assert cost.exposed == pytest.approx(3 / 8 * cost.computing)
    assert cost.share == pytest.approx(3 / 11)


def test_computing_takes_the_useful_work_at_the_assumed_rate() -> None:
    # 2B's step was counted as 382.6 TFLOP of useful work: 345 TFLOP/s in 1.11 s (a measurement)
    assert SHAPE.computing_seconds() * 0.5 * PEAK / 1e12 == pytest.approx(345 * 1.110, rel=5e-3)
    assert SHAPE.computing_seconds(4) == pytest.approx(SHAPE.computing_seconds() / 4)


def test_the_document_has_this_table() -> None:
    assert table() in (ROOT / "docs" / "performance.md").read_text()
