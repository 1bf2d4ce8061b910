"""A save in a thread: its outcome reaches all ranks together, even if one of them hangs."""

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

import glm_dist.checkpoint.save as save_module
from glm_dist.checkpoint.background import BackgroundWriter, HungSaveError, SaveOutcome
from glm_dist.checkpoint.load import find_checkpoint
from tests.ranks import run_ranks


def writer_of(seconds: float) -> BackgroundWriter:
    return BackgroundWriter(torch.device("cpu"), timeout=timedelta(seconds=seconds))


def begin(writer: BackgroundWriter, directory: Path, step: int) -> None:
    writer.start(
        directory,
        step=step,
        tensors={"model.w": torch.full((4, 3), float(step))},
        extra={},
        layout={"dp": 2},
        keep_last=5,
    )


def steps_of(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("step_*"))


def blocked(name: str, free: threading.Event) -> Callable[[], None]:
    """Let a function of a save wait for an event; return what undoes it."""
    kept = getattr(save_module, name)

    def wait(*arguments: object) -> object:
        free.wait()
        return kept(*arguments)

    setattr(save_module, name, wait)
    return lambda: setattr(save_module, name, kept)


def polled(writer: BackgroundWriter, seconds: float = 30.0) -> SaveOutcome:
    """As in training: one poll per step; fail if there is no outcome in time."""
    deadline = time.monotonic() + seconds
    while (outcome := writer.poll()) is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return outcome


def check_a_hang(folder: str) -> tuple[str, bool, list[str], list[str]]:
    directory = Path(folder)
    free = threading.Event()
    writer = writer_of(1.0)
    undo = blocked("_check_written", free) if dist.get_rank() == 1 else lambda: None
    begin(writer, directory, 1)

    hung = polled(writer)
    refused = False
    try:
        begin(writer, directory, 2)
    except HungSaveError:
        refused = True
    undo()
    free.set()
    deadline = time.monotonic() + 30
    while writer._overdue is not None and time.monotonic() < deadline:
        try:
            begin(writer, directory, 3)
        except HungSaveError:
            time.sleep(0.05)
    good = writer.wait()

    assert hung.step == 1
    assert good is not None
    assert good.error is None, good.error
    assert good.num_bytes > 0
    assert not writer.is_busy
    assert writer.poll() is writer.wait() is None
    everything = sorted(path.name for path in directory.iterdir())
    return str(hung.error), refused, steps_of(directory), everything


def test_a_hung_rank_is_named_after_the_deadline_and_its_memory_is_not_used_before_it_is_back(
    tmp_path: Path,
) -> None:
    first, second = run_ranks(check_a_hang, str(tmp_path), world_size=2)

    assert first == second
    message, refused, steps, everything = first
    assert f"{tmp_path}/.tmp-step_0000001-1: rank 1 on " in message
    assert " could not read back what it wrote within 0.0166667 minutes." in message
    assert "raise checkpoint.timeout_minutes" in message
    assert refused
    # The overdue save may have ended well, too; it left nothing else.
    assert steps == everything
    assert steps[-1] == "step_0000003"
    info = find_checkpoint(tmp_path)
    assert info is not None
    assert info.manifest.step == 3


def check_a_slow_save(folder: str) -> tuple[str, float]:
    """Wait for a save that takes longer than the job's collectives may; the longest turn."""
    dist.destroy_process_group()
    store = dist.FileStore(f"{folder}/store", 2)
    rank = int(os.environ["RANK"])
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=2, timeout=timedelta(seconds=1)
    )
    free = threading.Event()
    writer = writer_of(60.0)
    undo = blocked("_check_written", free) if rank == 1 else lambda: None
    begin(writer, Path(folder) / "checkpoints", 1)
    threading.Timer(2.0, free.set).start()
    turns: list[float] = []

    @contextlib.contextmanager
    def turn() -> Iterator[None]:
        started = time.monotonic()
        yield
        turns.append(time.monotonic() - started)

    outcome = writer.wait(turn)
    undo()
    assert outcome is not None
    return str(outcome.error), max(turns)


def test_a_save_may_take_longer_than_the_collectives_of_training(tmp_path: Path) -> None:
    for error, longest in run_ranks(check_a_slow_save, str(tmp_path), world_size=2):
        assert error == "None"
        assert longest < 1.5  # of 2 s: a watchdog that allows less than the save sees progress
    assert steps_of(tmp_path / "checkpoints") == ["step_0000001"]
