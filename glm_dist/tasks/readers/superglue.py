"""SuperGLUE as its archives have it: one JSON object a line, one file a split.

Fields are made as the official code makes them: quotation marks straight, training examples of COPA
also with swapped choices, one training example for each right answer of ReCoRD.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any

from glm_dist.tasks.readers.lines import json_objects, no_example
from glm_dist.tasks.readers.records import Record, Source, Split, need, straight, texts

WRONG_ENTITIES = 9
"""Wrong answers of a training example of ReCoRD (official: 10 candidates)."""
WRONG_SPANS = 9
"""Wrong answers of a training example of WSC."""
ENTITY_SEED = 42
"""Official seed of the choice of wrong entities."""
PLACEHOLDER = "@placeholder"

JOINERS = {"cause": (" because", "because"), "effect": (", so", "so")}
"""Between premise and choice: in a sentence, and as a word."""


def copa(source: Source) -> Iterator[Record]:
    """Choice of Plausible Alternatives: premise, choices, joiner, connective."""
    records = [_copa(where, found) for where, found in json_objects(source.file)]
    yield from records
    if source.split is Split.train:
        for record in records:
            yield Record(record.where, _swapped(record.fields))


def _copa(where: str, found: dict[str, Any]) -> Record:
    names = ("premise", "choice1", "choice2", "question")
    premise, first, second, question = need(found, *names, where=where)
    if question not in JOINERS:
        raise no_example(where, f"has the question {question!r}, neither cause nor effect")
    joiner, connective = JOINERS[question]
    fields = {"premise": premise, "choice1": first, "choice2": second, "choices": [first, second]}
    fields |= {"joiner": joiner, "connective": connective, "label": found.get("label")}
    return Record(where, fields)


def _swapped(fields: Any) -> dict[str, Any]:
    label = None if fields["label"] is None else 1 - fields["label"]
    choices = fields["choices"][::-1]
    swapped = {"choice1": choices[0], "choice2": choices[1], "choices": choices, "label": label}
    return {**fields, **swapped}


def pairs(source: Source) -> Iterator[Record]:
    """RTE, CB and AX-g, and AX-b with its other names: premise, hypothesis."""
    for where, found in json_objects(source.file):
        names = ("sentence1", "sentence2") if "sentence1" in found else ("premise", "hypothesis")
        premise, hypothesis = texts(found, *names, where=where)
        label = found.get("label")
        yield Record(where, {"premise": premise, "hypothesis": hypothesis, "label": label})


def boolq(source: Source) -> Iterator[Record]:
    """BoolQ: passage, question."""
    for where, found in json_objects(source.file):
        passage, question = texts(found, "passage", "question", where=where)
        label = found.get("label")
        yield Record(where, {"passage": passage, "question": question, "label": label})


def wic(source: Source) -> Iterator[Record]:
    """Words in Context: word, sentence1, sentence2."""
    for where, found in json_objects(source.file):
        names = ("word", "sentence1", "sentence2")
        word, first, second = texts(found, *names, where=where)
        fields = {"word": word, "sentence1": first, "sentence2": second}
        yield Record(where, {**fields, "label": found.get("label")})


def wsc(source: Source) -> Iterator[Record]:
    """Winograd Schema with wrong spans: the right one is the first of the choices.

    Training takes the true examples, their candidates in groups of nine. Elsewhere ``is_right``
    tells whether the span is right.
    """
    for where, line in json_objects(source.file):
        fields = _winograd(where, line)
        wrong = fields.pop("candidates")
        if source.split is Split.train and not fields["is_right"]:
            continue
        if not wrong:
            raise no_example(
                where, "has no candidates", advice="Take task=wsc_plain, which needs none."
            )
        groups = [wrong]
        if source.split is Split.train and len(wrong) > WRONG_SPANS:
            groups = list(_filled_groups(wrong))
        for group in groups:
            found = {**fields, "choices": [fields["span"], *group], "label": 0}
            yield Record(where, found, is_right=fields["is_right"])


def _filled_groups(wrong: Sequence[str]) -> Iterator[list[str]]:
    for begin in range(0, len(wrong), WRONG_SPANS):
        group = list(wrong[begin : begin + WRONG_SPANS])
        yield group + list(wrong[: WRONG_SPANS - len(group)])


def wsc_plain(source: Source) -> Iterator[Record]:
    """Winograd Schema without wrong spans: the model learns to write the span.

    Training takes the true examples. Elsewhere ``is_right`` tells whether the span is right: an
    example counts where the model writes it, or another one, accordingly.
    """
    for where, found in json_objects(source.file):
        fields = _winograd(where, found)
        fields.pop("candidates")
        if source.split is not Split.train or fields["is_right"]:
            yield Record(where, fields, is_right=fields["is_right"])


def wsc_spans(source: Source) -> Iterator[Record]:
    """Winograd Schema for a classifier, which sees the true and the false examples of training."""
    for where, found in json_objects(source.file):
        yield Record(where, _winograd(where, found))


def _winograd(where: str, found: dict[str, Any]) -> dict[str, Any]:
    target, (text,) = need(found, "target", where=where)[0], texts(found, "text", where=where)
    names = ("span1_text", "span2_text", "span2_index")
    span, pronoun, index = need(target, *names, where=where)
    words = text.split()
    place = _place(words, pronoun, index)
    if place is None:
        raise no_example(where, f"has no word {pronoun!r} at index {index}")
    glued = words[place].removeprefix(pronoun)
    words[place : place + 1] = [f"*{pronoun}*", *([glued] if glued else [])]
    candidates = list(dict.fromkeys(each["text"] for each in found.get("candidates", [])))
    fields = {"text": " ".join(words), "pronoun": pronoun, "span": span, "candidates": candidates}
    return {**fields, "is_right": bool(found.get("label", True)), "label": found.get("label")}


def _place(words: Sequence[str], pronoun: str, index: int) -> int | None:
    """Find a word; some indices of the data are wrong by one, some words have marks behind them."""
    for place in (index, index - 1, index + 1):
        if 0 <= place < len(words) and words[place] == pronoun:
            return place
    is_there = 0 <= index < len(words) and words[index].startswith(pronoun)
    return index if is_there else None


def multirc(source: Source) -> Iterator[Record]:
    """MultiRC: passage, question, answer; one example for each answer of a question."""
    for where, found in json_objects(source.file):
        (passage,) = need(found, "passage", where=where)
        (text,) = texts(passage, "text", where=where)
        for number, asked in enumerate(need(passage, "questions", where=where)[0]):
            (question,) = texts(asked, "question", where=where)
            for answer in need(asked, "answers", where=where)[0]:
                (answered,) = texts(answer, "text", where=where)
                fields = {"passage": text, "question": question, "answer": answered}
                fields["label"] = answer.get("label")
                yield Record(where, fields, group=f"{where}#{number}")


def record(source: Source) -> Iterator[Record]:
    """ReCoRD: passage, query and its parts before and after the placeholder, choices, answers."""
    shuffler = random.Random(ENTITY_SEED)
    for where, found in json_objects(source.file):
        (passage,) = need(found, "passage", where=where)
        (text,) = texts(passage, "text", where=where)
        spans = need(passage, "entities", where=where)[0]
        entities = sorted({straight(text[each["start"] : each["end"] + 1]) for each in spans})
        text = text.replace("@highlight\n", "- ")
        for asked in need(found, "qas", where=where)[0]:
            fields = {"passage": text, **_query(where, asked)}
            answers = list(dict.fromkeys(straight(e["text"]) for e in asked.get("answers", [])))
            if source.split is not Split.train:
                yield Record(where, {**fields, "choices": entities, "answers": answers})
                continue
            for answer in answers:
                wrong = [entity for entity in entities if entity not in answers]
                if len(wrong) > WRONG_ENTITIES:
                    shuffler.shuffle(wrong)
                choices = [answer, *wrong[:WRONG_ENTITIES]]
                yield Record(where, {**fields, "choices": choices, "answers": [answer]})


def _query(where: str, asked: dict[str, Any]) -> dict[str, Any]:
    (query,) = texts(asked, "query", where=where)
    before, placeholder, after = query.partition(PLACEHOLDER)
    if not placeholder:
        raise no_example(where, f"has a query without {PLACEHOLDER}: {query!r}")
    return {"query": query, "before": before, "after": after}
