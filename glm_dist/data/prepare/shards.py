"""Tokens of each input file as shards, so that a killed preparation redoes only what is missing.

``<prefix>.partial/`` holds one shard for each input file, or for each ``SHARD_BYTES`` of text of a
large one. A shard appears under its name when it is whole; its name is derived from the path of the
input and from the options. So inputs that are added, left out or repaired leave the shards of the
others alone. At the end all shards are joined.

A shard is one file: token ids, the length of each document, its first line, a JSON record, and the
size of that record in the last eight bytes.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from glm_dist.data.corpus.indexed import write_index
from glm_dist.data.corpus.manifest import PARTIAL
from glm_dist.data.corpus.origins import pack_origins
from glm_dist.data.prepare.bad_lines import BadLines
from glm_dist.data.prepare.readers import Block
from glm_dist.data.prepare.shuffle import shuffled_order, write_in_order
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
    first_bad_lines: list[dict[str, Any]]
    """The first of them, as fields of ``BadLine``; a later call's message names them, too."""


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
        origins: Path,
        *,
        token_type: "np.dtype[np.integer[Any]]",
        shuffle_seed: int | None = None,
    ) -> None:
        """Write the files of the corpus.

        Args:
            shards: All shards of each input file, in order.
            tokens: The .bin file to write.
            index: The .idx file to write.
            origins: The .origins file to write.
            token_type: Type of the ids.
            shuffle_seed: Seed of the order of documents; None keeps that of the text.
        """
        if shuffle_seed is None:
            lengths, packed = self._copy(shards, tokens)
        else:
            in_text_order = self.path / "tokens"
            lengths, packed = self._copy(shards, in_text_order)
            order = shuffled_order(len(lengths), seed=shuffle_seed)
            write_in_order(in_text_order, tokens, order, lengths=lengths, token_type=token_type)
            in_text_order.unlink()
            lengths, packed = lengths[order], packed[order]
        write_index(index, token_type, lengths)
        packed.tofile(origins)

    def _copy(
        self, shards: Mapping[Path, Sequence[Shard]], tokens: Path
    ) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """Write the tokens of all shards; lengths and origins of their documents, mapped."""
        with ExitStack() as files:
            target = files.enter_context(tokens.open("wb"))
            lengths = files.enter_context((self.path / "lengths").open("wb"))
            origins = files.enter_context((self.path / "origins").open("wb"))
            for number, (file, parts) in enumerate(shards.items()):
                for part, shard in enumerate(parts):
                    with self._name(file, part).open("rb") as source:
                        _copy(source, target, shard.token_bytes)
                        _copy(source, lengths, 4 * shard.documents)
                        lines = np.frombuffer(source.read(8 * shard.documents), np.int64)
                        origins.write(pack_origins(number, lines).tobytes())
        return (
            np.memmap(self.path / "lengths", mode="r", dtype=np.int32),
            np.memmap(self.path / "origins", mode="r", dtype="<i8"),
        )

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
        lengths, first_lines = [], []
        size = end = 0
        bad_lines = BadLines()
        with replacing(self._name(file, number)) as (beside,), beside.open("wb") as stream:
            for block, tokens in pairs:
                stream.write(tokens.ids)
                lengths.append(tokens.lengths)
                first_lines.append(tokens.lines)
                bad_lines.add(tokens.bad_lines)
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
                first_bad_lines=[asdict(line) for line in bad_lines.first],
                **counts,
            )
            _check_unchanged(file, facts)
            record = json.dumps(asdict(shard)).encode()
            stream.write(
                b"".join([*lengths, *first_lines, record, len(record).to_bytes(8, "little")])
            )
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
            if begin == shard.token_bytes + (4 + 8) * shard.documents:
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
