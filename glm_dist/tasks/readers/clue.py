"""CLUE as its archives have it: one JSON object a line."""

from collections.abc import Iterator

from glm_dist.tasks.readers.lines import json_objects, no_example
from glm_dist.tasks.readers.records import Record, Source, need


def afqmc(source: Source) -> Iterator[Record]:
    """AFQMC: sentence1, sentence2."""
    for where, found in json_objects(source.file):
        first, second = need(found, "sentence1", "sentence2", where=where)
        label = found.get("label")
        yield Record(where, {"sentence1": first, "sentence2": second, "label": label})


def tnews(source: Source) -> Iterator[Record]:
    """TNEWS: sentence, keywords."""
    for where, found in json_objects(source.file):
        sentence, keywords = need(found, "sentence", "keywords", where=where)
        label = found.get("label")
        yield Record(where, {"sentence": sentence, "keywords": keywords, "label": label})


def cluewsc(source: Source) -> Iterator[Record]:
    """CLUEWSC: text with *pronoun* and #noun#, pronoun, noun."""
    for where, found in json_objects(source.file):
        text, target = need(found, "text", "target", where=where)
        names = ("span1_text", "span1_index", "span2_text", "span2_index")
        noun, noun_begin, pronoun, pronoun_begin = need(target, *names, where=where)
        spans = [(noun_begin, noun, "#"), (pronoun_begin, pronoun, "*")]
        for begin, span, mark in sorted(spans, reverse=True):
            end = begin + len(span)
            if not 0 <= begin < end <= len(text):
                raise no_example(where, f"has no {span!r} at character {begin}")
            text = f"{text[:begin]}{mark}{text[begin:end]}{mark}{text[end:]}"
        fields = {"text": text, "noun": noun, "pronoun": pronoun, "label": found.get("label")}
        yield Record(where, fields)
