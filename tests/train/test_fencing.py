"""Real jobs whose run folder goes, or is taken over, while they train."""

import os
from functools import partial
from pathlib import Path

import pytest

from glm_dist.cli.main import main_train
from tests.train.jobs import make_files, with_ranks

LOSSES = {
    "removed": "import shutil; shutil.rmtree(run)",
    "taken": "lock = run / 'lock'; lock.unlink(); lock.write_text('host b, process 7, attempt 2')",
}


def losing_program(how: str, run: Path) -> int:
    """``train.py`` that loses its run folder in the third step."""
    from glm_dist.train.task import Pretraining

    kept, calls = Pretraining.loss, []

    def loss(self: Pretraining, *arguments: object) -> object:
        calls.append(1)
        if len(calls) == 3 and os.environ["RANK"] == "0":
            exec(LOSSES[how], {"run": run})
        return kept(self, *arguments)  # type: ignore[arg-type]

    Pretraining.loss = loss  # type: ignore[assignment,method-assign]
    return main_train()


def lose(folder: Path, how: str, *overrides: str) -> str:
    """Run two ranks that lose their folder; return what they print."""
    run = folder / "runs" / how
    job = [*make_files(folder), f"run.name={how}", "parallel=dp2", "evaluation.interval=0"]
    results = with_ranks([*job, *overrides], 2, program=partial(losing_program, how, run))
    assert [done.returncode for done in results] == [76, 76], [done.stderr for done in results]
    return "".join(done.stderr for done in results)


def test_a_run_folder_that_was_removed_ends_the_job_and_stays_removed(tmp_path: Path) -> None:
    said = lose(tmp_path, "removed", "checkpoint.interval=0", "observe.log_interval=1")
    assert f"The run folder {tmp_path}/runs/removed is gone: it was removed or renamed" in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs" / "removed").exists()


@pytest.mark.parametrize("background", ["false", "true"])
def test_a_job_that_was_taken_over_ends_at_its_next_save(tmp_path: Path, background: str) -> None:
    said = lose(
        tmp_path,
        "taken",
        "checkpoint.interval=1",
        f"checkpoint.background={background}",
        "observe.log_interval=1000",
    )
    assert said.count("is superseded: lock belongs to host b, process 7, attempt 2") == 1
    assert "Traceback" not in said
    run = tmp_path / "runs" / "taken"
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    # In the background the save of step 2 may still be in flight when the folder changes hands.
    in_flight = kept == ["step_0000001"] and background == "true"
    assert in_flight or kept == ["step_0000001", "step_0000002"]
    assert '"step": 3' not in (run / "metrics.jsonl").read_text()
