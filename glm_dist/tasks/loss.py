"""Loss of a task."""

from typing import assert_never

from glm_dist.config.schema import TaskKind
from glm_dist.tasks.task_data import TaskData
from glm_dist.train.task import ScoringTask
from glm_dist.train.task_losses import ChoiceTask, ClassifyTask, SequenceTask


def loss_of(data: TaskData) -> ScoringTask:
    """Choose the loss of a task."""
    task = data.config.task
    match task.kind:
        case TaskKind.cloze:
            answer_ids = data.prompts.answer_ids
            return ChoiceTask(
                len(answer_ids) or data.rows_per_example,
                kind=task.loss,
                length_penalty=task.length_penalty,
                answer_ids=answer_ids,
            )
        case TaskKind.classify:
            return ClassifyTask(task.pool, num_choices=data.rows_per_example, kind=task.loss)
        case TaskKind.seq2seq | TaskKind.infill:
            return SequenceTask(task.label_smoothing)
        case TaskKind.none:
            raise ValueError("pretraining is not a task")
        case _:
            assert_never(task.kind)
