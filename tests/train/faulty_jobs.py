"""Whole training jobs in this process with faults at known rows and steps."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist

from glm_dist.config.load import load_config
from glm_dist.config.schema import RunConfig
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.errors import TrainingError
from glm_dist.observe.events import EventsSink, read_events
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.groups import build_groups
from glm_dist.parallel.layout import Layout
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.job import build_engine
from glm_dist.train.loop import LoopContext, train
from glm_dist.train.preemption import StopRequest
from glm_dist.train.rows import RunRows
from glm_dist.train.same_run import passed_over, stability_memory
from glm_dist.train.start import starting_point
from glm_dist.train.task import Pretraining, TaskLoss
from glm_dist.train.workload import open_pretraining
from tests.train.grid import whole_weights
from tests.train.jobs import make_files
from tests.train.test_precision import poison


class FaultyRows(RunRows):
    """Rows of a run; one of them, or one step, has a fault."""

    factors: ClassVar[list[float]] = []
    fault, at = "", -1

    def prepare(self, engine: TrainingEngine, done: int, fault: str, at: int) -> "FaultyRows":
        self._engine, self._step, self.fault, self.at = engine, done, fault, at
        self._heal: Callable[[], None] = lambda: None
        return self

    def reopen(self, *, done: int) -> None:
        self._step = done
        super().reopen(done=done)

    def __next__(self) -> Sequence[MicroBatch]:
        self._step += 1
        self._heal()
        self._heal = lambda: None
        if self.fault == "bad_row_and_disk" and self._step == 6:
            self.fault = "bad_row"
            damage(self._config.run_dir / "checkpoints" / "step_0000004")
        bad = {"bad_row": float("nan"), "huge_row": 1000.0}.get(self.fault, 1.0)
        FaultyRows.factors[:] = [
            bad if self.at in rows else 1.0 for rows in self.indices(self._step)
        ]
        if self._step == self.at:
            self._strike()
        return super().__next__()

    @torch.no_grad()
    def _strike(self) -> None:
        if self.fault == "bad_gradient":
            self._heal = poison(self._engine)
        if self.fault == "tripled":
            for shard in self._engine.shards:
                shard.parameter.mul_(3.0)
        if self.fault == "odd_replica" and dist.get_rank() == 1:
            self._engine.shards[2].parameter.view(-1)[0] += 1.0


class LossSink(EventsSink):
    """Events, and the loss of each step; the share of targets in each record."""

    shares: ClassVar[dict[int, float]] = {}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        file = self._path.with_name(self._path.name.replace("events", "losses"))
        self.shares[step] = values.get("rows/target_share", -1.0)
        losses = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**losses, str(step): values.get("train/loss")}))


def damage(checkpoint: Path) -> None:
    file = checkpoint / "__0_0.distcp"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def faulty_loss(plain: Callable[..., TaskLoss]) -> Callable[..., TaskLoss]:
    """Multiply the loss of each micro-batch by the next factor."""

    def loss(*arguments: Any) -> TaskLoss:
        found = plain(*arguments)
        return TaskLoss(found.total * FaultyRows.factors.pop(0), found.metrics)

    return loss


def layout_of(config: RunConfig) -> Layout:
    return Layout.from_config(config, dist.get_world_size())


def run_job(
    overrides: list[str], fault: str, at: int, last: int | None = None
) -> tuple[str, dict[str, np.ndarray]]:
    """Train on from what the run folder holds; how it ended, and the weights."""
    enable_cpu()
    config = load_config(overrides)
    if last is not None:
        config = replace(config, run=replace(config.run, steps=last))
    groups = build_groups(layout_of(config), timedelta(seconds=60))
    workload = open_pretraining(config)
    device, world = torch.device("cpu"), dist.get_world_size()
    engine = build_engine(config, groups, device=device, world_size=world)
    identity: Mapping[str, Any] = {"data": workload.fingerprint()}
    start = starting_point(config, engine, identity)
    skipped = passed_over(start.extra)
    rows = FaultyRows(config, workload.rows, groups, done=start.step, passed_over=skipped)
    config.run_dir.mkdir(parents=True, exist_ok=True)
    # Every rank writes its events, so that they can be compared.
    file = config.run_dir / f"events_{dist.get_rank()}.jsonl"
    run = LoopContext(
        config=config,
        engine=engine,
        rows=rows.prepare(engine, start.step, fault, at),
        workload=workload,
        stop_request=StopRequest(),
        sink=LossSink(file, attempt=1, first_step=start.step),
        checkpoints=config.run_dir / "checkpoints",
        identity=identity,
        device=device,
        saved=stability_memory(start.extra),
    )
    plain = Pretraining.loss
    Pretraining.loss = faulty_loss(plain)  # type: ignore[method-assign]
    end = "finished"
    try:
        train(run, first_step=start.step)
    except TrainingError as error:
        end = str(error)
    finally:
        Pretraining.loss = plain  # type: ignore[method-assign]
    return end, whole_weights(engine) if end == "finished" else {}


def base(folder: Path, name: str, *more: str) -> list[str]:
    """A run of 8 steps of 4 rows: rows 20 to 23 are read in step 6."""
    return [
        *make_files(folder),
        f"run.name={name}",
        "run.steps=8",
        "evaluation.interval=0",
        "checkpoint.interval=2",
        "checkpoint.keep_last=9",
        "zero=stage1",
        "stability.window=4",
        *more,
    ]


def happened(folder: Path, name: str, rank: int = 0) -> list[tuple[str, int, dict[str, Any]]]:
    events = read_events(folder / "runs" / name / f"events_{rank}.jsonl")
    return [(each["kind"], each["step"], each["details"]) for each in events]


def kinds(folder: Path, name: str, rank: int = 0) -> list[tuple[str, int]]:
    unusual = [(kind, step) for kind, step, _ in happened(folder, name, rank)]
    return [each for each in unusual if each[0] not in ("started", "checkpoint")]
