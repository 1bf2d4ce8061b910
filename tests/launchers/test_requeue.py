"""What follows the end of a job: the run folder decides, not srun's status."""

from pathlib import Path

import pytest

from tests.launchers.fakes import FAKE_SRUN, run_batch

SAVED = {"BEFORE": "step_0000010", "AFTER": "step_0000020"}
VAIN = {"BEFORE": "step_0000020", "AFTER": "step_0000020"}


@pytest.mark.parametrize(
    ("environ", "status", "requeued"),
    [
        ({"TASK_STATUS": "0", "FINISHED": "0 2", **SAVED}, 0, False),
        ({"TASK_STATUS": "138", "FINISHED": "0 2", **SAVED}, 0, False),
        ({"TASK_STATUS": "0", "FINISHED": "0 1", **VAIN}, 0, False),
        ({"TASK_STATUS": "137", "FINISHED": "0 1", **VAIN}, 137, False),
        ({"TASK_STATUS": "0", **SAVED}, 1, True),
        ({"TASK_STATUS": "0", "FINISHED": "0 2", "PART": "part", **SAVED}, 0, False),
        ({"TASK_STATUS": "75", "FINISHED": "0 2", "PART": "part", **SAVED}, 75, True),
        ({"TASK_STATUS": "75", "STOPPED": "75 2", **SAVED}, 75, True),
        ({"TASK_STATUS": "137", "STOPPED": "75 2", **SAVED}, 75, True),
        ({"TASK_STATUS": "1", "STOPPED": "130 2", **VAIN}, 130, False),
        ({"TASK_STATUS": "1", "STOPPED": "76 2", **SAVED}, 76, False),
        ({"TASK_STATUS": "1", "STOPPED": "75 1", **VAIN}, 1, False),
        ({"TASK_STATUS": "138", "BEFORE": ""}, 75, True),
        ({"TASK_STATUS": "75"}, 75, True),
        ({"TASK_STATUS": "75", "SIGNAL_BATCH_SHELL": "10", **VAIN}, 75, True),
        ({"TASK_STATUS": "75", "SIGNAL_BATCH_SHELL": "15", **SAVED}, 75, False),
        ({"TASK_STATUS": "75", "STOPPED": "75 2", "AUTO_REQUEUE": "0", **SAVED}, 75, False),
        ({"TASK_STATUS": "75", "STOPPED": "75 2", "REQUEUE": "0", **SAVED}, 75, False),
        ({"TASK_STATUS": "137", **SAVED}, 137, True),
        ({"TASK_STATUS": "1", "BEFORE": "", "AFTER": "step_0000020"}, 1, True),
        ({"TASK_STATUS": "1", **VAIN}, 1, False),
        ({"TASK_STATUS": "1", "NODE_STATE": "down*", **VAIN}, 1, True),
        ({"TASK_STATUS": "76", **SAVED}, 76, False),
        ({"TASK_STATUS": "2", "BEFORE": ""}, 2, False),
        ({"TASK_STATUS": "143"}, 143, False),
        ({"TASK_STATUS": "143", "REFUSED": "1", **SAVED}, 2, False),
        ({"TASK_STATUS": "1", "AUTO_REQUEUE": "0", **SAVED}, 1, False),
    ],
    ids=[
        "finished",
        "finished, and a rank got a late signal",
        "finished before",
        "finished before, and crashed since",
        "srun says 0, the folder does not",
        "the last of several runs is finished",
        "one of several runs is finished",
        "stopped and saved",
        "stopped, and a rank was killed",
        "not saved",
        "needs a human",
        "stopped in an earlier attempt",
        "asked before it listened",
        "the folder is still locked",
        "the batch shell was asked",
        "cancelled",
        "not wanted",
        "submitted with --no-requeue",
        "crashed further on",
        "crashed after the first checkpoint",
        "crashed without progress",
        "lost a node without progress",
        "needs a human, by status",
        "a mistake",
        "killed before it began",
        "a mistake, and a rank was killed",
        "no crash wanted",
    ],
)
def test_the_run_folder_decides_what_follows(
    repository: Path, environ: dict[str, str], status: int, requeued: bool
) -> None:
    run = repository.parent / "run"
    (run / "checkpoints").mkdir(parents=True)
    if "FINISHED" in environ and "1" in environ["FINISHED"]:
        (run / "finished").write_text('{"attempt": 1}')
    done = run_batch(repository, RUN=str(run), **environ)

    notes = repository.parent / "notes.scontrol"
    assert (notes.read_text() if notes.exists() else "") == ("requeue 4242\n" if requeued else "")
    assert done.returncode == status, done.stdout + done.stderr
    assert ("--no-requeue: submit it again" in done.stdout) is (environ.get("REQUEUE") == "0")
    assert not list(repository.glob("*.run*"))


def test_crashes_in_a_row_are_limited_and_a_stop_forgives_them(repository: Path) -> None:
    run = repository.parent / "run"
    (run / "checkpoints").mkdir(parents=True)
    notes = repository.parent / "notes.scontrol"
    crash = {"TASK_STATUS": "1", "RUN": str(run), "MAX_CRASHES": "2"}
    stop = {"TASK_STATUS": "75", "RUN": str(run), "STOPPED": "75 2"}
    queue = []
    for number, environ in enumerate([crash, crash, crash, crash, stop, crash, crash]):
        steps = {"BEFORE": f"step_{number:07d}", "AFTER": f"step_{number + 1:07d}"}
        notes.unlink(missing_ok=True)
        (run / "stopped").unlink(missing_ok=True)
        run_batch(repository, **environ, **steps)
        queue.append(notes.exists())

    assert queue == [True, True, False, True, True, True, True]


def test_vain_starts_in_a_row_are_limited_too(repository: Path) -> None:
    notes = repository.parent / "notes.scontrol"
    for expected in (True, True, True, False):
        notes.unlink(missing_ok=True)
        done = run_batch(repository, TASK_STATUS="138")  # USR1 comes before it listens, every time
        assert notes.exists() is expected
    assert "not requeued again" in done.stdout


def test_a_signal_reaches_a_task_that_missed_the_first_one(repository: Path) -> None:
    common = repository / "launchers/common.sh"
    common.write_text(common.read_text().replace("RESEND_SECONDS=15", "RESEND_SECONDS=0.2"))
    deaf = FAKE_SRUN.replace("while not heard", "while len(heard) < 3")
    (repository.parent / "bin/srun").write_text(deaf)
    done = run_batch(repository, TASK_STATUS="75", SIGNAL_BATCH_SHELL="10")
    assert done.returncode == 75
