"""Lines of input files that hold no document: which, why, and what would help."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

SHOWN = 10
"""Lines that are named; the others are counted."""


@dataclass(frozen=True)
class BadLine:
    """A line that holds no document."""

    file: str
    line: int
    reason: str
    suggested_key: str | None = None
    """Another field of the line that holds text."""

    def __str__(self) -> str:
        """Write as compilers do."""
        return f"{self.file}:{self.line}: {self.reason}"


@dataclass
class BadLines:
    """The first lines without a document, and the number of all."""

    first: list[BadLine] = field(default_factory=list)
    count: int = 0

    def add(self, lines: Iterable[BadLine]) -> None:
        """Count lines, and keep the first ones."""
        for line in lines:
            self.count += 1
            if len(self.first) < SHOWN:
                self.first.append(line)

    def describe(self) -> list[str]:
        """Return a line for each of the first, and one for the rest."""
        shown = [f"skipped {line}" for line in self.first]
        more = self.count - len(self.first)
        return [*shown, f"skipped {more} more lines"] if more else shown


def better_text_key(lines: Sequence[BadLine]) -> str | None:
    """Return the field that all of some lines have their text in, if there is one."""
    keys = {line.suggested_key for line in lines}
    return keys.pop() if len(keys) == 1 else None
