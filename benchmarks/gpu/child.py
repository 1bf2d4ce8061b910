"""One contestant in one process: ``python -m benchmarks.gpu.child JOB FILE [--wait]``.

JOB is a job as JSON. Every result is appended to FILE as a line of JSON as soon as it is known, so
that what follows may fail. With --wait everything is imported, and the work begins once a line
arrives on standard input: imports then cost no time of the machine.
"""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.ceilings import ceilings
from benchmarks.gpu.contestants import CEILINGS, GPT, MICRO_BATCHES, Job
from benchmarks.gpu.device_time import device_figures, longest, recorded
from benchmarks.gpu.gpt import AllPositions, GPTStage
from benchmarks.problems import (
    VOCAB_SIZE,
    device,
    model_config,
    one_process,
    span_micro_batches,
)
from glm_dist.config.load import load_config
from glm_dist.config.schema import RunConfig
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.model.stage import GLMShard
from glm_dist.observe.flops import (
    Work,
    convention_operations,
    executed_operations,
    peak_tflops,
    row_work,
    useful_operations,
)
from glm_dist.observe.metrics import HFU, MFU, USEFUL_MFU, USEFUL_TFLOPS
from glm_dist.optim.state import Rates
from glm_dist.parallel.groups import ParallelGroups
from glm_dist.parallel.rng import seed_step
from glm_dist.train.deepspeed_config import deepspeed_config
from glm_dist.train.efficiency import Efficiency
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.job import build_engine
from glm_dist.train.step import StepResult, train_step

WARM_UP = 3
LONGEST = 40
"""Names of kernels that are kept."""


def configure(job: Job) -> RunConfig:
    """Load the job's configuration as a user would; the job's own overrides win."""
    problem = job.problem
    config = load_config(
        [
            "experiment=tiny",
            f"model={problem.size}",
            f"model.max_position_embeddings={problem.row_length}",
            f"model.hidden_dropout={problem.dropout}",
            f"model.attention_dropout={problem.dropout}",
            f"batch.row_length={problem.row_length}",
            f"batch.micro_batch_size={problem.rows}",
            f"batch.global_batch_size={MICRO_BATCHES * problem.rows}",
            "precision=bf16",
            "run.name=benchmark",
            *job.contestant.overrides,
        ]
    )
    return replace(config, tokenizer=replace(config.tokenizer, vocab_size=VOCAB_SIZE))


def open_engine(job: Job, config: RunConfig, groups: ParallelGroups) -> TrainingEngine:
    """Build the contestant's model and optimizer."""
    if job.contestant.kind != GPT:
        return build_engine(config, groups, device=device(), world_size=1)
    stage = GPTStage(
        config.model,
        config.recompute,
        groups,
        attention=job.contestant.attention,
        device=device(),
    )
    return TrainingEngine(
        GLMShard([stage]),  # type: ignore[list-item]
        AllPositions(),
        config.optimizer,
        deepspeed_config=deepspeed_config(config, world_size=1),
        groups=groups,
    )


@dataclass
class Steps:
    """Steps as the training loop makes them."""

    engine: TrainingEngine
    config: RunConfig
    micro_batches: Sequence[MicroBatch]
    done: int = 0
    times: list[float] = field(default_factory=list)
    """Milliseconds of each timed step on the device."""
    host: list[float] = field(default_factory=list)
    """Milliseconds in which the host queued each step, warm-up included."""
    _last: StepResult | None = None

    def step(self) -> StepResult:
        """Queue a step; then read the outcome of the one before, as the training loop does."""
        seed_step(self.config.run.seed, self.done, coordinates=self.engine.groups.coordinates)
        self.done += 1
        started = time.perf_counter()
        result = train_step(
            self.engine,
            self.micro_batches,
            rates=Rates.known(1e-4),
            normalize_by=self.config.loss.normalize_by,
            device=device(),
        )
        self.host.append(1e3 * (time.perf_counter() - started))
        if self._last is not None:
            self._last.outcome  # noqa: B018 - waits where it is not known yet
        self._last = result
        return result

    def timed(self, count: int) -> None:
        """Make steps one after another; the device's clock is read between them."""
        on_gpu = device().type == "cuda"
        marks = [_Mark(on_gpu)]
        for _ in range(count):
            self.step()
            marks.append(_Mark(on_gpu))
        if on_gpu:
            torch.cuda.synchronize()
        self.times += [a.until(b) for a, b in itertools.pairwise(marks)]


class _Mark:
    """A point in the device's queue."""

    def __init__(self, on_gpu: bool) -> None:
        self._seconds = time.perf_counter()
        self._event = torch.cuda.Event(enable_timing=True) if on_gpu else None
        if self._event is not None:
            self._event.record()

    def until(self, other: "_Mark") -> float:
        """Return milliseconds up to a later mark."""
        if self._event is not None and other._event is not None:
            return float(self._event.elapsed_time(other._event))
        return 1e3 * (other._seconds - self._seconds)


def gpt_figures(job: Job, config: RunConfig, seconds: float) -> dict[str, float]:
    """Return GPTModel's rates: every token is a target and sees only its past."""
    length = job.problem.row_length
    row = row_work([(length, 0)], row_length=length, num_targets=length)
    work = sum([row] * (MICRO_BATCHES * job.problem.rows), Work())
    model, vocab = config.model, VOCAB_SIZE
    rate = 1e-12 / seconds
    figures = {USEFUL_TFLOPS: useful_operations(model, work, vocab_size=vocab) * rate}
    name = torch.cuda.get_device_name() if device().type == "cuda" else "cpu"
    peak = peak_tflops(name, is_16_bit=True, override=0)
    if peak is not None:
        executed = executed_operations(
            model,
            work,
            vocab_size=vocab,
            recompute=config.recompute.mode,
            fused_attention=job.contestant.attention != "own",
        )
        figures |= {
            USEFUL_MFU: figures[USEFUL_TFLOPS] / peak,
            MFU: convention_operations(model, work, vocab_size=vocab) * rate / peak,
            HFU: executed * rate / peak,
        }
    return figures


def rates(job: Job, steps: Steps, seconds: float) -> dict[str, float]:
    """Return tokens per second and the rates that training logs, under the table's names."""
    if job.contestant.kind == GPT:
        found = gpt_figures(job, steps.config, seconds)
    else:
        efficiency = Efficiency(steps.config, groups=steps.engine.groups, device=device())
        efficiency.step_done(steps.micro_batches)
        found = efficiency.take(seconds)
    positions = sum(each.tokens.numel() for each in steps.micro_batches)
    named = {
        "useful TFLOP/s": USEFUL_TFLOPS,
        "useful MFU": USEFUL_MFU,
        "MFU": MFU,
        "HFU": HFU,
    }
    shown = {name: found[metric] for name, metric in named.items() if metric in found}
    return {"tokens/s": positions / seconds, **shown}


def measure(job: Job, groups: ParallelGroups, report: Callable[[dict[str, Any]], None]) -> None:
    """Train a few steps; report losses, times, and what the device ran, each once it is known.

    Args:
        job: Contestant and problem.
        groups: Of a single process.
        report: Takes figures.
    """
    config = configure(job)
    problem = job.problem
    started = time.perf_counter()
    engine = open_engine(job, config, groups)
    micro_batches = span_micro_batches(
        MICRO_BATCHES, rows=problem.rows, row_length=problem.row_length
    )
    steps = Steps(engine, config, micro_batches)
    if device().type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM_UP):
        result = steps.step()
    report(
        {
            f"loss of step {WARM_UP}": float(result.loss_share),
            f"norm of step {WARM_UP}": float(result.outcome.norm),
            "seconds to warm up": time.perf_counter() - started,
        }
    )
    steps.timed(job.steps)
    median = statistics.median(steps.times)
    figures = {"ms a step": median, "fastest": min(steps.times)}
    figures |= rates(job, steps, median / 1e3)
    figures["host, ms"] = statistics.median(steps.host[WARM_UP:])
    if device().type == "cuda":
        figures["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
    report(figures)
    kernels = recorded(steps.step)
    layers = config.model.num_layers
    report(device_figures(kernels, step_ms=median, layers=layers, micro_batches=MICRO_BATCHES))
    report({"kernels": longest(kernels, LONGEST)})


def run(job: Job, report: Callable[[dict[str, Any]], None]) -> None:
    """Do the job."""
    if job.contestant.kind != CEILINGS:
        measure(job, one_process(), report)
        return
    problem = job.problem
    model = model_config(problem.size, positions=problem.row_length, dropout=0.0)
    tokens = problem.rows * problem.row_length
    report(ceilings(model, tokens=tokens, micro_batches=MICRO_BATCHES, device=device()))


def main(arguments: Sequence[str]) -> None:
    job = Job.from_json(json.loads(arguments[0]))
    file = Path(arguments[1])

    def report(figures: dict[str, Any]) -> None:
        with file.open("a") as lines:
            lines.write(json.dumps(figures) + "\n")

    if "--wait" in arguments and not sys.stdin.readline():
        return  # nobody needs it any more
    try:
        run(job, report)
    except torch.OutOfMemoryError as error:
        report({"ms a step": "out of memory"})
        raise SystemExit(f"out of memory: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
