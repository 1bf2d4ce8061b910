"""What of a preparation is safely on disk, so that a killed one goes on where it stopped.

``<prefix>.partial/`` holds the tokens, the lengths of the documents and a journal. The journal is
replaced as a whole, after the two files have been flushed; on return they are cut back to what it
says.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

import numpy as np

from glm_dist.data.corpus.indexed import bin_path, idx_path, token_type_for, write_index
from glm_dist.data.corpus.manifest import JOURNAL, PARTIAL, Manifest, manifest_path, write_manifest
from glm_dist.data.prepare.readers import Block, TextOptions, read_blocks
from glm_dist.data.prepare.tokenize import TokenBlock
from glm_dist.errors import DataError
from glm_dist.files import (
    HASH_BLOCK_BYTES,
    LockedError,
    ensure_writable,
    exists,
    lock_file,
    sha256_of,
    write_atomically,
)

JOURNAL_SECONDS = 3.0
"""Work that a kill may cost."""


def chain_hashes(before: str, block: str) -> str:
    """Hash of a source after one more block, from the hash before and that of the block's text."""
    return sha256((before + block).encode()).hexdigest()


def hash_text(file: Path, options: TextOptions, *, end: int | None = None) -> str:
    """Hash the text of a file as ``Source.sha256`` does.

    Args:
        file: Text file.
        options: How documents are taken out.
        end: ``Block.end`` of the last block to hash; all of them if None.
    """
    digest = ""
    for block in read_blocks(file, options):
        if end is not None and block.end > end:
            break
        digest = chain_hashes(digest, sha256(block.data).hexdigest())
    return digest


@dataclass(frozen=True)
class Source:
    """One input file, and how much of it is done."""

    path: str
    bytes: int
    """Size of the file."""
    end: int = 0
    """Where to read on; see ``Block.end``."""
    lines: int = 0
    documents: int = 0
    tokens: int = 0
    blank: int = 0
    """Documents left out because they have no tokens."""
    bad_lines: int = 0
    share: float = 0.0
    """Share of the file that is done, 0 to 1."""
    sha256: str = ""
    """Hash of the hashes of its blocks of text."""
    mtime_ns: int = 0
    """When the file was written last, in nanoseconds."""

    def after(self, block: Block, tokens: TokenBlock) -> "Source":
        """Count one more block."""
        return replace(
            self,
            end=block.end,
            lines=self.lines + block.lines,
            documents=self.documents + tokens.num_documents,
            tokens=self.tokens + tokens.num_tokens,
            blank=self.blank + tokens.num_blank,
            bad_lines=self.bad_lines + len(tokens.bad_lines),
            share=block.share,
            sha256=chain_hashes(self.sha256, tokens.text_hash),
        )


def source_of(file: Path) -> Source:
    """Describe a file of which nothing is done."""
    facts = file.stat()
    return Source(str(file), facts.st_size, mtime_ns=facts.st_mtime_ns)


@dataclass(frozen=True)
class Journal:
    """State of a preparation."""

    identity: dict[str, object]
    """Inputs and options; another identity means another corpus."""
    sources: tuple[Source, ...]
    current: int = 0
    """Source that is being read."""
    bin_bytes: int = 0
    block_hashes: tuple[str, ...] = ()
    """SHA-256 of each whole ``HASH_BLOCK_BYTES`` of the tokens; at the end, of the rest too."""
    is_complete: bool = False
    """Whether every source has been read."""

    @property
    def documents(self) -> int:
        """Documents written."""
        return sum(source.documents for source in self.sources)

    @property
    def tokens(self) -> int:
        """Tokens written."""
        return sum(source.tokens for source in self.sources)

    @property
    def bad_lines(self) -> int:
        """Lines skipped."""
        return sum(source.bad_lines for source in self.sources)


class PartialCorpus:
    """A corpus that is being written."""

    def __init__(self, prefix: str | Path, journal: Journal) -> None:
        """Go on with what is there, or begin.

        Args:
            prefix: Prefix of the corpus.
            journal: Where a preparation of this identity begins.
        """
        self.prefix = Path(prefix)
        self.folder = Path(f"{prefix}{PARTIAL}")
        self.journal = journal
        self._tokens: BinaryIO
        self._lengths: BinaryIO
        self._hash = sha256()
        self._saved_at = time.monotonic()

    @contextmanager
    def opened(self, options: TextOptions) -> Iterator[None]:
        """Open the files, for one process at a time.

        Args:
            options: How documents are taken out.

        Raises:
            DataError: Another process prepares the same corpus.
        """
        ensure_writable(self.prefix.parent, key="--output", create=True)
        self.folder.mkdir(exist_ok=True)
        with self._locked():
            self._recover(options)
            if self.journal.is_complete:
                yield  # the files may have been moved into place already
                return
            with self._open("tokens.bin") as self._tokens, self._open("lengths.bin") as lengths:
                self._lengths = lengths
                self._cut_back()
                yield

    def _locked(self) -> AbstractContextManager[object]:
        try:
            return lock_file(self.folder / "lock") or nullcontext()
        except LockedError as error:
            raise DataError(
                f"{self.prefix} is being prepared by another process ({error.holder}).\n"
                "  Fix: wait for it, or choose another --output",
                key=str(self.prefix),
                value=error.holder,
                fix="wait for it, or choose another --output",
            ) from error

    def pending_blocks(self, options: TextOptions) -> Iterator[Block]:
        """Read the blocks that are still to be tokenised.

        Args:
            options: How documents are taken out.
        """
        for source in self.journal.sources[self.journal.current :]:
            yield from read_blocks(
                Path(source.path), options, start=source.end, first_line=source.lines + 1
            )

    def append(self, block: Block, tokens: TokenBlock) -> None:
        """Write the tokens of the next block."""
        self._tokens.write(tokens.ids)
        self._lengths.write(tokens.lengths)
        sources = list(self.journal.sources)
        current = self.journal.current
        while sources[current].path != block.file:
            current += 1
        sources[current] = sources[current].after(block, tokens)
        self.journal = replace(
            self.journal,
            sources=tuple(sources),
            current=current,
            bin_bytes=self.journal.bin_bytes + len(tokens.ids),
            block_hashes=self.journal.block_hashes + self._digest(tokens.ids),
        )
        if time.monotonic() - self._saved_at > JOURNAL_SECONDS:
            self.save()

    def save(self) -> None:
        """Flush the files, then replace the journal."""
        for stream in (self._tokens, self._lengths):
            stream.flush()
            os.fsync(stream.fileno())
        write_atomically(self.folder / JOURNAL, json.dumps(asdict(self.journal)))
        self._saved_at = time.monotonic()

    def complete(self) -> None:
        """Note that every source has been read."""
        rest = (self._hash.hexdigest(),) if self.journal.bin_bytes % HASH_BLOCK_BYTES else ()
        self.journal = replace(
            self.journal, block_hashes=self.journal.block_hashes + rest, is_complete=True
        )
        self.save()

    def publish(self, *, tokenizer: str, vocab_size: int) -> Manifest:
        """Move the files into place, the manifest last; may be called again after a kill.

        Args:
            tokenizer: Fingerprint of the tokenizer.
            vocab_size: Its ids.
        """
        tokens, index = self.folder / "tokens.bin", self.folder / "tokens.idx"
        lengths = np.memmap(self.folder / "lengths.bin", mode="r", dtype=np.int32)
        write_index(index, token_type_for(vocab_size), lengths)
        index_hash = sha256_of(index)
        manifest_path(self.prefix).unlink(missing_ok=True)
        if exists(tokens):
            tokens.replace(bin_path(self.prefix))
        index.replace(idx_path(self.prefix))
        manifest = Manifest(
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            documents=self.journal.documents,
            tokens=self.journal.tokens,
            sources=[_noted(source) for source in self.journal.sources],
            options=self.journal.identity,
            bin_sha256=list(self.journal.block_hashes),
            idx_sha256=index_hash,
        )
        write_manifest(self.prefix, manifest)
        shutil.rmtree(self.folder)
        return manifest

    def _recover(self, options: TextOptions) -> None:
        """Take up the journal of an earlier call, unless it was about something else."""
        file = self.folder / JOURNAL
        if not exists(file):
            return
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["identity"] != json.loads(json.dumps(self.journal.identity)):
            file.unlink()
            return
        sources = [Source(**source) for source in content["sources"]]
        for number, now in enumerate(self.journal.sources):
            before = sources[number]
            # A file that was only touched holds the text that was read.
            if (
                before.mtime_ns != now.mtime_ns
                and before.sha256
                and (hash_text(Path(now.path), options, end=before.end) != before.sha256)
            ):
                file.unlink()
                return
            sources[number] = replace(before, mtime_ns=now.mtime_ns)
        content["block_hashes"] = tuple(content["block_hashes"])
        self.journal = Journal(**{**content, "sources": tuple(sources)})

    def _open(self, name: str) -> BinaryIO:
        return (self.folder / name).open("r+b" if exists(self.folder / name) else "w+b")

    def _cut_back(self) -> None:
        """Drop what was written after the last journal, and hash the block that was begun."""
        self._tokens.truncate(self.journal.bin_bytes)
        self._lengths.truncate(4 * self.journal.documents)
        whole = len(self.journal.block_hashes) * HASH_BLOCK_BYTES
        self._tokens.seek(whole)
        self._hash = sha256(self._tokens.read())
        self._lengths.seek(0, os.SEEK_END)

    def _digest(self, data: bytes) -> tuple[str, ...]:
        """Hash more of the token file. Returns the hashes of the blocks it completes."""
        begun = self.journal.bin_bytes % HASH_BLOCK_BYTES
        hashes = []
        while begun + len(data) >= HASH_BLOCK_BYTES:
            room = HASH_BLOCK_BYTES - begun
            self._hash.update(data[:room])
            hashes.append(self._hash.hexdigest())
            self._hash, data, begun = sha256(), data[room:], 0
        self._hash.update(data)
        return tuple(hashes)


def _noted(source: Source) -> dict[str, object]:
    """What the manifest tells of a source."""
    kept = ("path", "bytes", "lines", "documents", "tokens", "blank", "bad_lines", "sha256")
    return {name: value for name, value in asdict(source).items() if name in kept}
