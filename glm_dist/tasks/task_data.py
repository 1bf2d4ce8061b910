"""The examples of a task, and the rows that are made of them.

They are read once in each process, before torch is loaded, so that a mistake in them is named
before anything else happens. Rows are made when they are asked for, in the loader's workers.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from glm_dist.checkpoint.manifest import Json
from glm_dist.config.schema import RunConfig, TaskConfig, TaskKind
from glm_dist.data.rows import Row
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.errors import ConfigError
from glm_dist.generate.part_b import PartB
from glm_dist.tasks.readers.open import read_records
from glm_dist.tasks.readers.records import Record, Split
from glm_dist.tasks.rows import answers_row, context_row, without_answer
from glm_dist.tasks.task_prompts import TaskExample, TaskPrompts, TaskQuestion

MOST_MEASURED = 100_000
"""Rows that are built at the start to find the longest; more are not, and rows have full length."""

LENGTH_MULTIPLE = 8
"""Row lengths are multiples of this, which kernels and sequence parallelism prefer."""


@dataclass(frozen=True, eq=False)
class TaskData:
    """Examples of every split, as records of their files, and how rows are made of them."""

    config: RunConfig
    tokenizer: Tokenizer
    prompts: TaskPrompts
    records: Mapping[Split, Sequence[Record]]
    """Splits without a file are left out."""
    rows_per_example: int
    """Prompts with an answer of the example that has most; the others are filled up."""

    @cached_property
    def part_b(self) -> PartB:
        """Layout of answers."""
        return PartB.of(self.config, self.tokenizer.special)

    @property
    def first(self) -> Record:
        """First example of training or, in an evaluation, of what is evaluated."""
        return next(iter(self.records.values()))[0]

    def example(self, record: Record, *, draw: int = 0) -> TaskExample:
        """Make prompts and answers of an example.

        Args:
            record: One of ``records``.
            draw: Seed of what is random in it: the blanks of infill.

        Raises:
            DataError: The example lacks a field, or its pattern does not fit.
        """
        return self.prompts.example(record, draw=draw)

    def rows(self, example: TaskExample, *, row_length: int | None = None) -> list[Row]:
        """Lay an example out.

        Args:
            example: Output of ``example``.
            row_length: Length to pad to; None: no padding.

        Returns:
            ``rows_per_example`` rows; those of missing answers score nothing.
        """
        rows = [self._row(each, example.label, row_length) for each in example.questions]
        return rows + [without_answer(rows[0])] * (self.rows_per_example - len(rows))

    def _row(self, question: TaskQuestion, label: int, row_length: int | None) -> Row:
        context = question.prompt.tokens
        if self.config.task.kind is TaskKind.classify:
            special = self.tokenizer.special
            return context_row(context, special=special, row_length=row_length, label=label)
        return answers_row(
            context,
            question.blanks,
            question.answers,
            self.part_b,
            row_length=row_length,
            label=label,
        )

    def shown_answers(self, example: TaskExample) -> list[str]:
        """Return the answers of an example as the model reads them, the right one marked."""
        texts: Sequence[str] = example.choices
        if self.config.task.kind is not TaskKind.classify and not self.prompts.answer_ids:
            ends = (self.part_b.end, self.tokenizer.special.eos)
            texts = [
                " / ".join(
                    repr(self.tokenizer.decode([token for token in answer if token not in ends]))
                    for answer in question.answers
                )
                for question in example.questions
            ]
        return [f"{text} (right)" if n == example.label else text for n, text in enumerate(texts)]

    def repeated(self) -> list[str]:
        """Say how many examples of validation and test are examples of training, too."""
        known = {self.prompts.texts(record) for record in self.records.get(Split.train, ())}
        said = []
        for split in (Split.valid, Split.test):
            found = self.records.get(split, ())
            count = sum(self.prompts.texts(record) in known for record in found)
            if count:
                said.append(
                    f"{count:,} of {len(found):,} examples of task.data.{split.value} have the"
                    " texts of training examples, so their numbers are too good"
                )
        return said

    def longest_row(self) -> int:
        """Measure the longest row of all splits; where there are too many, what the task allows."""
        count = sum(map(len, self.records.values())) * self.rows_per_example
        draws_blanks = self.config.task.kind is TaskKind.infill
        limit = self.config.task.row_length
        if count > MOST_MEASURED or draws_blanks:
            longest = limit
        else:
            longest = max(
                row.num_real_tokens
                for records in self.records.values()
                for record in records
                for row in self.rows(self.example(record))
            )
        # A classifier may read the first token behind the prompt.
        longest += self.config.task.kind is TaskKind.classify
        return max(16, -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE)

    @cached_property
    def digests(self) -> dict[Split, str]:
        """SHA-256 of the examples of each split, wherever their files are."""
        return {split: _hash(found) for split, found in self.records.items()}

    def fingerprint(self) -> dict[str, Json]:
        """Identify what is trained on; see ``Workload``."""
        task = self.config.task
        count = len(self.records[Split.train])
        return {
            "examples": {"count": count, "sha256": self.digests[Split.train]},
            "pattern": task.prompt_pattern,
            "tokenizer": self.tokenizer.fingerprint,
        }


def read_task_data(
    config: RunConfig, tokenizer: Tokenizer, *, splits: Sequence[Split] = tuple(Split)
) -> TaskData:
    """Read and check all examples of a task.

    Args:
        config: Checked configuration with a task.
        tokenizer: The run's.
        splits: Splits to read; those without a file are left out.

    Raises:
        DataError: A file is missing, or an example cannot be used; the line is named.
        ConfigError: The reader is unknown, or answers have other tokens than the task needs.
    """
    task = config.task
    records = {
        split: read_records(task, split, tokenizer)
        for split in splits
        if getattr(task.data, split.value)
    }
    _check_questions(task, records)
    prompts = TaskPrompts(config, tokenizer)
    every = [record for found in records.values() for record in found]
    for record in every:
        prompts.check(record)
    count = prompts.num_questions(every) if every else 1
    return TaskData(config, tokenizer, prompts, records, count)


def _check_questions(task: TaskConfig, records: Mapping[Split, Sequence[Record]]) -> None:
    named = all(record.group for found in records.values() for record in found)
    if "question_em" in task.used_metrics and not named:
        raise ConfigError(
            f"task.metrics has question_em, and task.data.reader={task.data.reader} does not say"
            " which examples belong to one question.\n"
            "  Leave it out, or measure accuracy.",
            key="task.metrics",
            value="question_em",
            fix="task.metrics=[accuracy]",
        )


def _hash(records: Sequence[Record]) -> str:
    digest = hashlib.sha256()
    for record in records:
        digest.update(json.dumps(record.fields, sort_keys=True).encode())
    return digest.hexdigest()
