"""Training items of a task: its examples, in another order in each epoch, without end."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Self

from glm_dist.config.schema import DataConfig
from glm_dist.data.rows import Row
from glm_dist.data.sampling.epoch import KeyedPermutation
from glm_dist.seeds import derive_keys
from glm_dist.tasks.readers.records import Split
from glm_dist.tasks.task_data import TaskData


@dataclass(frozen=True, eq=False)
class TaskItems:
    """Examples of training; see ``train.rows.ItemSource``."""

    data: TaskData
    row_length: int
    seed: int
    """Decides the order."""
    skipped: DataConfig
    """Its ``skip_rows`` are items that are passed over."""

    @property
    def num_examples(self) -> int:
        """Examples of an epoch."""
        return len(self.data.records[Split.train])

    def rows(self, number: int) -> Sequence[Row]:
        """Build all rows of an item.

        Args:
            number: 0, 1, 2, … without end.
        """
        index = self.index(number)
        epoch, turn = divmod(index, self.num_examples)
        place = _order(self.seed, epoch, self.num_examples)(turn)
        record = self.data.records[Split.train][place]
        rows = self.data.rows(self.data.example(record, draw=epoch), row_length=self.row_length)
        return [replace(row, index=index) for row in rows]

    def index(self, number: int) -> int:
        """Return the index of an item, which counts skipped ones as well."""
        return self.skipped.row_index(number)

    def passing_over(self, rows: Sequence[str]) -> Self:
        """Return the same items without some ranges of indices, as first-last."""
        return replace(self, skipped=self.skipped.passing_over(rows))

    def epochs_before(self, number: int) -> dict[str, float]:
        """Return the passes over the examples made by the items before a given one."""
        index = self.index(number)
        passed = sum(len(range(r.start, min(r.stop, index))) for r in self.skipped.skipped)
        return {"examples": (index - passed) / self.num_examples}


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, num_examples: int) -> KeyedPermutation:
    return KeyedPermutation(num_examples, derive_keys("examples", seed, epoch))
