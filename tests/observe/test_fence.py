"""A job that has lost its run folder, to nobody or to another job, writes nothing more."""

import errno
import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from glm_dist.errors import CheckpointError
from glm_dist.observe.fence import Fence, FencedSink
from glm_dist.observe.run_folder import RunFolder, open_run_folder
from glm_dist.observe.sinks import JsonlSink, SinkGroup
from tests.messages import Says
from tests.observe.test_run_folder import provenance


def start(path: Path) -> RunFolder:
    return open_run_folder(path, config="x: 1\n", overrides=[], provenance=provenance())


def refusal_of(fence: Fence) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        fence.check()
    return caught.value


def no_locks(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def test_a_job_alone_in_its_folder_passes_every_check(tmp_path: Path) -> None:
    opened = start(tmp_path / "run")
    for _ in range(2):
        opened.fence.check()
    assert (tmp_path / "run" / "lock").read_text().endswith(", attempt 1\n")
    assert opened.fence.excludes_others


def test_a_job_whose_lock_was_deleted_and_taken_is_superseded(tmp_path: Path) -> None:
    first = start(tmp_path / "run")
    (tmp_path / "run" / "lock").unlink()
    assert "belongs to nobody: it was deleted" in str(refusal_of(first.fence))

    second = start(tmp_path / "run")

    assert "Attempt 1 of the run in " in str(refusal_of(first.fence))
    assert ", attempt 2. This job stops" in str(refusal_of(first.fence))
    second.fence.check()


def test_without_locks_the_attempt_in_the_file_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "lockf", no_locks)
    first = start(tmp_path / "run")
    first.fence.check()
    second = start(tmp_path / "run")
    assert ", attempt 2. This job stops" in str(refusal_of(first.fence))
    second.fence.check()
    assert not second.fence.excludes_others


def removed(run: Path) -> None:
    shutil.rmtree(run)


def renamed(run: Path) -> None:
    run.rename(run.with_name("elsewhere"))


def replaced(run: Path) -> None:
    shutil.copytree(run, run.with_name("copy"))
    shutil.rmtree(run)
    run.with_name("copy").rename(run)


def under_a_file(run: Path) -> None:
    shutil.rmtree(run.parent)
    run.parent.write_text("")


@pytest.mark.parametrize("lose", [removed, renamed, replaced, under_a_file])
def test_a_folder_that_went_is_said_to_be_gone_or_another_one(
    tmp_path: Path, lose: Callable[[Path], None], says: Says
) -> None:
    run = tmp_path / "runs" / "a"
    opened = start(run)
    lose(run)
    says(refusal_of(opened.fence))


def test_records_end_with_the_claim_and_are_the_error_of_rank_0_alone(tmp_path: Path) -> None:
    opened = start(tmp_path / "run")
    sink = FencedSink(SinkGroup(), opened.fence)
    sink.write(1, {"train/loss": 1.0})
    shutil.rmtree(tmp_path / "run")
    for record in (lambda: sink.write(2, {}), lambda: sink.event(2, "checkpoint", {})):
        with pytest.raises(CheckpointError) as caught:
            record()
        assert caught.value.rank == 0
    sink.close()


def test_a_job_that_lost_its_claim_does_not_record_its_end(tmp_path: Path) -> None:
    opened = start(tmp_path / "run")
    file = tmp_path / "run" / "metrics.jsonl"
    metrics = JsonlSink(file, attempt=1, first_step=0, may_write=opened.fence.holds)
    sink = FencedSink(SinkGroup([metrics]), opened.fence)
    before = file.read_bytes()
    (tmp_path / "run" / "lock").unlink()
    sink.close()
    assert file.read_bytes() == before
