"""Records, divergence checks and checkpoints of the loop: one process, with a failing step."""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch

from glm_dist.config.load import load_config
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.errors import TrainingError
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.groups import build_groups
from glm_dist.parallel.layout import Layout
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.job import build_engine
from glm_dist.train.loop import LoopContext, train
from glm_dist.train.preemption import StopRequest
from glm_dist.train.rows import RunRows
from glm_dist.train.workload import open_pretraining
from tests.ranks import run_ranks
from tests.train.jobs import make_files
from tests.train.test_precision import poison


@dataclass
class Records:
    """A sink that keeps what it is given."""

    by_step: dict[int, dict[str, float]] = field(default_factory=dict)
    events: list[str] = field(default_factory=list)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.by_step.setdefault(step, {}).update(values)

    def event(self, step: int, name: str, values: Mapping[str, object]) -> None:
        self.events.append(name)

    def close(self) -> None:
        pass


class PoisonedRows(RunRows):
    """Rows of a run; in one step a weight has an infinite gradient."""

    def poison(self, engine: TrainingEngine, *, step: int) -> "PoisonedRows":
        """Choose the step, counted from the first one that is read."""
        self._engine, self._countdown = engine, step
        self._heal: Callable[[], None] = lambda: None
        return self

    def __next__(self) -> Sequence[MicroBatch]:
        self._heal()
        self._countdown -= 1
        self._heal = poison(self._engine) if self._countdown == 0 else lambda: None
        return super().__next__()


def train_poisoned(overrides: list[str], step: int) -> tuple[Records, list[str], str]:
    """Records, checkpoints, and how the run ended."""
    return run_poisoned(overrides, step)[:3]


def run_poisoned(
    overrides: list[str], step: int, name: str = "poisoned"
) -> tuple[Records, list[str], str, TrainingEngine]:
    """The same, and the engine at the end."""
    enable_cpu()
    config = load_config([*overrides, f"run.name={name}"])
    config.run_dir.mkdir(parents=True)
    if config.precision.dtype.name == "fp16":
        from deepspeed.accelerator import get_accelerator

        get_accelerator().is_fp16_supported = lambda: True
    groups = build_groups(Layout(1, 1, 1), timedelta(seconds=60))
    device = torch.device("cpu")
    engine = build_engine(config, groups, device=device, world_size=1)
    workload = open_pretraining(config)
    rows = PoisonedRows(config, workload.rows, groups, done=0)
    sink = Records()
    run = LoopContext(
        config=config,
        engine=engine,
        rows=rows.poison(engine, step=step),
        workload=workload,
        stop_request=StopRequest(),
        sink=sink,
        checkpoints=config.run_dir / "checkpoints",
        identity={},
        device=device,
    )
    end = "finished"
    try:
        train(run, first_step=0)
    except TrainingError as error:
        end = str(error)
    return sink, sorted(p.name for p in run.checkpoints.glob("step_*")), end, engine


def test_an_infinite_gradient_ends_the_run_in_its_step(tmp_path: Path) -> None:
    overrides = [
        *make_files(tmp_path),
        "zero=stage0",
        "stability=stop",
        "run.steps=6",
        "evaluation.interval=0",
        "checkpoint.interval=2",
        "observe.log_interval=100",
    ]

    ((records, checkpoints, end),) = run_ranks(train_poisoned, overrides, 3, world_size=1)

    assert list(records.by_step) == [1]
    assert checkpoints == ["step_0000002"]
    host = socket.gethostname()
    assert end == (
        "The gradient norm is inf in step 3; no weight was changed.\n"
        f"  rank 0 on {host}: 1 gradient is not finite:"
        " decoder.layers.0.mlp.linear_fc1.weight\n"
        "  The loss of every micro-batch is finite: the value arose in backward, or on a faulty"
        " device.\n"
        "Continue from step_0000002 in a new run with a lower learning rate:\n"
        f"  run.name=poisoned_2 run.init_from={tmp_path}/runs/poisoned "
        "run.init_with=weights_and_optimizer optimizer.learning_rate=0.0005\n"
        "  Or continue this run without these rows: 'data.skip_rows=[8-11]'"
    )


def test_dropped_updates_are_recorded_and_do_not_advance_the_rate(tmp_path: Path) -> None:
    overrides = [
        *make_files(tmp_path),
        "precision=fp16",
        "precision.initial_loss_scale_power=8",
        "precision.loss_scale_hysteresis=1",
        "zero=stage1",
        "evaluation.interval=0",
    ]

    ((records, checkpoints, end),) = run_ranks(train_poisoned, overrides, 2, world_size=1)

    assert end == "finished"
    assert set(records.events) == {"checkpoint"}  # an overflow is nothing unusual
    assert checkpoints == ["step_0000002", "step_0000004"]
    assert [records.by_step[step]["train/skipped_steps"] for step in (1, 2, 3, 4)] == [0, 1, 1, 1]
    # An overflow halves 2**8.
    assert [records.by_step[step]["train/loss_scale"] for step in (1, 2, 3, 4)] == [
        256,
        128,
        128,
        128,
    ]
    # Warm-up to 1e-3 in 0.2 * 10 = 2 updates; before steps 1 to 4 there were 0, 1, 1 and 2.
    rates = [records.by_step[step]["train/learning_rate"] for step in (1, 2, 3, 4)]
    assert rates == [0.0, 5e-4, 5e-4, 1e-3]
