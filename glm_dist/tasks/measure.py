"""A model on the examples of a task: in validations, at the end of a run, and without training."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from glm_dist.config.schema import TaskKind
from glm_dist.data.rows import Row
from glm_dist.generate.load import TrainedModel
from glm_dist.generate.part_b import ANSWER
from glm_dist.generate.prompt import Prompt
from glm_dist.generate.sampling import BeamSearch, GenerationOptions, Sampling
from glm_dist.model.choice_loss import MISSING_SCORE, choice_loss
from glm_dist.tasks.evaluate import outcomes_by_part
from glm_dist.tasks.infilling import filled, space_of
from glm_dist.tasks.loss import loss_of
from glm_dist.tasks.outcome import Outcome, choice_outcome, text_outcome
from glm_dist.tasks.readers.records import Split
from glm_dist.tasks.task_data import TaskData
from glm_dist.tasks.task_prompts import TaskExample
from glm_dist.train.evaluate import Evaluator, validation_losses
from glm_dist.train.predict import Predictor, predict_examples


class Measured(Evaluator, Predictor, Protocol):
    """Interface of a model that is measured: an engine in training, otherwise a loaded run."""


def measure(
    model: Measured,
    writer: TrainedModel,
    data: TaskData,
    split: Split,
    *,
    device: torch.device,
    stops: Callable[[], bool] = lambda: False,
) -> Outcome | None:
    """Measure the examples of a split. Collective over all ranks.

    Args:
        model: Rates answers.
        writer: The same weights, which write answers.
        data: Examples.
        split: One that has examples.
        device: The rank's device.
        stops: Votes on a stop, on all ranks alike.

    Returns:
        The outcome, equal on all ranks; None after a stop.
    """
    # Each is made when it is needed: prompts of a large benchmark do not fit into memory.
    held_out = HeldOut(data, split)
    if data.config.task.kind in (TaskKind.cloze, TaskKind.classify):
        return _measure_choices(model, held_out, device=device, stops=stops)
    return _measure_texts(model, writer, held_out, device=device, stops=stops)


def measure_run(model: TrainedModel, data: TaskData, split: Split) -> Outcome:
    """Measure a run that is not being trained. Collective over all ranks.

    Args:
        model: The run's.
        data: Examples.
        split: One that has examples.
    """
    model = replace(model, task=loss_of(data))
    device = next(model.model.parameters()).device
    outcome = measure(model, model, data, split, device=device)
    assert outcome is not None, "nothing stops it"
    return outcome


@dataclass(frozen=True)
class HeldOut:
    """Examples of a split as rows; see ``train.evaluate.EvaluationRows``."""

    data: TaskData
    split: Split

    objectives = (ANSWER,)

    def __len__(self) -> int:
        return len(self.data.records[self.split])

    def names(self) -> tuple[str, ...]:
        """Return the name of the split."""
        return (self.split.value,)

    def example(self, index: int) -> TaskExample:
        """Return an example; its random blanks are always the same."""
        return self.data.example(self.data.records[self.split][index])

    def rows(self, index: int) -> list[Row]:
        """Build the rows of an example."""
        length = self.data.config.batch.row_length
        return self.data.rows(self.example(index), row_length=length)

    def row(self, objective: str, corpus: str, index: int) -> Row:
        """Build an example's only row."""
        (row,) = self.rows(index)
        return row


def _measure_choices(
    model: Measured, held_out: HeldOut, *, device: torch.device, stops: Callable[[], bool]
) -> Outcome | None:
    task = held_out.data.config.task
    scores = predict_examples(
        model,
        held_out.rows,
        num_examples=len(held_out),
        micro_batch_size=held_out.data.config.batch.micro_batch_size,
        device=device,
        stops=stops,
    )
    if scores is None:
        return None
    examples = [_without_prompts(held_out.example(index)) for index in range(len(held_out))]
    labels = torch.tensor([example.label for example in examples])
    loss = choice_loss(scores, labels, scores > MISSING_SCORE, kind=task.loss)
    count = int((labels >= 0).sum())
    return choice_outcome(
        examples,
        scores.tolist(),
        task.used_metrics,
        loss=float(loss) / count if count else math.nan,
    )


def _without_prompts(example: TaskExample) -> TaskExample:
    return replace(example, questions=[])


def _measure_texts(
    model: Measured,
    writer: TrainedModel,
    held_out: HeldOut,
    *,
    device: torch.device,
    stops: Callable[[], bool],
) -> Outcome | None:
    config = held_out.data.config
    losses = validation_losses(
        model,
        held_out,
        num_rows=len(held_out),
        micro_batch_size=config.batch.micro_batch_size,
        device=device,
        stops=stops,
    )
    if losses is None:
        return None
    loss = losses.get(ANSWER, math.nan)
    answers = write_answers(writer, held_out, stops=stops)
    if answers is None:
        return None
    examples = [_without_prompts(held_out.example(index)) for index in range(len(held_out))]
    return text_outcome(examples, answers, config.task.used_metrics, loss=loss)


def write_answers(
    model: TrainedModel, held_out: HeldOut, *, stops: Callable[[], bool] = lambda: False
) -> list[str] | None:
    """Write the answers of all examples of a split. Collective over all ranks.

    Args:
        model: Writes.
        held_out: Examples of a task that writes answers.
        stops: Asked between parts of the examples, on all ranks alike; if true, there is no result.
    """
    options = decoding_options(held_out.data)
    size = held_out.data.config.batch.micro_batch_size
    is_infill = held_out.data.config.task.kind is TaskKind.infill
    prompts = [_Asked.of(held_out.example(n), in_text=is_infill) for n in range(len(held_out))]

    def work(share: Sequence[_Asked]) -> Iterator[str]:
        for begin in range(0, len(share), size):
            batch = share[begin : begin + size]
            found = model.write([each.prompt for each in batch], options)
            yield from map(_Asked.written, batch, found)

    answers: list[str] = []
    for part in outcomes_by_part(model, prompts, work):
        answers += part
        if len(answers) < len(prompts) and stops():
            return None
    return answers


@dataclass(frozen=True)
class _Asked:
    """A prompt to write answers for, and the form in which they are compared."""

    prompt: Prompt
    space: str | None
    """Between words of the text that the answers stand in; None: the answer stands alone."""

    @classmethod
    def of(cls, example: TaskExample, *, in_text: bool) -> "_Asked":
        space = space_of(example.references[0]) if in_text else None
        return cls(example.questions[0].prompt, space)

    def written(self, answers: Sequence[str]) -> str:
        """Return the answer, or the text that the answers are in."""
        if self.space is None:
            return answers[0]
        return filled(self.prompt.pieces, answers, space=self.space)


def decoding_options(data: TaskData) -> GenerationOptions:
    """Read how answers are written in validations."""
    decode, config = data.config.task.decode, data.config
    longest = (
        config.task.target_length
        if config.task.kind is TaskKind.seq2seq
        else config.task.source_length
    )
    search = None
    if decode.beams > 1 or decode.no_repeat_ngram > 0:
        search = BeamSearch(
            beams=decode.beams,
            length_penalty=decode.length_penalty,
            no_repeat_ngram=decode.no_repeat_ngram,
        )
    return GenerationOptions(
        sampling=Sampling(temperature=0.0),
        beam_search=search,
        max_tokens=longest,
        min_tokens=decode.min_tokens,
    )
