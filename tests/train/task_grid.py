"""Tiny finetuning jobs under any layout, and the same losses written out in plain torch."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional

from glm_dist.checkpoint.load import find_checkpoint
from glm_dist.config.schema import ChoiceLoss, LossNormalization, Pool
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.data.rows import Row
from glm_dist.optim.state import Rates
from glm_dist.parallel.rng import seed_step
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.predict import predict_examples
from glm_dist.train.state import restore_state, save_state
from glm_dist.train.step import train_step
from glm_dist.train.task_losses import ChoiceTask, ClassifyTask, SequenceTask
from tests.train import plain
from tests.train.grid import (
    OPTIMIZER,
    VOCAB_SIZE,
    Case,
    Trace,
    build_engine,
    rank_device,
    whole_weights,
)

EXAMPLES = 8
CHOICES = 3
ROW_LENGTH = 16
PENALTY = 0.5
SMOOTHING = 0.1
ANSWER_IDS = (7, 250, 130)  # of different tensor ranks


@dataclass(frozen=True)
class Job:
    """A task, with the number of outputs of its classification head."""

    task: ChoiceTask | ClassifyTask | SequenceTask
    num_classes: int = 0

    def engine(self, case: Case) -> TrainingEngine:
        """This rank's engine; ``case.micro_batch`` counts examples."""
        return build_engine(case, task=self.task, num_classes=self.num_classes)


JOBS = {
    "choice": Job(ChoiceTask(CHOICES, ChoiceLoss.mix, length_penalty=PENALTY)),
    "tokens": Job(ChoiceTask(CHOICES, answer_ids=ANSWER_IDS)),
    "smoothed": Job(SequenceTask(SMOOTHING)),
    "classes": Job(ClassifyTask(Pool.start), num_classes=CHOICES),
    "logits": Job(ClassifyTask(Pool.pad, CHOICES, ChoiceLoss.hinge), num_classes=1),
}


def random_row(rng: np.random.Generator, *, answer_length: int, label: int) -> Row:
    """A prompt of random length with an answer, whose loss is masked if the length is 0."""
    position = np.arange(ROW_LENGTH)
    prefix = int(rng.integers(3, ROW_LENGTH - 5))
    in_b = position >= prefix
    return Row(
        tokens=rng.integers(0, VOCAB_SIZE, size=ROW_LENGTH),
        positions=np.where(in_b, 2, position),
        block_positions=np.where(in_b, position - prefix + 1, 0),
        targets=rng.integers(0, VOCAB_SIZE, size=ROW_LENGTH),
        loss_mask=in_b & (position < prefix + answer_length),
        prefix_length=prefix,
        objective="task",
        num_real_tokens=ROW_LENGTH,
        label=label,
    )


def examples_of_step(job: Job, step: int) -> list[list[Row]]:
    """Rows of each example.

    The first examples lack no candidate, the last ones up to all but the right one, and one example
    has no label: replicas differ in the number of candidates and of labelled examples.
    """
    rng = np.random.Generator(np.random.Philox(key=[11, step]))
    num_rows = job.task.rows_per_example
    examples = []
    for number in range(EXAMPLES):
        label = int(rng.integers(0, CHOICES)) if number != 2 else -1
        is_there = rng.random(num_rows) * EXAMPLES / 2 > number - EXAMPLES / 2
        if label in range(num_rows):
            is_there[label] = True
        lengths = rng.integers(1, 5, size=num_rows)
        if num_rows == 1:
            is_sequence = isinstance(job.task, SequenceTask)
            lengths, is_there = [number % 4 + 1 if is_sequence else 1], [True]
        examples.append(
            [
                random_row(rng, answer_length=int(length) * bool(there), label=label)
                for length, there in zip(lengths, is_there, strict=True)
            ]
        )
    return examples


def micro_batches_of(job: Job, step: int, case: Case, replica: int) -> list[MicroBatch]:
    """A replica's contiguous examples, cut into micro-batches."""
    examples = examples_of_step(job, step)
    per_replica = EXAMPLES // case.dp
    first = replica * per_replica
    return [
        MicroBatch.stack([row for rows in examples[cut : cut + case.micro_batch] for row in rows])
        for cut in range(first, first + per_replica, case.micro_batch)
    ]


@dataclass(frozen=True)
class Finetuned:
    """Results of a job, equal on all ranks."""

    trace: Trace
    metrics: list[float]
    """Sums and counts of the last step."""
    scores: np.ndarray
    """Of the examples of the last step [e, c], after it."""


def train_jobs(jobs: Sequence[tuple[Job, Case]], steps: int) -> list[Finetuned]:
    """Run jobs one after the other in this process group."""
    return [train_job(job, case, steps) for job, case in jobs]


def train_job(job: Job, case: Case, steps: int) -> Finetuned:
    """Train, then predict."""
    engine = job.engine(case)
    losses, norms, metrics = run_steps(engine, job, case, range(steps))
    trace = Trace(losses, norms, whole_weights(engine))
    scores = predict_examples(
        engine,
        examples_of_step(job, steps - 1).__getitem__,
        num_examples=EXAMPLES,
        micro_batch_size=case.micro_batch,
        device=rank_device(),
    )
    assert scores is not None
    assert scores.dtype is torch.float32
    return Finetuned(trace, metrics, scores.numpy())


def run_steps(
    engine: TrainingEngine, job: Job, case: Case, steps: Iterable[int]
) -> tuple[list[float], list[float], list[float]]:
    """Train; losses and norms of the steps, and metrics of the last, equal on all ranks."""
    losses, norms = [], []
    for step in steps:
        seed_step(1, step, coordinates=engine.groups.coordinates)
        result = train_step(
            engine,
            micro_batches_of(job, step, case, engine.groups.coordinates.data),
            rates=Rates.known(OPTIMIZER.learning_rate),
            normalize_by=LossNormalization.global_tokens,
            device=rank_device(),
        )
        sums = torch.cat([result.loss_share.view(1), result.metrics.flatten()])
        dist.all_reduce(sums)
        losses.append(float(sums[0]))
        norms.append(float(result.outcome.norm))
    return losses, norms, sums[1:].tolist()


def resume_elsewhere(job: Job, cases: Sequence[Case], folder: Path) -> Trace:
    """Train a step in each layout, each resumed from the checkpoint of the one before."""
    losses, norms = [], []
    for step, case in enumerate(cases):
        engine = job.engine(case)
        info = find_checkpoint(folder)
        assert (info is None) == (step == 0)
        if info is not None:
            assert restore_state(engine, info) == step
        loss, norm, _ = run_steps(engine, job, case, [step])
        losses += loss
        norms += norm
        save_state(engine, folder, step=step + 1, extra={}, keep_last=1)
    return Trace(losses, norms, whole_weights(engine))


def train_alone(
    jobs: Sequence[Job], case: Case, steps: int
) -> list[tuple[dict[str, np.ndarray], Finetuned]]:
    """Run jobs of one process; also the weights that each starts from."""
    return [(whole_weights(job.engine(case)), train_job(job, case, steps)) for job in jobs]


# --- the same, written out ---


def plain_loss(job: Job, weights: plain.Weights, examples: list[list[Row]]) -> torch.Tensor:
    """Mean loss of examples, each candidate computed alone."""
    if isinstance(job.task, SequenceTask):
        rows = [row for rows in examples for row in rows]
        total = plain.loss_sum(weights, rows, vocab_size=VOCAB_SIZE, label_smoothing=SMOOTHING)
        return total / plain.num_targets(rows)
    losses = []
    for rows in examples:
        label = rows[0].label
        if label < 0:
            continue
        scores = torch.stack(list(_plain_scores(job, weights, rows)))
        right = scores[_rank_of_label(job, rows)]
        others = [s for i, s in enumerate(scores) if i != _rank_of_label(job, rows)]
        entropy = -functional.log_softmax(scores, dim=0)[_rank_of_label(job, rows)]
        if job.task.kind is ChoiceLoss.hinge:
            losses.append(sum((1 + s - right).clamp(min=0) for s in others) + 0 * right)
        elif job.task.kind is ChoiceLoss.mix:
            losses.append(entropy - right)
        else:
            losses.append(entropy)
    return torch.stack(losses).mean()


def _rank_of_label(job: Job, rows: list[Row]) -> int:
    """Index of the right score among those of candidates that are there."""
    if len(rows) == 1:
        return rows[0].label
    return sum(bool(row.loss_mask.any()) for row in rows[: rows[0].label])


def _plain_scores(job: Job, weights: plain.Weights, rows: list[Row]) -> Iterator[torch.Tensor]:
    """Scores of the candidates that are there, or of the classes."""
    for row in rows:
        if len(rows) > 1 and not row.loss_mask.any():
            continue
        hidden = plain.final_hidden(weights, row, vocab_size=VOCAB_SIZE)
        if isinstance(job.task, ClassifyTask):
            read = hidden[row.prefix_length - (job.task.pool is Pool.pad)]
            pooled = weights["classifier.pool.weight"] @ read + weights["classifier.pool.bias"]
            output = weights["classifier.output.weight"] @ torch.tanh(pooled)
            yield from output + weights["classifier.output.bias"]
            continue
        table = weights["embedding.word_embeddings.weight"][:VOCAB_SIZE]
        log_p = (hidden @ table.t()).log_softmax(dim=1)[torch.from_numpy(row.loss_mask)]
        if job.task.rows_per_example == 1:
            yield from log_p[0, list(ANSWER_IDS)]
            continue
        targets = torch.from_numpy(row.targets[row.loss_mask])
        yield log_p.gather(1, targets.unsqueeze(1)).sum() / len(targets) ** PENALTY


def plain_trace(job: Job, initial: dict[str, np.ndarray], steps: int) -> Trace:
    """The run of plain torch in fp64."""
    losses, norms, weights = plain.train(
        {name: value.astype(np.float64) for name, value in initial.items()},
        [examples_of_step(job, step) for step in range(steps)],
        loss_of=lambda weights, examples: plain_loss(job, weights, examples),
        learning_rate=OPTIMIZER.learning_rate,
        betas=(OPTIMIZER.beta1, OPTIMIZER.beta2),
        epsilon=OPTIMIZER.epsilon,
        weight_decay=OPTIMIZER.weight_decay,
        clip=OPTIMIZER.gradient_clipping,
    )
    return Trace(losses, norms, weights)
