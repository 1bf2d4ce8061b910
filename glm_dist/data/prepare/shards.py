"""Tokens of each input file as shards, so that a killed preparation redoes only what is missing.

``<prefix>.partial/`` holds one shard for each input file, or for each ``SHARD_BYTES`` of text of a
large one. A shard appears under its name when it is whole; its name is derived from the path of the
input and from the options. So inputs that are added, left out or repaired leave the shards of the
others alone. At the end all shards are joined.

A shard is one file: token ids, the length of each document, a JSON record, and the size of that
record in the last eight bytes.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import IO

import numpy as np

from glm_dist.data.corpus.indexed import token_type_for, write_index
from glm_dist.data.corpus.manifest import PARTIAL
from glm_dist.data.prepare.readers import Block
from glm_dist.data.prepare.tokenize import TokenBlock
from glm_dist.errors import DataError
from glm_dist.files import LockedError, ensure_writable, exists, lock_file, replacing, sha256_of

SHARD_BYTES = 256 << 20
"""Text in one shard, uncompressed; a kill costs at most the work for so much."""

COPY_BYTES = 1 << 20

COUNTED = ("lines", "documents", "tokens", "token_bytes", "blank", "bad_lines")
"""Counts that a shard sums over its blocks."""


@dataclass(frozen=True)
class Shard:
    """Contents of one shard."""

    input_bytes: int
    """Size of the input file when it was read."""
    input_mtime_ns: int
    """Time at which the input file was last written, in nanoseconds."""
    end: int
    """Start of the file's next shard; see ``Block.end``."""
    is_last: bool
    """True if the input file ends here."""
    input_sha256: str
    """Hash of the input file, in its last shard."""
    lines: int
    documents: int
    tokens: int
    token_bytes: int
    blank: int
    """Documents left out because they have no tokens."""
    bad_lines: int


class ShardFolder:
    """The shards of one corpus."""

    def __init__(self, prefix: str | Path, recipe: Mapping[str, object]) -> None:
        """Name the folder; nothing is made yet.

        Args:
            prefix: Prefix of the corpus.
            recipe: Options that shape the tokens of a file; others have other shards.
        """
        self.path = Path(f"{prefix}{PARTIAL}")
        self._prefix = prefix
        self._recipe = json.dumps(recipe, sort_keys=True)

    def locked(self) -> AbstractContextManager[object]:
        """Make the folder and keep other processes out of it until the context ends.

        Raises:
            DataError: Another process prepares the same corpus.
        """
        ensure_writable(self.path.parent, key="--output", create=True)
        self.path.mkdir(exist_ok=True)
        try:
            return lock_file(self.path / "lock") or nullcontext()
        except LockedError as error:
            raise DataError(
                f"Another process is preparing {self._prefix}: {error.holder}.\n"
                "  Wait for it, or choose another --output.",
                key="--output",
                value=str(self._prefix),
                fix="wait for it, or choose another --output",
            ) from error

    def find(self, file: Path) -> list[Shard]:
        """List the shards of an input file in order, up to the first that is missing.

        Shards of a file that has changed since, or that a power failure has damaged, are removed. A
        file that was only touched keeps its shards if all of it had been read.
        """
        shards: list[Shard] = []
        for number in count():
            shard = _read(self._name(file, number))
            if shard is None:
                break
            shards.append(shard)
            if shard.is_last:
                break
        facts = file.stat()
        now = (facts.st_size, facts.st_mtime_ns)
        if all((shard.input_bytes, shard.input_mtime_ns) == now for shard in shards):
            return shards
        if shards[-1].is_last and shards[-1].input_bytes == facts.st_size:
            if sha256_of(file) == shards[-1].input_sha256:
                return shards
        for number in range(len(shards)):
            self._name(file, number).unlink()
        return []

    def write(
        self, file: Path, pairs: Iterator[tuple[Block, TokenBlock]], *, after: Sequence[Shard]
    ) -> list[Shard]:
        """Write the shards of an input file.

        Args:
            file: Input file.
            pairs: Its blocks that are not in a shard yet, in order.
            after: Shards that are there.

        Returns:
            All shards of the file.

        Raises:
            DataError: The file was written to meanwhile.
        """
        shards, facts = list(after), file.stat()
        while not (shards and shards[-1].is_last):
            shards.append(self._write_one(file, len(shards), pairs, facts))
        return shards

    def join(
        self,
        shards: Mapping[Path, Sequence[Shard]],
        tokens: Path,
        index: Path,
        *,
        vocab_size: int,
    ) -> None:
        """Write the two files of the corpus.

        Args:
            shards: All shards of each input file, in order.
            tokens: The .bin file to write.
            index: The .idx file to write.
            vocab_size: Ids of the tokenizer.
        """
        with NamedTemporaryFile(dir=self.path) as lengths:
            with tokens.open("wb") as target:
                for file, parts in shards.items():
                    for number, shard in enumerate(parts):
                        with self._name(file, number).open("rb") as source:
                            _copy(source, target, shard.token_bytes)
                            _copy(source, lengths, 4 * shard.documents)
            lengths.flush()
            all_lengths = np.memmap(lengths.name, mode="r", dtype=np.int32)
            write_index(index, token_type_for(vocab_size), all_lengths)

    def remove(self) -> None:
        """Remove the folder, if there is one."""
        shutil.rmtree(self.path, ignore_errors=True)

    def _name(self, file: Path, number: int) -> Path:
        key = hashlib.blake2b(f"{self._recipe}\0{file.resolve()}".encode(), digest_size=16)
        return self.path / f"{key.hexdigest()}-{number:05d}.shard"

    def _write_one(
        self,
        file: Path,
        number: int,
        pairs: Iterator[tuple[Block, TokenBlock]],
        facts: os.stat_result,
    ) -> Shard:
        counts = Counter(dict.fromkeys(COUNTED, 0))
        lengths, size, end = [], 0, 0
        with replacing(self._name(file, number)) as (beside,), beside.open("wb") as stream:
            for block, tokens in pairs:
                stream.write(tokens.ids)
                lengths.append(tokens.lengths)
                counts.update(
                    lines=block.lines,
                    documents=tokens.num_documents,
                    tokens=tokens.num_tokens,
                    token_bytes=len(tokens.ids),
                    blank=tokens.num_blank,
                    bad_lines=len(tokens.bad_lines),
                )
                size, end = size + len(block.data), block.end
                if size >= SHARD_BYTES:
                    break
            is_last = size < SHARD_BYTES
            shard = Shard(
                input_bytes=facts.st_size,
                input_mtime_ns=facts.st_mtime_ns,
                is_last=is_last,
                input_sha256=sha256_of(file) if is_last else "",
                end=end,
                **counts,
            )
            _check_unchanged(file, facts)
            record = json.dumps(asdict(shard)).encode()
            stream.write(b"".join([*lengths, record, len(record).to_bytes(8, "little")]))
        return shard


def _check_unchanged(file: Path, before: os.stat_result) -> None:
    now = file.stat()
    if (now.st_size, now.st_mtime_ns) != (before.st_size, before.st_mtime_ns):
        raise DataError(
            f"{file} was written to while it was being read.\n"
            "  Wait until it is complete, then type the command again.",
            key=str(file),
            value=now.st_size,
            fix="wait until it is complete, then type the command again",
        )


def _read(path: Path) -> Shard | None:
    """Read the record of a shard; None, and the file removed, if it is not whole."""
    if not exists(path):
        return None
    with path.open("rb") as stream:
        try:
            stream.seek(-8, os.SEEK_END)
            size = int.from_bytes(stream.read(8), "little")
            stream.seek(-8 - size, os.SEEK_END)
            begin = stream.tell()
            shard = Shard(**json.loads(stream.read(size)))
            if begin == shard.token_bytes + 4 * shard.documents:
                return shard
        except (OSError, OverflowError, ValueError, TypeError):
            pass  # zeros, or the beginning of the file only: what a power failure leaves
    path.unlink()
    return None


def _copy(source: IO[bytes], target: IO[bytes], size: int) -> None:
    while size:
        data = source.read(min(size, COPY_BYTES))
        if not data:
            raise EOFError(f"{source.name} is shorter than its record says")
        target.write(data)
        size -= len(data)
