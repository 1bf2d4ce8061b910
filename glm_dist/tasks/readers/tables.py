r"""GLUE's tables, and the CSV files of AG News, Yelp and Yahoo."""

from collections.abc import Iterator
from functools import partial

from glm_dist.tasks.readers.lines import named_rows, no_example, table_rows
from glm_dist.tasks.readers.records import Reader, Record, Source, Split, texts

ALIASES = {
    "sentence": ("sentence",),
    "sentence1": ("sentence1", "#1 String", "question1"),
    "sentence2": ("sentence2", "#2 String", "question2"),
    "question": ("question",),
    "label": ("label", "gold_label", "Quality", "is_duplicate"),
}
"""Columns of GLUE under one name; the first that is there counts."""


def _glue(source: Source, *, fields: tuple[str, ...]) -> Iterator[Record]:
    rows = table_rows(source.file, delimiter="\t", is_quoted=False)
    for where, row in named_rows(rows, None):
        found = {
            name: next((row[alias] for alias in ALIASES[name] if alias in row), None)
            for name in (*fields, "label")
        }
        cells = row | {name: cell for name, cell in found.items() if cell is not None}
        values = texts(cells, *fields, where=where)
        yield Record(where, {**dict(zip(fields, values, strict=True)), "label": found["label"]})


sentence: Reader = partial(_glue, fields=("sentence",))
"""SST-2: sentence."""
sentences: Reader = partial(_glue, fields=("sentence1", "sentence2"))
"""MNLI, MRPC, QQP: sentence1, sentence2."""
question: Reader = partial(_glue, fields=("question", "sentence"))
"""QNLI: question, sentence."""


def cola(source: Source) -> Iterator[Record]:
    """CoLA, whose files have no names of columns except for the test: sentence."""
    if source.split is Split.test:
        yield from sentence(source)
        return
    rows = table_rows(source.file, delimiter="\t", is_quoted=False)
    for where, row in named_rows(rows, ["source", "label", "mark", "sentence"]):
        (text,) = texts(row, "sentence", where=where)
        yield Record(where, {"sentence": text, "label": row["label"]})


def _classes(source: Source, *, fields: tuple[str, ...]) -> Iterator[Record]:
    rows = table_rows(source.file, delimiter=",", is_quoted=True)
    for where, row in rows:
        if len(row) != 1 + len(fields):
            raise no_example(where, f"has {len(row)} cells, not label, {', '.join(fields)}")
        cells = {
            name: cell.replace("\\n", " ").replace("\\", " ")
            for name, cell in zip(fields, row[1:], strict=True)
        }
        values = texts(cells, *fields, where=where)
        yield Record(where, {**dict(zip(fields, values, strict=True)), "label": row[0]})


agnews: Reader = partial(_classes, fields=("title", "text"))
"""AG News: title, text."""
yelp: Reader = partial(_classes, fields=("text",))
"""Yelp: text."""


def yahoo(source: Source) -> Iterator[Record]:
    """Yahoo Answers: question with its details, answer."""
    for each in _classes(source, fields=("title", "details", "answer")):
        asked = f"{each.fields['title']} {each.fields['details']}"
        fields = {"question": asked, "answer": each.fields["answer"], "label": each.fields["label"]}
        yield Record(each.where, fields)
