"""Pairs of files, one line each: x.source and x.target; and the folders of XSum."""

from collections.abc import Callable, Iterator
from itertools import zip_longest
from pathlib import Path

from glm_dist.errors import DataError
from glm_dist.tasks.readers.lines import check_content, json_document, no_example, text_lines
from glm_dist.tasks.readers.records import Record, Source, Split, straight

GIGAWORD = {
    "-lrb-": "(",
    "-rrb-": ")",
    "-lsb-": "[",
    "-rsb-": "]",
    "-lcb-": "{",
    "-rcb-": "}",
    "&amp;": "&",
    "&lt;": "<",
    "&gt;": ">",
}
CNN_DM = {
    "<S_SEP>": "",
    "-LRB-": "(",
    "-RRB-": ")",
    "-LSB-": "[",
    "-RSB-": "]",
    "-LCB-": "{",
    "-RCB-": "}",
    "''": '"',
    "``": '"',
    "`": "'",
    " n't": "n't",
    " 's": "'s",
    " 'd": "'d",
    " 'll": "'ll",
}
"""Marks of the Penn Treebank, in the order in which the official code replaces them."""

XSUM_SPLITS = "XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json"
XSUM_KEYS = {Split.train: "train", Split.valid: "validation", Split.test: "test"}


def parallel(source: Source) -> Iterator[Record]:
    """Any two files: source, target."""
    yield from _pairs(source, str)


def summaries(source: Source) -> Iterator[Record]:
    """CNN/DM without its tokenisation: source, target."""
    yield from _pairs(source, straight)


def gigaword(source: Source) -> Iterator[Record]:
    """Gigaword, with brackets instead of their names: source, target.

    UNK stays a word; the official code makes it the token for unknown words.
    """
    yield from _pairs(source, lambda text: _replaced(straight(text), GIGAWORD))


def cnn_dm(source: Source) -> Iterator[Record]:
    """CNN/DM, with ordinary quotation marks and brackets: source, target.

    Borders of sentences are left out; in targets the official code makes them [SEP].
    """
    yield from _pairs(source, lambda text: _replaced(straight(text), CNN_DM))


def _replaced(text: str, marks: dict[str, str]) -> str:
    for mark, character in marks.items():
        text = text.replace(mark, character)
    return text


def _pairs(source: Source, cleaned: Callable[[str], str]) -> Iterator[Record]:
    stem = str(source.file).removesuffix(".source").removesuffix(".target")
    files = Path(f"{stem}.source"), Path(f"{stem}.target")
    for file in files:
        check_content(file, is_json=False)
    for first, second in zip_longest(*map(text_lines, files)):
        if first is None or second is None:
            shorter, longer = files if first is None else files[::-1]
            raise DataError(
                f"{shorter} has fewer lines than {longer}; line n of one belongs to line n of the"
                " other.\n  Make them equally long.",
                key=str(shorter),
            )
        (where, text), (_, target) = first, second
        if not text:
            raise no_example(where, "is empty")
        yield Record(where, {"source": cleaned(text), "target": cleaned(target)})


def xsum(source: Source) -> Iterator[Record]:
    """XSum as its scripts extract it, a folder of summaries and a list of splits: source, target.

    ``task.data.train``, ``valid`` and ``test`` name the same folder.
    """
    listed = json_document(source.file / XSUM_SPLITS)
    for name in listed[XSUM_KEYS[source.split]]:
        file = source.file / f"{name}.summary"
        sections: dict[str, list[str]] = {}
        section = ""
        for _, line in text_lines(file):
            if line.startswith("[SN]"):
                section = line.removeprefix("[SN]").removesuffix("[SN]")
            elif line:
                sections.setdefault(section, []).append(line)
        if not {"RESTBODY", "FIRST-SENTENCE"} <= set(sections):
            raise no_example(str(file), "has no RESTBODY or no FIRST-SENTENCE")
        text, target = (" ".join(sections[key]) for key in ("RESTBODY", "FIRST-SENTENCE"))
        yield Record(str(file), {"source": straight(text), "target": straight(target)})
