"""A choice between three rows of random tokens: the smallest task with several rows per example."""

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from glm_dist.checkpoint.manifest import Json
from glm_dist.cli.main import main_train
from glm_dist.config.schema import RunConfig
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.data.rows import Row
from glm_dist.model.batch import StageBatch
from glm_dist.model.scores import head_scores
from glm_dist.model.stage import GLMStage
from glm_dist.tasks import finetune
from glm_dist.train import workload
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.predict import predict_examples
from glm_dist.train.preflight import DataFacts
from glm_dist.train.task import TaskLoss
from glm_dist.train.workload import Selection
from tests.train.grid import rows_of_step

IDENTITY: dict[str, Json] = {"toy": 1}
STOP_IN = "TOY_STOP"
"""Variable with the step in whose validation the process asks itself to stop."""
CHOICES = 3
NUM_TRAINING = 6
"""Examples that training repeats."""
NUM_VALIDATION = 5
"""Divides into no micro-batch of the layouts that are tested."""


class ToyChoice:
    """Cross entropy of the right row among the rows of an example."""

    metric_names = ()
    rows_per_example = CHOICES

    def batch(self, micro_batch: MicroBatch, device: torch.device) -> StageBatch:
        return StageBatch.from_micro_batch(micro_batch, device)

    def weight(self, batch: StageBatch) -> int:
        return batch.num_labelled // CHOICES

    def scores(self, stage: GLMStage, hidden: torch.Tensor, batch: StageBatch) -> torch.Tensor:
        num_rows = batch.tokens.size(0)
        found = head_scores(
            stage.at_targets(hidden, batch.target_index),
            stage.head_weight,
            batch.target_ids,
            vocab_size=stage.vocab_size,
            group=stage.groups.tensor,
        )
        summed = torch.zeros(num_rows, device=hidden.device)
        owner = batch.target_index % num_rows
        return summed.index_add(0, owner, found.log_probability).view(-1, CHOICES)

    def loss(self, stage: GLMStage, hidden: torch.Tensor, batch: StageBatch) -> TaskLoss:
        scores = self.scores(stage, hidden, batch)
        labels = batch.labels.view(-1, CHOICES)[:, 0]
        total = torch.nn.functional.cross_entropy(scores, labels, ignore_index=-1, reduction="sum")
        return TaskLoss(total, torch.zeros(0, 2, dtype=torch.float64, device=hidden.device))


@dataclass(frozen=True)
class ToyItems:
    """Examples without end, from the first random rows of a step each."""

    first: int = 400

    def rows(self, number: int) -> list[Row]:
        made = rows_of_step(self.first + number % NUM_TRAINING)[:CHOICES]
        return [replace(row, label=number % CHOICES) for row in made]

    def index(self, number: int) -> int:
        return number

    def passing_over(self, rows: Sequence[str]) -> "ToyItems":
        assert not rows
        return self

    def epochs_before(self, number: int) -> Mapping[str, float]:
        return {"toy": number / NUM_TRAINING}


PEAK = 5
"""Step with the best score."""


class ToyWorkload:
    """Accuracy on other examples, and a score that is best at one step; see ``Workload``."""

    rows_per_item = CHOICES
    selection = Selection("valid/task/score", larger_is_better=True)

    def __init__(self, config: RunConfig) -> None:
        self.task = ToyChoice()
        self.rows = ToyItems()
        self._micro_batch_size = config.batch.micro_batch_size

    def fingerprint(self) -> dict[str, Json]:
        return dict(IDENTITY)

    def digests(self) -> dict[str, str]:
        return {}

    def validate(
        self,
        engine: TrainingEngine,
        *,
        step: int,
        device: torch.device,
        stops: Callable[[], bool],
    ) -> dict[str, float] | None:
        if os.environ.get(STOP_IN) == str(step):
            os.kill(os.getpid(), signal.SIGTERM)
        scores = predict_examples(
            engine,
            ToyItems(500).rows,
            num_examples=NUM_VALIDATION,
            micro_batch_size=self._micro_batch_size,
            device=device,
            stops=stops,
        )
        if scores is None:
            return None
        labels = torch.arange(NUM_VALIDATION) % CHOICES
        accuracy = float((scores.argmax(1) == labels).float().mean())
        return {"valid/task/accuracy": accuracy, "valid/task/score": -abs(step - PEAK)}

    def finish(self, engine: TrainingEngine, **options: Any) -> bool:
        return True


def toy_program() -> int:
    """``train.py`` on the toy task in place of the corpora."""
    finetune.read_corpora = lambda config, tokenizer: DataFacts(IDENTITY)
    workload.open_pretraining = ToyWorkload
    return main_train()
