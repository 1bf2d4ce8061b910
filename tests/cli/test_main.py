"""The command line as launchers and users call it; ``train.py`` as a process, with its status."""

import errno
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import Mock

import pytest

from glm_dist import __version__
from glm_dist.cli import config
from glm_dist.cli.main import COMMANDS, main
from tests.environment import CPU_ONLY
from tests.messages import Says

ROOT = Path(__file__).resolve().parents[2]
DEEPSPEED = {
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_SIZE": "2",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run python with a user's environment, without what a launcher around the tests exported."""
    launched = r"SLURM_|TORCHELASTIC_|MASTER_|LOCAL_SIZE|GLM_|(LOCAL_)?(RANK|WORLD_SIZE)$"
    kept = {name: value for name, value in os.environ.items() if not re.match(launched, name)}
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=kept | CPU_ONLY | variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@dataclass(frozen=True)
class Done:
    """How a command ended and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def glm_dist(capsys: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    """``glm-dist`` in this process."""

    def call(*arguments: str) -> Done:
        try:
            status = main(arguments)
        except SystemExit as end:  # argparse's, after --help and on an unknown command
            status = int(end.code or 0)
        written = capsys.readouterr()
        return Done(status, written.out, written.err)

    return call


def test_the_version_needs_no_command(glm_dist: Callable[..., Done]) -> None:
    done = glm_dist("--version")
    assert done.returncode == 0
    assert done.stdout.startswith(f"glm-dist {__version__}")
    assert done.stdout.count("\n") == 1


def test_argument_that_launchers_insert_is_accepted() -> None:
    rank_0 = DEEPSPEED | {"RANK": "0", "LOCAL_RANK": "0"}
    typed = ["train.py", "--local_rank=0", "experiment=quickstart", "--cfg", "job"]
    done = run(*typed, **rank_0)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("config_version: 1\nrun:\n  name: quickstart\n")


def test_configuration_is_printed_with_overrides_on_both_sides() -> None:
    done = run("train.py", "experiment=tiny", "--cfg", "job", "run.steps=7", "parallel=single")
    assert (done.returncode, done.stderr) == (0, "")
    assert "  steps: 7\n" in done.stdout
    assert "  data_parallel_size: 1\n" in done.stdout


def test_only_rank_0_speaks_of_a_mistake_that_all_ranks_meet() -> None:
    typed = ["train.py", "--local_rank=1", "experiment=quickstart", "model.num_layer=3"]
    first = run(*typed, **DEEPSPEED | {"RANK": "0", "LOCAL_RANK": "0"})
    second = run(*typed, **DEEPSPEED)
    assert (first.returncode, first.stdout) == (2, "")
    assert first.stderr.startswith("ConfigError: model has no key num_layer; it has activation,")
    assert (second.returncode, second.stdout, second.stderr) == (2, "", "")


def test_missing_files_are_told_once_per_node(tmp_path: Path) -> None:
    typed = ["train.py", "experiment=quickstart"]
    typed += [f"paths.data={tmp_path}", f"paths.runs={tmp_path / 'runs'}"]
    first = run(*typed, **DEEPSPEED | {"RANK": "0", "LOCAL_RANK": "0"})
    second = run(*typed, **DEEPSPEED)
    assert first.returncode == second.returncode == 2
    assert first.stderr == (
        f"DataError: {tmp_path}/quickstart/tokenizer.model does not exist; it should be a "
        "vocabulary, or a folder with *.model.\n"
        "  Check tokenizer.path, or make a new tokenizer with glm-dist tokenizer train.\n"
    )
    assert second.stderr == ""


def test_contradictory_launch_is_told_by_the_rank_that_sees_it() -> None:
    done = run("train.py", "experiment=tiny", **DEEPSPEED | {"RANK": "2"})
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"rank 2 on {socket.gethostname()}: LaunchError: RANK=2 must be less than WORLD_SIZE=2.\n"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--multirun", "experiment=tiny"],
        ["-m", "experiment=tiny"],
        ["experiment=tiny", "--learning-rate", "--fast"],
        [],
    ],
    ids=["multirun", "multirun in short", "unknown options", "nothing"],
)
def test_wrong_command_line_is_answered_with_one_message(arguments: list[str], says: Says) -> None:
    done = run("train.py", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    says(done.stderr)


def test_help_of_the_program_lists_every_command(glm_dist: Callable[..., Done]) -> None:
    done = glm_dist("--help")
    assert done.returncode == 0
    assert not [name for name in COMMANDS if not re.search(rf"(?m)^ +{name}\b", done.stdout)]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str, glm_dist: Callable[..., Done]) -> None:
    done = glm_dist(command, "--help")
    assert done.returncode == 0, done.stderr
    # Usage, then what it is for in words, then its arguments.
    assert re.search(rf"(?s)^usage: glm-dist {command} .*\n\n[A-Z`][^\n]+\n.*options:", done.stdout)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [([], "required: <command>"), (["pretrain"], "invalid choice: 'pretrain'")],
    ids=["no command", "unknown command"],
)
def test_program_without_a_command_it_knows_says_so(
    arguments: list[str], words: str, glm_dist: Callable[..., Done]
) -> None:
    done = glm_dist(*arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_check_describes_the_job_without_its_files(glm_dist: Callable[..., Done]) -> None:
    typed = ["check", "experiment=glm_large", "parallel=tp2_pp2", "--processes", "8", "--no-files"]
    done = glm_dist(*typed)
    assert done.stderr == ""
    # 8 processes / (2 x 2) = 2 replicas; 1024 rows / (2 x 16) = 32 micro-batches;
    # 1024 x 564 = 577 536 tokens a step, times 200 000 steps.
    assert done.stdout == (
        "run         glm_large, 200,000 steps\n"
        "processes   8 = tp 2 x pp 2 x dp 2, ZeRO 1, fp16\n"
        "model       334,688,256 parameters: 24 layers, hidden 1024, 16 heads, vocabulary 30,524 "
        "padded to 30,592\n"
        "step        1,024 rows x 564 = 577,536 tokens; 32 micro-batches of 16 rows on each "
        "replica\n"
        "tokens      115,507,200,000 in all steps\n"
        "memory      7.24 GiB on a GPU, rank 0, stage 0 of 2\n"
        # Half of 12 layers, of half the word table and of two tables of 513 rows: 92 M parameters.
        # 9024 tokens: four times hidden states and the inside of an MLP, 4 x 17.6 + 35.3 MiB.
        "            weights 176.1 MiB, gradients 352.2 MiB, optimizer 528.3 MiB, activations "
        "4.14 GiB, buffers 105.8 MiB, margin 1.96 GiB\n"
        "files       not checked\n"
        "start       deepspeed --num_accelerators 8 train.py experiment=glm_large "
        "parallel=tp2_pp2\n"
        "            torchrun --nproc-per-node 8 train.py experiment=glm_large parallel=tp2_pp2\n"
        "            srun --nodes=1 --ntasks=8 python train.py experiment=glm_large "
        "parallel=tp2_pp2\n"
    )


def test_check_refuses_a_job_that_would_not_start(glm_dist: Callable[..., Done]) -> None:
    done = glm_dist("check", "experiment=glm_large", "--processes", "48", "--no-files")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("ConfigError: batch.global_batch_size=1024 is not a multiple of")


def test_config_prints_the_reference(glm_dist: Callable[..., Done]) -> None:
    done = glm_dist("config", "--reference")
    assert done.stdout == (ROOT / "docs" / "config.md").read_text(encoding="utf-8")


def test_help_lists_groups_and_options(glm_dist: Callable[..., Done]) -> None:
    done = glm_dist("train", "--help")
    for group in sorted((ROOT / "conf").glob("*/*.yaml")):
        assert re.search(rf"\b{re.escape(group.stem)}\b", done.stdout), group


@pytest.mark.parametrize(
    ("raised", "status", "stderr"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 2, "OSError: /x: No space left"),
        (PermissionError(errno.EACCES, "Permission denied", "/y"), 2, "PermissionError: /y: Perm"),
        (KeyboardInterrupt(), 130, "glm-dist config: interrupted"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_bug_is_one_line(
    raised: BaseException,
    status: int,
    stderr: str,
    glm_dist: Callable[..., Done],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(config, "run", Mock(side_effect=raised))
    done = glm_dist("config")
    assert (done.returncode, done.stdout) == (status, "")
    assert done.stderr.startswith(stderr)
    assert done.stderr.count("\n") == 1


def test_a_bug_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "run", Mock(side_effect=KeyError("split")))
    with pytest.raises(KeyError):
        main(["config"])


@pytest.mark.parametrize(
    ("shell", "status", "stderr"),
    [
        ("{command} | true; exit ${{PIPESTATUS[0]}}", 141, ""),
        ("{command} <&- >&-", 0, ""),
        ("{command} > /dev/full", 2, "OSError: No space left on device\n"),
    ],
    ids=["closed pipe", "closed streams", "full device"],
)
def test_output_that_cannot_be_written_leaves_no_traceback(
    shell: str, status: int, stderr: str
) -> None:
    command = f"{sys.executable} -m glm_dist config --reference"
    done = subprocess.run(
        ["bash", "-c", shell.format(command=command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (status, stderr)
