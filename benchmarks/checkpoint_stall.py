"""Training time that a checkpoint costs: waiting for it, or copying it and writing in a thread.

In every round: `dd` with fsync of as many bytes, reading and hashing them, a save that training
waits for, and in turns steps alone and steps while a save runs in the background. One row per
number of torch's threads: with fewer threads than cores, the thread that writes has a core;
otherwise it shares with training.

A save hashes what it writes, and reads it back to hash it again. So a disk that is faster than
SHA-256 cannot show in its throughput: "of dd and hashes" compares with the same work by itself.
"""

import argparse
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Report, machine, options, parse, timed
from benchmarks.problems import device, glm, model_config, one_process, span_micro_batches
from benchmarks.step import run_config
from glm_dist.checkpoint.background import BackgroundWriter, folder_bytes
from glm_dist.config.schema import Dtype, LossNormalization
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.files import sha256_of
from glm_dist.model.stage import GLMShard
from glm_dist.optim.state import Rates
from glm_dist.train.deepspeed_config import deepspeed_config
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.state import save_state, training_fragments
from glm_dist.train.step import train_step
from glm_dist.train.task import Pretraining

STEPS_ALONE = 6
"""Before each save in the background."""


@dataclass
class Seconds:
    """Measured seconds, over all rounds."""

    dd: list[float] = field(default_factory=list)
    hash: list[float] = field(default_factory=list)
    """Of reading what dd wrote, and hashing it."""
    save: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    """Mean of the steps before each save in the background."""
    stall: list[float] = field(default_factory=list)
    during: list[float] = field(default_factory=list)
    """Mean of the steps during which it ran from their beginning to their end."""
    background: list[float] = field(default_factory=list)


class Training:
    """Steps of one engine on the same micro-batches, and saves of it."""

    def __init__(self, engine: TrainingEngine, rows: Sequence[MicroBatch], folder: Path) -> None:
        self._engine = engine
        self._rows = rows
        self._folder = folder
        self._writer = BackgroundWriter(device(), timeout=timedelta(minutes=10))
        self._steps = 0
        self.step()
        self._writer.reserve(training_fragments(engine))

    def step(self) -> float:
        """Train one step; return its seconds."""
        self._steps += 1
        return timed(
            lambda: train_step(
                self._engine,
                self._rows,
                rates=Rates.known(1e-4),
                normalize_by=LossNormalization.global_tokens,
                device=device(),
            )
        )

    def save(self) -> Path:
        """Save, and wait."""
        path = self._folder / "waited"
        return save_state(self._engine, path, step=self._steps, extra={}, keep_last=1)

    def dd(self, num_bytes: int, found: Seconds) -> None:
        """Write as many bytes with dd, then read and hash them."""
        file = self._folder / "dd"
        command = ["dd", "if=/dev/zero", f"of={file}", "bs=1M", f"count={num_bytes >> 20}"]
        started = time.perf_counter()
        subprocess.run([*command, "conv=fsync"], check=True, capture_output=True)
        found.dd.append(time.perf_counter() - started)
        found.hash.append(timed(lambda: sha256_of(file)))
        file.unlink()

    def train_during_save(self, found: Seconds) -> None:
        """Train for a moment, then while a save runs in the background."""
        path = self._folder / "begun"
        alone = [self.step() for _ in range(STEPS_ALONE)]
        during: list[float] = []
        found.stall.append(
            timed(
                lambda: save_state(
                    self._engine,
                    path,
                    step=self._steps,
                    extra={},
                    keep_last=1,
                    write=self._writer.start,
                )
            )
        )
        while True:
            seconds = self.step()
            outcome = self._writer.poll()
            if outcome is not None:
                break
            during.append(seconds)
        if outcome.error is not None:
            raise outcome.error
        found.background.append(outcome.seconds)
        if during:
            found.alone.append(statistics.mean(alone))
            found.during.append(statistics.mean(during))


def measure(training: Training, *, threads: int, rounds: int, saves: int) -> dict[str, Any]:
    """Measure with some threads; return a row of the table."""
    torch.set_num_threads(threads)
    found = Seconds()
    num_bytes = folder_bytes(training.save())
    training.train_during_save(Seconds())  # not measured
    for _ in range(rounds):
        training.dd(num_bytes, found)
        found.save.append(timed(training.save))
        for _ in range(saves):
            training.train_during_save(found)
    save, stall, background, dd, hashing, alone, during = (
        statistics.median(each)
        for each in (
            found.save,
            found.stall,
            found.background,
            found.dd,
            found.hash,
            found.alone,
            found.during,
        )
    )
    megabytes = num_bytes / 1e6
    return {
        "threads": threads,
        "MB": megabytes,
        "save s": save,
        "stall s": stall,
        "stall of save": stall / save,
        "step ms": 1e3 * alone,
        "step during save ms": 1e3 * during,
        "speed during save": statistics.median(
            a / b for a, b in zip(found.alone, found.during, strict=True)
        ),
        "background s": background,
        "background MB/s": megabytes / background,
        "dd MB/s": megabytes / dd,
        "of dd": dd / background,
        "of dd and hashes": (dd + 2 * hashing) / background,
    }


def engine_of(chosen: argparse.Namespace) -> TrainingEngine:
    """Build the model and its optimizer in this process."""
    groups = one_process()
    model = replace(
        model_config("tiny", positions=chosen.row_length, dropout=0.0),
        num_layers=chosen.layers,
        hidden_size=chosen.hidden_size,
        num_attention_heads=chosen.hidden_size // 64,
    )
    config = run_config(model, steps=1, micro_batches=1, rows=1, row_length=chosen.row_length)
    return TrainingEngine(
        GLMShard([glm(model, groups, dtype=Dtype.fp32, device=device())]),
        Pretraining(),
        config.optimizer,
        deepspeed_config=deepspeed_config(config, world_size=1),
        groups=groups,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = options(__doc__, rounds=5)
    parser.add_argument("--hidden-size", type=int, default=384, help="default %(default)s")
    parser.add_argument("--layers", type=int, default=6, help="default %(default)s")
    parser.add_argument("--row-length", type=int, default=64, help="default %(default)s")
    parser.add_argument("--saves", type=int, default=3, help="per round (default %(default)s)")
    parser.add_argument("--folder", type=Path, help="disk to write to (default: the system's)")
    chosen = parse(parser, arguments)
    report = Report("checkpoint_stall", "Training time that checkpoints cost", machine())
    rows = span_micro_batches(1, rows=1, row_length=chosen.row_length)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        training = Training(engine_of(chosen), rows, Path(folder))
        for threads in range(1, chosen.threads + 1):
            report.rows.append(
                measure(training, threads=threads, rounds=chosen.rounds, saves=chosen.saves)
            )
    report.notes += [
        "Medians over saves; speeds are compared with the steps just before."
        " Seconds of a save in the background run from the copy to the renamed, verified folder.",
        "Asked for: stall of save at most 0.1, speed during save at least 0.9, of dd at least 0.7.",
    ]
    report.save(chosen.output)


if __name__ == "__main__":
    main()
