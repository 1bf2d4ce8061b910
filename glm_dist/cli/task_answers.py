"""Answers of ``glm-dist generate`` to examples of a task."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module

from glm_dist.cli.arguments import load_for
from glm_dist.cli.lines import Line, batches_of_lines
from glm_dist.errors import EXIT_USER_ERROR, DataError
from glm_dist.json_text import json_text
from glm_dist.tasks.readers.lines import json_object
from glm_dist.tasks.readers.records import Record
from glm_dist.tasks.task_data import TaskData
from glm_dist.tasks.trained_run import open_task, with_records


def run(arguments: argparse.Namespace) -> int:
    """Answer lines with examples, a batch at a time; those that cannot be used are left out.

    Args:
        arguments: Of ``glm-dist generate``, with a task.

    Returns:
        Exit status: 2 if an example was left out.

    Raises:
        GlmDistError: The run or the task cannot be used.
    """
    size = arguments.batch_size
    data = open_task(
        *(arguments.run, arguments.task, []),
        splits=(),
        batch_size=size,
        tokenizer=arguments.tokenizer,
    )
    model = load_for(arguments)
    speaks = model.groups.rank == 0
    tool = import_module("glm_dist.tasks.answers")
    lines = batches_of_lines(arguments.text, size) if speaks else iter(())
    left_out = 0
    while batch := model.from_first_rank(next(lines, None)):
        lines_of_text = [line for line in batch if line.content.strip()]  # as in files of examples
        records = _records(lines_of_text, data, speaks=speaks)
        left_out += len(lines_of_text) - len(records)
        answers = tool.answer(model, data, records) if records else []
        if speaks:
            for record, answer in zip(records, answers, strict=True):
                text = json_text({**record.fields, **answer}) + "\n"
                sys.stdout.buffer.write(text.encode())
            sys.stdout.flush()
    if left_out and speaks:
        sys.stderr.write(f"{left_out} examples were left out\n")
    return EXIT_USER_ERROR if left_out else 0


def _records(batch: Sequence[Line], data: TaskData, *, speaks: bool) -> list[Record]:
    """Return the examples that can be used; say why others cannot."""
    found = []
    for line in batch:
        try:
            record = Record(line.where, json_object(line.content, line.where))
            with_records(data, [record])
        except DataError as error:
            if speaks:
                sys.stderr.write(f"{error}\n")
            continue
        found.append(record)
    return found
