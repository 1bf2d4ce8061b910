"""Which processes above a rank are its launchers, and which may leave."""

import subprocess
import sys
from pathlib import Path

import pytest

from glm_dist.ancestors import LAUNCHERS, program_of

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("command", "program"),
    [
        ("/usr/bin/python3 /opt/bin/torchrun --nproc-per-node 2 train.py", "torchrun"),
        ("python -u -m deepspeed.launcher.launch --world_info=e30=", "deepspeed.launcher.launch"),
        ("python3.11 -W ignore -m torch.distributed.run train.py", "torch.distributed.run"),
        ("python /env/bin/deepspeed train.py", "deepspeed"),
        ("srun --kill-on-bad-exit=1 python train.py", "srun"),
        ("python -m glm_dist sweep finetune", "glm_dist"),
        ("tmux new -s run deepspeed train.py", "tmux"),
        ("-bash", "bash"),
        ("bash -c deepspeed_train", "bash"),
        ("slurmstepd: [4711.0]", "slurmstepd"),
        ("python -c import_torchrun", "python"),
        ("", ""),
    ],
)
def test_a_command_line_names_its_program(command: str, program: str) -> None:
    assert program_of(command.split()) == program


def test_a_multiplexer_or_shell_is_no_launcher() -> None:
    assert not {"bash", "tmux", "screen", "sshd", "python", ""} & LAUNCHERS


def test_a_sweep_is_watched_behind_the_launcher_that_it_starts() -> None:
    assert {"glm-dist", "glm_dist"} <= LAUNCHERS


@pytest.mark.parametrize(
    ("parent", "watched"),
    [(["bash", "-c", '"$@"; exit $?', "bash"], []), (["timeout", "60"], ["timeout"])],
    ids=["a shell may leave", "a supervisor may not"],
)
def test_a_parent_is_watched_unless_it_may_leave(parent: list[str], watched: list[str]) -> None:
    # The shell or supervisor stands below this test's process, which is no launcher.
    tells = "from glm_dist.ancestors import watched_ancestors as w; print([a.name for a in w()])"

    told = subprocess.run(
        [*parent, sys.executable, "-c", tells], cwd=ROOT, capture_output=True, text=True, check=True
    )

    assert told.stdout == f"{watched}\n"
