"""Training rows of a run on one replica, from any step on, less what the run has passed over.

An item is what ``batch`` counts: a row in pretraining, an example with all its rows in finetuning.
A rewind passes over the items of some steps: their range is skipped from then on, as if
``data.skip_rows`` had named it. The ranges are stored in checkpoints, so that a step reads the same
rows after a restart.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol, Self

from glm_dist.config.schema import RunConfig
from glm_dist.data.loader import StepRows, TrainingBatches, training_batches
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.data.rows import Row
from glm_dist.parallel.groups import ParallelGroups


class ItemSource(Protocol):
    """Source of a run's training items; copied into the loader's workers."""

    def rows(self, number: int) -> Sequence[Row]:
        """Build all rows of item ``number``, 0, 1, 2, … without end; equally many for each.

        A function of the configuration, the data and ``number`` alone: not of rank or time.
        """

    def index(self, number: int) -> int:
        """Return the index of an item, which counts skipped ones as well."""

    def passing_over(self, rows: Sequence[str]) -> Self:
        """Return the same items without some ranges of indices, as first-last."""

    def epochs_before(self, number: int) -> Mapping[str, float]:
        """Return the passes over each part of the data made by the items before a given one."""


class StepBatches(Protocol):
    """Interface of the loop to its rows."""

    @property
    def passed_over(self) -> Sequence[str]:
        """Ranges of rows, as first-last, that rewinds have passed over."""

    def __next__(self) -> Sequence[MicroBatch]:
        """Return this replica's micro-batches of the next step."""

    def epochs_before(self, number: int) -> Mapping[str, float]:
        """Return the passes over each part of the data made by the items before a given one."""

    def indices(self, step: int) -> list[list[int]]:
        """Return the item indices of each micro-batch that this replica reads in a step."""

    def rows_of(self, first_step: int, last_step: int) -> str:
        """Return the range of item indices, as first-last, that replicas read in some steps."""

    def pass_over(self, rows: str, *, done: int) -> None:
        """Skip a range of items, and continue with the step after ``done``."""

    def reopen(self, *, done: int) -> None:
        """Continue with the step after ``done``."""


class RunRows:
    """See ``StepBatches``."""

    def __init__(
        self,
        config: RunConfig,
        source: ItemSource,
        groups: ParallelGroups,
        *,
        done: int,
        passed_over: Sequence[str] = (),
    ) -> None:
        """Open the rows.

        Args:
            config: Sizes of steps and micro-batches; workers.
            source: Items of the configuration.
            groups: This rank's process groups.
            done: Steps already done.
            passed_over: Ranges that rewinds have passed over.
        """
        self._config = config
        self._configured = source
        self._plan = StepRows(
            config.batch.global_batch_size,
            config.batch.micro_batch_size,
            groups.coordinates.data,
            groups.layout.data_parallel_size,
        )
        self.passed_over: tuple[str, ...] = tuple(passed_over)
        self._source = source.passing_over(passed_over)
        self._batches = self._open(done)

    def __next__(self) -> Sequence[MicroBatch]:
        """See ``StepBatches``."""
        return next(self._batches)

    def epochs_before(self, number: int) -> Mapping[str, float]:
        """See ``StepBatches``."""
        return self._source.epochs_before(number)

    def indices(self, step: int) -> list[list[int]]:
        """See ``StepBatches``."""
        per_step = self._plan.micro_batches_per_step
        first = (step - 1) * per_step
        return [
            [self._source.index(item) for item in self._plan.indices(number)]
            for number in range(first, first + per_step)
        ]

    def rows_of(self, first_step: int, last_step: int) -> str:
        """See ``StepBatches``."""
        size = self._plan.global_batch_size
        numbers = (first_step - 1) * size, last_step * size - 1
        first, last = (self._source.index(number) for number in numbers)
        return f"{first}-{last}"

    def pass_over(self, rows: str, *, done: int) -> None:
        """See ``StepBatches``."""
        self.passed_over = (*self.passed_over, rows)
        self._source = self._configured.passing_over(self.passed_over)
        self.reopen(done=done)

    def reopen(self, *, done: int) -> None:
        """See ``StepBatches``."""
        self._batches.close()
        self._batches = self._open(done)

    def close(self) -> None:
        """End the processes that build rows."""
        self._batches.close()

    def _open(self, done: int) -> TrainingBatches:
        batch, data = self._config.batch, self._config.data
        return training_batches(
            self._source,
            start_step=done,
            global_batch_size=batch.global_batch_size,
            micro_batch_size=batch.micro_batch_size,
            replica=self._plan.replica,
            num_replicas=self._plan.num_replicas,
            num_workers=data.num_workers,
            prefetch=data.prefetch,
        )
