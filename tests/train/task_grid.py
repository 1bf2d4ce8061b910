"""Tiny finetuning jobs under any layout, and the same losses written out in plain torch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional

from glm_dist.config.schema import ChoiceLoss, LossNormalization, Pool, RunConfig
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.data.rows import Row
from glm_dist.model.parameters import initialize
from glm_dist.model.stage import build_shard
from glm_dist.parallel.rng import seed_step
from glm_dist.train.deepspeed_config import deepspeed_config
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.step import train_step
from glm_dist.train.task_losses import ChoiceTask, ClassifyTask, ScoringTask, SequenceTask
from tests.train import plain
from tests.train.grid import (
    OPTIMIZER,
    VOCAB_SIZE,
    Case,
    Trace,
    groups_of,
    rank_device,
    run_config,
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

    task: ScoringTask
    num_classes: int = 0


JOBS = {
    "choice": Job(ChoiceTask(CHOICES, ChoiceLoss.mix, length_penalty=PENALTY)),
    "tokens": Job(ChoiceTask(CHOICES, answer_ids=ANSWER_IDS)),
    "smoothed": Job(SequenceTask(SMOOTHING)),
    "classes": Job(ClassifyTask(Pool.start), num_classes=CHOICES),
    "logits": Job(ClassifyTask(Pool.pad, CHOICES, ChoiceLoss.hinge), num_classes=1),
}


def config_of(job: Job, case: Case) -> RunConfig:
    """The configuration of a job; ``case.micro_batch`` counts examples."""
    config = run_config(case)
    return replace(config, model=replace(config.model, num_classes=job.num_classes))


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


def build_engine(job: Job, case: Case) -> TrainingEngine:
    """This rank's engine with the initial weights of seed 1."""
    config, groups = config_of(job, case), groups_of(case.layout)
    model = build_shard(config, groups=groups, device=rank_device())
    initialize(model.shards(), seed=config.run.seed)
    return TrainingEngine(
        model,
        job.task,
        config.optimizer,
        deepspeed_config=deepspeed_config(config, world_size=case.layout.world_size),
        groups=groups,
    )


def train_jobs(jobs: Sequence[tuple[Job, Case]], steps: int) -> list[tuple[Trace, list[float]]]:
    """Run jobs one after the other in this process group: traces, and metrics of the last step."""
    return [train_job(job, case, steps) for job, case in jobs]


def train_job(job: Job, case: Case, steps: int) -> tuple[Trace, list[float]]:
    """Train; everything is equal on all ranks."""
    engine = build_engine(job, case)
    losses, norms = [], []
    for step in range(steps):
        seed_step(1, step, coordinates=engine.groups.coordinates)
        result = train_step(
            engine,
            micro_batches_of(job, step, case, engine.groups.coordinates.data),
            learning_rate=OPTIMIZER.learning_rate,
            normalize_by=LossNormalization.global_tokens,
            device=rank_device(),
        )
        sums = torch.cat([result.loss_share.view(1), result.metrics.flatten()])
        dist.all_reduce(sums)
        losses.append(float(sums[0]))
        norms.append(float(result.outcome.norm))
    return Trace(losses, norms, whole_weights(engine)), sums[1:].tolist()


def train_alone(
    jobs: Sequence[Job], case: Case, steps: int
) -> list[tuple[dict[str, np.ndarray], Trace, list[float]]]:
    """Run jobs of one process; also the weights that each starts from."""
    return [(whole_weights(build_engine(job, case)), *train_job(job, case, steps)) for job in jobs]


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
