"""SQuAD's format: articles, paragraphs, questions with answers; CMRC has it too."""

from collections.abc import Iterator, Sequence
from typing import Any

from glm_dist.tasks.readers.lines import json_document, no_example
from glm_dist.tasks.readers.records import Record, Source, Split, need

NO_ANSWER = "N/A"
"""Official answer of questions that a passage does not answer."""
AROUND = 3
"""Tokens of a prompt besides passage and question: [CLS], the blank and a full stop."""


def _asked(source: Source) -> Iterator[tuple[str, str, dict[str, Any], list[str]]]:
    """List the questions: their place, passage, object and answers."""
    document = json_document(source.file)
    articles = document["data"] if isinstance(document, dict) and "data" in document else document
    if not isinstance(articles, list):
        raise no_example(str(source.file), "is not in the format of SQuAD: it has no list of data")
    for number, article in enumerate(articles):
        where = f"{source.file}, article {number}"
        for paragraph in need(article, "paragraphs", where=where)[0]:
            context, questions = need(paragraph, "context", "qas", where=where)
            for asked in questions:
                (question,) = need(asked, "question", where=where)
                place = f"{where}, question {asked.get('id', question)!r}"
                answers = [answer["text"] for answer in asked.get("answers", [])]
                yield place, context, asked, answers


def cmrc(source: Source) -> Iterator[Record]:
    """CMRC: context, question, answer, and answers for validation."""
    for where, context, asked, answers in _asked(source):
        yield from _each_answer(source, where, context, asked["question"], answers)


def question_generation(source: Source) -> Iterator[Record]:
    """SQuAD for the writing of questions: context, answer, question.

    Of a long passage the part around the answer is shown.
    """
    for where, context, asked, answers in _asked(source):
        for record in _each_answer(source, where, context, asked["question"], answers):
            shown = _around(source, context, str(record.fields["answer"]))
            yield Record(where, {**record.fields, "context": shown})


def _each_answer(
    source: Source, where: str, context: str, question: str, answers: Sequence[str]
) -> Iterator[Record]:
    distinct = list(dict.fromkeys(answers))
    if not distinct:
        raise no_example(where, "has no answer")
    fields = {"context": context, "question": question, "answers": distinct}
    for answer in distinct if source.split is Split.train else distinct[:1]:
        yield Record(where, {**fields, "answer": answer})


def squad(source: Source) -> Iterator[Record]:
    """SQuAD 2: context, question, answer, answers.

    A long passage is several examples, in windows that overlap by half; those without the answer
    have N/A.
    """
    yield from _windows(source, has_unanswered=True)


def squad_v1(source: Source) -> Iterator[Record]:
    """SQuAD 1: as SQuAD 2, without windows that hold no answer."""
    yield from _windows(source, has_unanswered=False)


def _windows(source: Source, *, has_unanswered: bool) -> Iterator[Record]:
    tokenizer, room = source.tokenizer, source.task.source_length
    for where, context, asked, answers in _asked(source):
        question = asked["question"]
        length = room - AROUND - len(tokenizer.encode_document(f" {question}"))
        if length < 1:
            raise no_example(
                where,
                f"leaves no room for the passage in task.source_length={room}",
                advice="Raise task.source_length.",
            )
        tokens = tokenizer.encode_document(context)
        wanted = answers or [NO_ANSWER]
        first = tokenizer.decode(tokenizer.encode_document(wanted[0]))
        for begin in range(0, len(tokens), max(1, room // 2)):
            shown = tokenizer.decode(tokens[begin : begin + length])
            is_there = bool(answers) and bool(first) and first in shown
            if is_there or has_unanswered:
                answer = wanted[0] if is_there else NO_ANSWER
                fields = {"context": shown, "question": question, "answer": answer}
                yield Record(where, {**fields, "answers": wanted}, group=where)
            if begin + length > len(tokens):
                break


def _around(source: Source, context: str, answer: str) -> str:
    """Cut a long passage to the part around an answer, which stands in its middle if it can."""
    tokenizer = source.tokenizer
    tokens = tokenizer.encode_document(context.rstrip())
    others = tokenizer.encode_document(" Question: Answer: " + answer)
    room = source.task.source_length - AROUND - len(others)
    if len(tokens) <= room or room < 1:
        return context
    wanted = tokenizer.encode_document(f" {answer}")
    begins = (n for n in range(len(tokens)) if tokens[n : n + len(wanted)] == wanted)
    begin = max(next(begins, 0) - room // 2, 0)
    return tokenizer.decode(tokens[begin : begin + room])
