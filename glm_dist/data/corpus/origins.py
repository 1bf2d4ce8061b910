"""Source file and line of every document of a corpus (``<prefix>.origins``).

One little-endian int64 a document, in the order of the corpus: the number of the source in the
manifest, times 2^40, plus the number of the document's first line. Nothing in training reads it.
"""

from bisect import bisect_right
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from glm_dist.data.corpus.manifest import Manifest
from glm_dist.files import is_file

LINE_BITS = 40


@dataclass(frozen=True)
class Origin:
    """Place that a document was read from."""

    file: str
    line: int | None
    """First line (Parquet: row), from 1; None where the corpus does not say."""
    number: int | None = None
    """Number of the document in the file, from 1, where only the line is unknown."""

    def __str__(self) -> str:
        """Write as compilers do."""
        if self.line is not None:
            return f"{self.file}:{self.line}"
        return self.file if self.number is None else f"{self.file}, document {self.number} of it"


class Origins:
    """Origins of the documents of one corpus."""

    def __init__(self, prefix: str | Path, manifest: Manifest) -> None:
        """Map the file; corpora of older versions have only counts in their manifest."""
        self._files = [str(source["path"]) for source in manifest.sources]
        file = origins_path(prefix)
        has_lines = bool(manifest.origins_sha256) and is_file(file)
        self._packed = np.memmap(file, mode="r", dtype="<i8") if has_lines else None
        # Documents may be shuffled, so counts alone do not tell the file.
        self._missing = f"{file} is missing" if manifest.origins_sha256 and not has_lines else None
        counts = [int(str(source.get("documents", 0))) for source in manifest.sources]
        self._ends = list(accumulate(counts))

    def of(self, document: int) -> Origin:
        """Find where a document was read.

        Args:
            document: Its number in the corpus, from 0.
        """
        if self._packed is not None:
            source, line = divmod(int(self._packed[document]), 1 << LINE_BITS)
            return Origin(self._files[source], line)
        if self._missing is not None:
            return Origin(self._missing, None)
        source = bisect_right(self._ends, document)
        begin = self._ends[source - 1] if source else 0
        return Origin(self._files[source], None, document - begin + 1)


def origins_path(prefix: str | Path) -> Path:
    """Name the file of the origins of a corpus."""
    return Path(f"{prefix}.origins")


def pack_origins(source: int, lines: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join the number of a source and first lines of its documents. Shapes: [n] to [n]."""
    return (source << LINE_BITS) + lines


def move_sources(packed: NDArray[np.int64], by: int) -> NDArray[np.int64]:
    """Count the sources from another number. Shapes: [n] to [n]."""
    return packed + (by << LINE_BITS)
