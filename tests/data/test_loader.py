"""The same rows for every layout, worker count and resume; errors and waiting."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from glm_dist.data.loader import TrainingBatches, training_batches
from glm_dist.data.rows import Row
from glm_dist.errors import DataError
from tests.messages import Says

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class NumberedRows:
    """Rows whose only token is their index; an item has ``each`` of them."""

    bad_index: int = -1
    seconds: float = 0.0
    each: int = 1

    def rows(self, index: int) -> list[Row]:
        if index == self.bad_index:
            raise DataError("a row is damaged", key="corpus", value=7, fix="repair it")
        time.sleep(self.seconds)
        one = np.array([index])
        return [Row(one, one, one, one, one > 0, 1, "span", 1)] * self.each


def read(source: NumberedRows, **changes: int) -> TrainingBatches:
    options = {
        "start_step": 0,
        "global_batch_size": 8,
        "micro_batch_size": 2,
        "replica": 0,
        "num_replicas": 1,
        "num_workers": 0,
        "prefetch": 2,
    }
    return training_batches(source, **{**options, **changes})


def indices(batches: TrainingBatches, steps: int) -> list[list[list[int]]]:
    found = [[m.tokens[:, 0].tolist() for m in next(batches)] for _ in range(steps)]
    batches.close()
    return found


def test_a_micro_batch_holds_all_rows_of_its_items() -> None:
    batches = read(NumberedRows(each=3), global_batch_size=4, replica=1, num_replicas=2)

    # Items 0 and 1 belong to the other replica.
    assert indices(batches, 2) == [[[2, 2, 2, 3, 3, 3]], [[6, 6, 6, 7, 7, 7]]]


def test_a_step_is_cut_into_micro_batches_in_order() -> None:
    assert indices(read(NumberedRows()), 2) == [
        [[0, 1], [2, 3], [4, 5], [6, 7]],
        [[8, 9], [10, 11], [12, 13], [14, 15]],
    ]


def test_replicas_take_contiguous_shares_of_each_step() -> None:
    second = indices(read(NumberedRows(), replica=1, num_replicas=2), 2)

    assert second == [[[4, 5], [6, 7]], [[12, 13], [14, 15]]]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_workers_change_nothing_but_the_time(num_workers: int) -> None:
    alone = indices(read(NumberedRows(), start_step=3), 5)

    assert indices(read(NumberedRows(), start_step=3, num_workers=num_workers), 5) == alone


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_reads_on_where_the_steps_ended(num_workers: int) -> None:
    through = indices(read(NumberedRows()), 6)

    assert indices(read(NumberedRows(), start_step=4, num_workers=num_workers), 2) == through[4:]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_arrives_as_it_was_raised(num_workers: int) -> None:
    batches = read(NumberedRows(bad_index=11), num_workers=num_workers)
    next(batches)

    with pytest.raises(DataError, match="a row is damaged") as caught:
        next(batches)
    assert caught.value.fix == "repair it"
    batches.close()


def test_workers_leave_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    batches = read(NumberedRows(), num_workers=1)
    next(batches)
    batches.close()

    assert torch.equal(torch.get_rng_state(), before)


def test_signals_to_the_whole_process_group_leave_the_workers_alive() -> None:
    script = (
        "import os, signal, sys\n"
        "from tests.data.test_loader import NumberedRows, read\n"
        "batches = read(NumberedRows(), num_workers=2)\n"
        "next(batches)\n"
        "for number in (signal.SIGTERM, signal.SIGUSR1):\n"
        "    signal.signal(number, lambda *_: None)\n"
        "    os.killpg(os.getpgrp(), number)\n"
        "print(sum(len(next(batches)) for _ in range(20)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.stdout == "80\n", done.stderr


def test_no_room_in_shared_memory_is_one_sentence_with_its_remedy(
    monkeypatch: pytest.MonkeyPatch, says: Says
) -> None:
    def full(tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory: No space left on device (28)")

    # Workers are forked, and meet it there.
    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with pytest.raises(DataError) as caught:
        next(iter(read(NumberedRows(), num_workers=1)))
    says(caught.value)
