"""Answers of a run to new examples of a task."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from glm_dist.config.schema import TaskKind
from glm_dist.generate.load import TrainedModel
from glm_dist.tasks.loss import loss_of
from glm_dist.tasks.measure import HeldOut, write_answers
from glm_dist.tasks.readers.records import Record, Split
from glm_dist.tasks.task_data import TaskData
from glm_dist.tasks.trained_run import with_records
from glm_dist.train.predict import predict_examples


def answer(model: TrainedModel, data: TaskData, records: Sequence[Record]) -> list[dict[str, Any]]:
    """Answer examples. Collective over all ranks.

    Args:
        model: The run's.
        data: Its task.
        records: Examples; right answers are not needed. [n]

    Returns:
        For each example its ``prediction``: the chosen label or text, with ``scores`` of all of
        them, or the written text.

    Raises:
        DataError: An example lacks a field of the pattern.
    """
    data = with_records(data, records)
    held_out = HeldOut(data, Split.test)
    if data.config.task.kind in (TaskKind.seq2seq, TaskKind.infill):
        texts = write_answers(model, held_out)
        assert texts is not None, "nothing stops it"
        return [{"prediction": text} for text in texts]
    scores = predict_examples(
        replace(model, task=loss_of(data)),
        held_out.rows,
        num_examples=len(held_out),
        micro_batch_size=min(data.config.batch.micro_batch_size, len(held_out)),
        device=next(model.model.parameters()).device,
    )
    assert scores is not None, "nothing stops it"
    return [_chosen(data, held_out, n, scores[n]) for n in range(len(held_out))]


def _chosen(data: TaskData, held_out: HeldOut, index: int, scores: torch.Tensor) -> dict[str, Any]:
    task = data.config.task
    names = (
        list(held_out.example(index).choices) if task.choices_field else list(task.prompt_answers)
    )
    own = scores[: len(names)].tolist()
    return {
        "prediction": names[own.index(max(own))],
        "scores": dict(zip(names, own, strict=True)),
    }
