"""The replay of a healthy run is equal, that of a changed one is not, and nothing is touched."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from glm_dist.cli.main import main
from glm_dist.cli.resume_check import EXIT_DIFFERS
from glm_dist.files import lock_file
from glm_dist.train.replay import compare
from glm_dist.train.replay_plan import Plan, Recorded, plan_replay, recorded_windows, rewind_targets
from tests.messages import Says
from tests.train.jobs import glm_dist_command, make_files, with_python, with_ranks

STEPS = 8


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of eight steps in one process, with checkpoints at 4, 6 and 8."""
    folder = tmp_path_factory.mktemp("run")
    done = with_python([*make_files(folder), "run.name=a", f"run.steps={STEPS}"])
    assert done.returncode == 0, done.stderr
    return folder / "runs" / "a"


def contents(run: Path) -> dict[Path, tuple[bytes, int]]:
    """Bytes and time of change of every file; time of change of every folder."""
    return {
        path: (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in [run, *run.rglob("*")]
    }


def copied(run: Path, folder: Path, *, file: str, old: str, new: str) -> Path:
    """Copy a run with one change in one of its files."""
    copy = folder / "copy"
    subprocess.run(["cp", "-r", str(run), str(copy)], check=True)
    text = (copy / file).read_text()
    assert old in text
    (copy / file).write_text(text.replace(old, new))
    return copy


def test_a_replay_is_equal_bit_for_bit_and_leaves_a_running_job_alone(run: Path) -> None:
    with lock_file(run / "lock"):  # as the job that is training
        before = contents(run)
        done = glm_dist_command("resume-check", str(run), "--step", "4")
        assert contents(run) == before
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("equal\n") == 8  # loss and norm of four steps
    assert "tensors are bit-equal to the checkpoint of step 8" in done.stdout
    assert "largest relative difference 0.0e+00" in done.stdout


def test_another_layout_replays_the_run_within_rounding(run: Path) -> None:
    typed = ["resume-check", str(run), "--tensor-parallel-size", "2"]
    first, second = with_ranks(typed, 2, program=main)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr
    assert "checkpoint of step 6, replayed to step 8 in another layout" in first.stdout
    assert "the run resumes as the same run" in first.stdout
    assert "tensors differ from the checkpoint of step 8" in first.stdout
    assert not second.stdout


@pytest.mark.parametrize(
    ("file", "old", "new", "word"),
    [
        ("config.yaml", "weight_decay: 0.1", "weight_decay: 0.5", "tensors differ from"),
        ("metrics.jsonl", '"step": 7, "train/loss": 6', '"step": 7, "train/loss": 5', "DIFFERENT"),
    ],
    ids=["other setting", "other record"],
)
def test_a_run_that_would_go_on_otherwise_is_told(
    run: Path, tmp_path: Path, file: str, old: str, new: str, word: str
) -> None:
    copy = copied(run, tmp_path, file=file, old=old, new=new)
    done = glm_dist_command("resume-check", str(copy))
    assert done.returncode == EXIT_DIFFERS, done.stdout + done.stderr
    assert "DIFFERENT" in done.stdout
    assert word in done.stdout


@pytest.mark.parametrize(
    "typed", [["--step", "8"], ["--step", "5"], ["--steps", "1"]], ids=" ".join
)
def test_what_cannot_be_compared_is_said(
    run: Path, typed: list[str], tmp_path: Path, says: Says
) -> None:
    copy = copied(run, tmp_path, file="metrics.jsonl", old='"train/loss"', new='"no/loss"')
    done = glm_dist_command("resume-check", str(copy), *typed)
    assert done.returncode == 2
    says(done.stderr.replace(str(copy), "RUN"))


def line(attempt: int, step: int, loss: float | None = None) -> dict[str, Any]:
    """A line of metrics.jsonl: the start of an attempt if there is no loss."""
    kind = {"event": "started"} if loss is None else {"train/loss": loss, "train/grad_norm": 1.0}
    return {"attempt": attempt, "step": step, **kind}


def test_a_record_covers_the_steps_since_the_one_before_in_its_attempt() -> None:
    lines = [line(1, 0), line(1, 1, 9.0), line(1, 4, 8.0), line(1, 8, 7.0), line(1, 9, 6.9)]
    lines += [line(2, 4), line(2, 5, 6.5), line(2, 8, 6.0)]
    assert recorded_windows(json.loads(json.dumps(lines))) == [
        Recorded(1, 1, 9.0, 1.0),
        Recorded(2, 4, 8.0, 1.0),
        Recorded(5, 5, 6.5, 1.0),
        Recorded(6, 8, 6.0, 1.0),
    ]


def test_records_before_a_rewind_are_not_compared_with_the_steps_after_it() -> None:
    rewound = {"attempt": 1, "step": 4, "event": "rewound"}
    lines = [line(1, 0), line(1, 4, 8.0), line(1, 6, 9.9), rewound, line(1, 6, 6.5)]
    lines += [line(2, 6), line(2, 8, 6.0)]
    records = recorded_windows(lines)
    assert [(each.first, each.last, each.loss) for each in records] == [
        (1, 4, 8.0),
        (5, 6, 6.5),
        (7, 8, 6.0),
    ]
    rewinds = rewind_targets(lines)
    assert rewinds == [4]
    # The checkpoint of step 4 was saved before rows were passed over, so step 5 would read them.
    assert plan_replay([2, 4, 6], records, step=4, steps=9, rewinds=rewinds) is None
    assert plan_replay([4, 6], records, step=None, steps=9, rewinds=rewinds) == Plan(
        6, (records[2],), 8, None
    )
    # Killed before the next save: the second attempt began without the passed-over rows.
    assert rewind_targets([*lines[:4], line(2, 4)]) == []


def test_a_record_with_a_skipped_step_is_compared_with_the_others() -> None:
    record = Recorded(5, 8, 2.0, 1.5)
    found = compare(record, {5: (1.0, 9.0), 7: (3.0, 1.5)})  # steps 6 and 8 were skipped
    assert (found.loss, found.grad_norm, found.difference) == (2.0, 1.5, 0.0)


RECORDS = [Recorded(1, 1, 9.0, None), Recorded(2, 10, 8.0, None), Recorded(11, 20, 7.0, None)]


@pytest.mark.parametrize(
    ("checkpoints", "step", "steps", "expected"),
    [
        ([10, 20], None, 10, Plan(10, (RECORDS[2],), 20, 20)),  # after 20 there is nothing
        ([10], None, 10, Plan(10, (RECORDS[2],), 20, None)),
        ([10], None, 9, None),  # the record does not end within nine steps
        ([12, 16], None, 10, Plan(12, (), 16, 16)),  # no whole record, but weights
        ([0, 10, 20], 0, 15, Plan(0, tuple(RECORDS[:2]), 10, 10)),
        ([20], None, 10, None),
    ],
)
def test_a_plan_reaches_as_far_as_there_is_something_to_compare(
    checkpoints: list[int], step: int | None, steps: int, expected: Plan | None
) -> None:
    assert plan_replay(checkpoints, RECORDS, step=step, steps=steps) == expected
