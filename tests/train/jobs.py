"""A tiny pretraining job from the command line: its files, its arguments, and ways to start it.

Real launchers start real processes, which import torch and DeepSpeed for ten seconds each; the
other ways fork processes that have imported them (``tests/ranks.py``) and run the same program.
"""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from glm_dist.cli.main import main, main_train
from tests.data.corpora import VOCAB_SIZE, make_documents, write_corpus, write_vocabulary
from tests.environment import CPU_ONLY, ONE_THREAD
from tests.ranks import run_programs

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
TIMEOUT_SECONDS = 240


def make_files(folder: Path) -> list[str]:
    """Write a vocabulary and a corpus; return the overrides for them.

    The job is deterministic and small: 2 layers, 6 rows of 96 tokens a step, no dropout.
    """
    vocabulary = write_vocabulary(folder)
    prefix = write_corpus(folder, "words", make_documents(60))
    return [
        "model=tiny",
        "model.num_layers=2",
        "model.hidden_size=32",
        "model.num_attention_heads=2",
        "model.hidden_dropout=0.0",
        "model.attention_dropout=0.0",
        "tokenizer=bert",
        f"tokenizer.path={vocabulary}",
        f"tokenizer.vocab_size={VOCAB_SIZE}",
        "tokenizer.task_masks=true",
        "data=single",
        f"data.corpora.text.prefix={prefix}",
        "data.validation_share=0.1",
        "data.num_workers=0",
        "corruption=glm_mixed",
        "batch.global_batch_size=4",
        "batch.micro_batch_size=2",
        "batch.row_length=96",
        "optimizer.learning_rate=1e-3",
        "lr_schedule.decay_steps=10",
        "lr_schedule.warmup_share=0.2",
        "run.steps=4",
        "evaluation.interval=2",
        "evaluation.rows_per_objective=4",
        "checkpoint.interval=2",
        "checkpoint.keep_last=3",
        "observe.log_interval=1",
        f"paths.runs={folder / 'runs'}",
    ]


def make_saving_files(folder: Path, *, steps: int, interval: int, keep_last: int) -> list[str]:
    """As ``make_files``, for two replicas that save in the background and do not validate."""
    return [
        *make_files(folder),
        "parallel=dp2",
        "zero=stage1",
        f"run.steps={steps}",
        "evaluation.interval=0",
        "checkpoint.background=true",
        f"checkpoint.interval={interval}",
        f"checkpoint.keep_last={keep_last}",
    ]


def free_port() -> int:
    """Return a free TCP port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def clean_environment(*, device: str = "cpu", **variables: str) -> dict[str, str]:
    """The environment of a user's shell, with this Python's programs, that sees GPUs or not."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not re.match("SLURM_|TORCHELASTIC_|MASTER_|(LOCAL_)?(RANK|WORLD_SIZE)$", name)
    }
    return kept | {
        "PATH": f"{BIN}{os.pathsep}{kept.get('PATH', '')}",
        **ONE_THREAD,
        **(CPU_ONLY if device == "cpu" else {}),
        **variables,
    }


def start(
    command: list[str], *, device: str = "cpu", **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in the project's root and wait for it."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=clean_environment(device=device, **variables),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_SECONDS,
        check=False,
    )


def with_python(overrides: list[str], *, device: str = "cpu") -> subprocess.CompletedProcess[str]:
    """One process, no launcher."""
    if device != "cpu":  # a process that has met CUDA must not be forked
        return start([sys.executable, "train.py", *overrides], device=device)
    (done,) = run_programs(main_train, ["train.py", *overrides], [clean_environment()])
    return done


def glm_dist_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """``glm-dist``."""
    (done,) = run_programs(main, ["glm-dist", *arguments], [clean_environment()])
    return done


def with_ranks(
    overrides: list[str], processes: int, *, program: Callable[[], int] = main_train
) -> list[subprocess.CompletedProcess[str]]:
    """Ranks side by side, with the variables that any launcher exports."""
    return run_programs(program, ["train.py", *overrides], rank_environments(processes))


def rank_environments(processes: int) -> list[dict[str, str]]:
    """Environment of each rank of a job, as any launcher exports it."""
    port = str(free_port())
    return [
        clean_environment(
            RANK=str(rank),
            WORLD_SIZE=str(processes),
            LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE=str(processes),
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank in range(processes)
    ]


def with_srun(overrides: list[str], processes: int) -> list[subprocess.CompletedProcess[str]]:
    """Ranks side by side, with the variables that srun sets for its tasks."""
    port, size = str(free_port()), str(processes)
    environments = [
        clean_environment(
            SLURM_JOB_ID="4711",
            SLURM_STEP_ID="0",
            SLURM_PROCID=str(rank),
            SLURM_LOCALID=str(rank),
            SLURM_NTASKS=size,
            SLURM_STEP_NUM_TASKS=size,
            SLURM_NNODES="1",
            SLURM_NTASKS_PER_NODE=size,
            SLURM_STEP_TASKS_PER_NODE=size,
            SLURM_TASKS_PER_NODE=size,
            SLURM_NODEID="0",
            SLURM_JOB_NODELIST="localhost",
            SLURM_STEP_NODELIST="localhost",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=port,
        )
        for rank in range(processes)
    ]
    return run_programs(main_train, ["train.py", *overrides], environments)


def with_torchrun(overrides: list[str], processes: int) -> subprocess.CompletedProcess[str]:
    """``torchrun``."""
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}"]
    return start([*launcher, f"--master-port={free_port()}", "train.py", *overrides])


def with_deepspeed(overrides: list[str], processes: int) -> subprocess.CompletedProcess[str]:
    """``deepspeed``, which inserts --local_rank after the script's name."""
    launcher = [str(BIN / "deepspeed"), "--num_accelerators", str(processes)]
    return start([*launcher, "--master_port", str(free_port()), "train.py", *overrides])
