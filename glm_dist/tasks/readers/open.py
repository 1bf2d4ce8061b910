"""The examples of a task, by the name of its reader."""

import random
from collections.abc import Iterator
from pathlib import Path

from glm_dist.config.schema import TaskConfig
from glm_dist.data.tokenizer.tokenizer import Tokenizer
from glm_dist.errors import ConfigError, DataError
from glm_dist.files import exists
from glm_dist.tasks.readers import blanks, clue, parallel, questions, superglue, tables
from glm_dist.tasks.readers.lines import json_objects
from glm_dist.tasks.readers.records import Reader, Record, Source, Split


def _jsonl(source: Source) -> Iterator[Record]:
    for where, fields in json_objects(source.file):
        yield Record(where, fields)


READERS: dict[str, Reader] = {
    "jsonl": _jsonl,
    "parallel": parallel.parallel,
    "copa": superglue.copa,
    "pairs": superglue.pairs,
    "boolq": superglue.boolq,
    "wic": superglue.wic,
    "wsc": superglue.wsc,
    "wsc_plain": superglue.wsc_plain,
    "wsc_spans": superglue.wsc_spans,
    "multirc": superglue.multirc,
    "record": superglue.record,
    "glue_sentence": tables.sentence,
    "glue_sentences": tables.sentences,
    "glue_question": tables.question,
    "cola": tables.cola,
    "agnews": tables.agnews,
    "yelp": tables.yelp,
    "yahoo": tables.yahoo,
    "afqmc": clue.afqmc,
    "tnews": clue.tnews,
    "cluewsc": clue.cluewsc,
    "squad": questions.squad,
    "squad_v1": questions.squad_v1,
    "squad_generation": questions.question_generation,
    "cmrc": questions.cmrc,
    "summaries": parallel.summaries,
    "gigaword": parallel.gigaword,
    "cnn_dm": parallel.cnn_dm,
    "xsum": parallel.xsum,
    "blanks": blanks.blanks,
}
"""Formats of files, by the names of ``task.data.reader``."""


def read_records(task: TaskConfig, split: Split, tokenizer: Tokenizer) -> list[Record]:
    """Read the examples of one file of a task.

    Args:
        task: The task; ``limit`` concerns training only.
        split: File and its use; the task names the file.
        tokenizer: The run's.

    Raises:
        ConfigError: The reader is unknown.
        DataError: The file is missing, cannot be read or holds no examples.
    """
    reader = reader_of(task)
    file = Path(getattr(task.data, split.value))
    _check_there(task, split, file)
    records = list(reader(Source(file, split, task, tokenizer)))
    if not records:
        raise DataError(
            f"{file} holds no examples.\n  Check the file (task.data.{split.value}).",
            key=f"task.data.{split.value}",
            value=str(file),
        )
    if split is Split.train and task.limit is not None and task.limit < len(records):
        # Not the first ones: files are often sorted by label.
        chosen = sorted(random.Random(0).sample(range(len(records)), task.limit))
        records = [records[n] for n in chosen]
    return records


def reader_of(task: TaskConfig) -> Reader:
    """Return the reader of a task.

    Raises:
        ConfigError: It is unknown.
    """
    if task.data.reader not in READERS:
        raise ConfigError(
            f"task.data.reader={task.data.reader} is unknown.\n  Choose from {', '.join(READERS)}.",
            key="task.data.reader",
            value=task.data.reader,
            fix="task.data.reader=jsonl",
        )
    return READERS[task.data.reader]


def _check_there(task: TaskConfig, split: Split, file: Path) -> None:
    if exists(file) or exists(Path(f"{file}.source")):
        return
    key = f"task.data.{split.value}"
    had = f" They are usually available from {task.data.source}." if task.data.source else ""
    raise DataError(
        f"{file} does not exist ({key}).{had}\n  Put the examples there, or set {key}=<file>.",
        key=key,
        value=str(file),
        fix=f"{key}=<file>",
    )
