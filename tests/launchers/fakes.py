"""Commands of SLURM that take notes, and scripts that run beside them."""

import json
import os
import shutil
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

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


def make_repository(folder: Path) -> Path:
    """A folder that looks like the repository to the scripts; commands there only take notes."""
    shutil.copytree(ROOT / "launchers", folder / "repo/launchers")
    (folder / "repo/train.py").touch()
    (folder / "bin").mkdir()
    commands = {"srun": FAKE_SRUN, "scontrol": FAKE_SCONTROL, "sinfo": FAKE_SINFO}
    for name, content in (commands | {"py thon": FAKE_PYTHON}).items():
        (folder / "bin" / name).write_text(content)
        (folder / "bin" / name).chmod(0o755)
    return folder / "repo"


def run_script(
    folder: Path, script: str, *arguments: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run a script in a folder, beside which the commands are."""
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


def run_batch(
    repository: Path, *arguments: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run as sbatch would on two nodes of two tasks."""
    slurm = {
        "SLURM_JOB_ID": "4242",
        "SLURM_JOB_NODELIST": "node[07-08]",
        "SLURM_NTASKS": "4",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_SUBMIT_DIR": str(repository),
    }
    return run_script(
        repository, "glm_large", *arguments, **{"PYTHON": "python3", **slurm, **environ}
    )


def in_job(repository: Path, *arguments: str, **environ: str) -> tuple[list[str], dict[str, str]]:
    """Return srun's arguments in a job whose tasks fail with status 3."""
    done = run_batch(repository, *arguments, **environ)
    assert done.returncode == 3, done.stderr  # the fake task's, not swallowed
    notes = json.loads((repository.parent / "notes").read_text())
    return notes["argv"], notes["environ"]
