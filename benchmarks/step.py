"""One optimizer step of GLM-Base on a CPU, against its matrix products and a minimal loop.

Three contestants are interleaved on the same rows: only the step's matrix products, a minimal loop
(forward, backward, clip, fused AdamW), and the whole trainer (DeepSpeed, schedule, records). The
products give the machine's current rate for these shapes; the rate of useful operations (real
tokens, exact mask, logits at targets) of the others is divided by it.
"""

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.harness import Report, Timing, machine, options, parse, timed
from benchmarks.problems import (
    VOCAB_SIZE,
    device,
    glm,
    loss_of,
    model_config,
    one_process,
    span_micro_batches,
)
from glm_dist.config.load import load_config
from glm_dist.config.schema import Dtype, ModelConfig, RunConfig
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.model.batch import StageBatch
from glm_dist.model.compiled import compile_layers
from glm_dist.model.head import CHUNK_ELEMENTS
from glm_dist.model.stage import GLMShard, GLMStage
from glm_dist.observe.flops import Work, useful_operations
from glm_dist.observe.sinks import JsonlSink
from glm_dist.optim.param_groups import param_groups
from glm_dist.parallel.groups import ParallelGroups
from glm_dist.train.deepspeed_config import deepspeed_config
from glm_dist.train.efficiency import micro_batch_work
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.loop import LoopContext, train
from glm_dist.train.preemption import StopRequest
from glm_dist.train.task import Pretraining
from glm_dist.train.workload import Selection

CLIP = 1.0


class MatrixProducts:
    """All matrix products of a micro-batch's forward and backward, on separate operands."""

    def __init__(self, model: ModelConfig, *, rows: int, row_length: int, targets: int) -> None:
        n, h = rows * row_length, model.hidden_size
        shapes = [(h, 3 * h), (h, h), (h, 4 * h), (4 * h, h)]
        self._layers = [
            [(torch.randn(n, k), torch.randn(m, k), torch.randn(n, m)) for k, m in shapes]
            for _ in range(model.num_layers)
        ]
        table = torch.randn(VOCAB_SIZE, h)
        chunk = CHUNK_ELEMENTS["cpu"] // VOCAB_SIZE
        self._head = [
            (torch.randn(c, h), table, torch.randn(c, VOCAB_SIZE))
            for c in (min(chunk, targets - start) for start in range(0, targets, chunk))
        ]
        self.operations = 6 * model.num_layers * 12 * h * h * n + 6 * targets * h * VOCAB_SIZE

    def __call__(self) -> None:
        for layer in self._layers:
            for inputs, weight, _ in layer:
                inputs @ weight.t()
        for inputs, weight, grad in self._head:
            inputs @ weight.t()
            grad @ weight
            grad.t() @ inputs
        for layer in reversed(self._layers):
            for inputs, weight, grad in reversed(layer):
                grad @ weight
                grad.t() @ inputs


class BareLoop:
    """Minimal loop that trains the model."""

    def __init__(self, stage: GLMStage, optimizer: torch.optim.Optimizer) -> None:
        self._stage = stage
        self._optimizer = optimizer

    def __call__(self, micro_batches: Sequence[MicroBatch]) -> None:
        batches = [StageBatch.from_micro_batch(m, device()) for m in micro_batches]
        scale = 1.0 / sum(batch.target_ids.numel() for batch in batches)
        for batch in batches:
            (loss_of(self._stage, batch) * scale).backward()
        torch.nn.utils.clip_grad_norm_(self._stage.parameters(), CLIP)
        self._optimizer.step()
        self._optimizer.zero_grad()


def run_config(
    model: ModelConfig, *, steps: int, micro_batches: int, rows: int, row_length: int
) -> RunConfig:
    """Load the configuration under which the trainer equals the bare loop."""
    config = load_config(
        [
            "experiment=tiny",
            "run.name=benchmark",
            f"run.steps={steps}",
            f"batch.global_batch_size={micro_batches * rows}",
            f"batch.micro_batch_size={rows}",
            f"batch.row_length={row_length}",
            f"model.max_position_embeddings={row_length}",
            "evaluation.interval=0",
            "checkpoint.interval=0",
            "observe.log_interval=1",
        ]
    )
    tokenizer = replace(config.tokenizer, vocab_size=VOCAB_SIZE)
    return replace(config, model=model, tokenizer=tokenizer)


def fused_adamw(stage: GLMStage, config: RunConfig) -> torch.optim.Optimizer:
    """Build the optimizer as the trainer does."""
    optimizer = config.optimizer
    return torch.optim.AdamW(
        param_groups(stage.shards(), weight_decay=optimizer.weight_decay),
        lr=optimizer.learning_rate,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.epsilon,
        fused=True,
    )


class Turns:
    """Row source of the trainer; the other contestants run between its steps."""

    def __init__(
        self,
        micro_batches: Sequence[MicroBatch],
        products: MatrixProducts,
        bare: BareLoop,
        *,
        rounds: int,
    ) -> None:
        self.timings = {name: Timing() for name in ("products", "bare", "trainer")}
        self._micro_batches = micro_batches
        self._products = products
        self._bare = bare
        self._rounds = rounds

    def __iter__(self) -> Iterator[Sequence[MicroBatch]]:
        self._others()  # not measured, like the trainer's first step
        yield self._micro_batches
        for _ in range(self._rounds):
            products, bare = self._others()
            started = time.perf_counter()
            yield self._micro_batches
            self.timings["trainer"].seconds.append(time.perf_counter() - started)
            self.timings["products"].seconds.append(products)
            self.timings["bare"].seconds.append(bare)
        yield self._micro_batches  # so that the step before is seen to end

    def _others(self) -> tuple[float, float]:
        products = timed(lambda: [self._products() for _ in self._micro_batches])
        return products, timed(lambda: self._bare(self._micro_batches))


class NoValidation:
    """Workload of a loop that neither opens rows nor validates."""

    selection = Selection("none", larger_is_better=True)


class TurnRows:
    """The turns in the place of a run's rows."""

    passed_over = ()

    def __init__(self, turns: Turns) -> None:
        self._turns = iter(turns)

    def __next__(self) -> Sequence[MicroBatch]:
        return next(self._turns)

    def epochs_before(self, number: int) -> Mapping[str, float]:
        return {}

    def indices(self, step: int) -> list[list[int]]:
        return []

    def rows_of(self, first_step: int, last_step: int) -> str:
        return ""

    def pass_over(self, rows: str, *, done: int) -> None:
        raise NotImplementedError

    def reopen(self, *, done: int) -> None:
        raise NotImplementedError


def measure(
    config: RunConfig,
    groups: ParallelGroups,
    micro_batches: Sequence[MicroBatch],
    *,
    compiled: bool,
) -> tuple[dict[str, Timing], MatrixProducts]:
    """Measure the three contestants; return their timings and the products."""
    rows, row_length = micro_batches[0].tokens.shape
    targets = int(micro_batches[0].loss_mask.sum())
    products = MatrixProducts(config.model, rows=rows, row_length=row_length, targets=targets)
    stages = [glm(config.model, groups, dtype=Dtype.fp32, device=device()) for _ in range(2)]
    for stage in stages if compiled else ():
        compile_layers(stage)
    bare = BareLoop(stages[0], fused_adamw(stages[0], config))
    turns = Turns(micro_batches, products, bare, rounds=config.run.steps - 2)
    engine = TrainingEngine(
        GLMShard([stages[1]]),
        Pretraining(),
        config.optimizer,
        deepspeed_config=deepspeed_config(config, world_size=1),
        groups=groups,
    )
    with tempfile.TemporaryDirectory() as folder:
        work = LoopContext(
            config=config,
            engine=engine,
            rows=TurnRows(turns),
            workload=NoValidation(),
            stop_request=StopRequest(),
            sink=JsonlSink(Path(folder) / "metrics.jsonl", attempt=1, first_step=0),
            checkpoints=Path(folder),
            identity={},
            device=device(),
        )
        train(work, first_step=0)
    return turns.timings, products


def main(arguments: Sequence[str] | None = None) -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--model", default="base", help="option of conf/model (%(default)s)")
    parser.add_argument("--rows", type=int, default=8, help="of a micro-batch (%(default)s)")
    parser.add_argument("--micro-batches", type=int, default=2, help="of a step (%(default)s)")
    parser.add_argument("--row-length", type=int, default=576, help="(%(default)s)")
    parser.add_argument("--dropout", type=float, default=0.0, help="(%(default)s)")
    parser.add_argument("--compile", action="store_true", help="compile=fused")
    parsed = parse(parser, arguments)
    state = machine()
    groups = one_process()
    model = model_config(parsed.model, positions=parsed.row_length, dropout=parsed.dropout)
    micro_batches = span_micro_batches(
        parsed.micro_batches, rows=parsed.rows, row_length=parsed.row_length
    )
    config = run_config(
        model,
        steps=parsed.rounds + 2,
        micro_batches=parsed.micro_batches,
        rows=parsed.rows,
        row_length=parsed.row_length,
    )
    timings, products = measure(config, groups, micro_batches, compiled=parsed.compile)
    work = sum((micro_batch_work(m, uses_mask=False) for m in micro_batches), Work())
    useful = useful_operations(model, work, vocab_size=VOCAB_SIZE)
    done = {
        "products": products.operations * parsed.micro_batches,
        "bare": useful,
        "trainer": useful,
    }
    name = f"step_{parsed.model}{'_compiled' if parsed.compile else ''}"
    report = Report(name, f"GLM-{parsed.model}, {work.positions} positions per step, fp32", state)
    for contestant, timing in timings.items():
        report.rows.append(
            {
                "what": contestant,
                "seconds": timing.median,
                "GFLOP/s": done[contestant] / timing.median / 1e9,
                "share of the products' rate": done[contestant]
                / done["products"]
                / timing.relative_to(timings["products"]),
                "seconds / bare loop": timing.relative_to(timings["bare"]),
            }
        )
    report.notes.append("Medians over turns; of ratios, the median of the ratios of each turn.")
    report.save(parsed.output)


if __name__ == "__main__":
    main()
