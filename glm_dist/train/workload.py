"""Work of a run: the rows it trains on, their loss, and its validation.

The loop knows nothing else about what is learned. Pretraining is the workload of this file;
finetuning on a task is one of ``tasks``, which stands above and passes it to ``train.job.run``.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, cast

import torch

from glm_dist.checkpoint.manifest import Json
from glm_dist.config.schema import RunConfig
from glm_dist.data.row_source import RowSource, open_row_source
from glm_dist.observe.metrics import VALID_LOSS
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.evaluate import validation_losses
from glm_dist.train.rows import ItemSource
from glm_dist.train.task import Pretraining, Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Selection:
    """Metric of a validation by which checkpoints are compared."""

    metric: str
    """Full name, as in the records."""
    larger_is_better: bool


class Workload(Protocol):
    """Interface of what a run does in its steps and validations; the same on every rank."""

    @property
    def task(self) -> Task:
        """Turns rows into batches and hidden states into a loss."""

    @property
    def rows(self) -> ItemSource:
        """Training items; ``batch.global_batch_size`` and ``micro_batch_size`` count them."""

    @property
    def rows_per_item(self) -> int:
        """Rows of each training item; 1 in pretraining."""

    @property
    def selection(self) -> Selection:
        """Metric of ``validate`` that tells which checkpoint is the best."""

    def fingerprint(self) -> dict[str, Json]:
        """Identify the data: what must not change between a checkpoint and its continuation."""

    def digests(self) -> dict[str, str]:
        """Return a digest of each part of the data by its name; the same on every rank of a job."""

    def validate(
        self,
        engine: TrainingEngine,
        *,
        step: int,
        device: torch.device,
        stops: Callable[[], bool],
    ) -> dict[str, float] | None:
        """Measure the model. Collective over all ranks.

        Args:
            engine: Model of this rank; its weights are unchanged afterwards.
            step: Steps done.
            device: The rank's device.
            stops: Votes on a stop, collective over all ranks; to be asked between groups of
                batches.

        Returns:
            Full metric name -> value, equal on all ranks; None after a stop.
        """

    def finish(
        self,
        engine: TrainingEngine,
        *,
        step: int,
        device: torch.device,
        run_dir: Path,
        stops: Callable[[], bool],
    ) -> bool:
        """Conclude a run whose steps are all done. Collective over all ranks.

        Args:
            engine: Model of this rank; not trained any more, so its weights may be changed.
            step: Last step.
            device: The rank's device.
            run_dir: The run's folder.
            stops: As for ``validate``.

        Returns:
            False after a stop; then this is called again at the next start.
        """


OpenWorkload: TypeAlias = Callable[[RunConfig], Workload]
"""Opens the data of a checked configuration on one rank, and raises if it cannot be used."""


class PretrainingWorkload:
    """Blank infilling, or a baseline, on corpora; see ``Workload``."""

    rows_per_item = 1

    def __init__(self, config: RunConfig, source: RowSource) -> None:
        """Store the inputs.

        Args:
            config: The run's configuration.
            source: Its rows.
        """
        self._config = config
        self._without_targets: set[str] = set()
        self.rows = source
        self.task = Pretraining(source.objectives)
        self.selection = Selection(VALID_LOSS + source.objectives[0], larger_is_better=False)

    def fingerprint(self) -> dict[str, Json]:
        """See ``Workload``."""
        return cast(dict[str, Json], self.rows.fingerprint())

    def digests(self) -> dict[str, str]:
        """See ``Workload``."""
        content = json.dumps(self.fingerprint(), sort_keys=True)
        return {"data.corpora": hashlib.sha256(content.encode()).hexdigest()[:12]}

    def validate(
        self,
        engine: TrainingEngine,
        *,
        step: int,
        device: torch.device,
        stops: Callable[[], bool],
    ) -> dict[str, float] | None:
        """Compute the loss of each objective on held-out rows; see ``Workload``."""
        losses = validation_losses(
            engine,
            self.rows.validation,
            num_rows=self._config.evaluation.rows_per_objective,
            micro_batch_size=self._config.batch.micro_batch_size,
            device=device,
            stops=stops,
        )
        if losses is None:
            return None
        empty = set(self.rows.validation.objectives) - losses.keys() - self._without_targets
        for objective in sorted(empty):  # warn once, not at every validation
            log.warning(
                "validation has no targets for objective=%s; its loss is left out", objective
            )
        self._without_targets |= empty
        return {VALID_LOSS + name: loss for name, loss in losses.items()}

    def finish(
        self,
        engine: TrainingEngine,
        *,
        step: int,
        device: torch.device,
        run_dir: Path,
        stops: Callable[[], bool],
    ) -> bool:
        """Do nothing; see ``Workload``."""
        return True


def open_pretraining(config: RunConfig) -> PretrainingWorkload:
    """Open the corpora of a run.

    Args:
        config: Checked configuration without a task.

    Raises:
        DataError: See ``open_row_source``.
        ConfigError: See ``open_row_source``.
    """
    return PretrainingWorkload(config, open_row_source(config))
