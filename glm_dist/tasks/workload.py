"""Work of a run with a task: examples to train on, their loss, and what validation measures."""

import logging
import math
from collections.abc import Callable
from pathlib import Path

import torch

from glm_dist.checkpoint.best import BEST_FILE, read_best
from glm_dist.checkpoint.folders import step_name
from glm_dist.checkpoint.load import read_checkpoint
from glm_dist.checkpoint.manifest import Json
from glm_dist.config.schema import RunConfig
from glm_dist.config.task import LOSS
from glm_dist.files import is_file
from glm_dist.generate.load import TrainedModel
from glm_dist.observe.metrics import VALID
from glm_dist.observe.run_folder import CHECKPOINTS
from glm_dist.observe.tables import table_console
from glm_dist.parallel.errors import Ranks
from glm_dist.tasks.items import TaskItems
from glm_dist.tasks.loss import loss_of
from glm_dist.tasks.measure import measure
from glm_dist.tasks.outcome import Outcome
from glm_dist.tasks.readers.records import Split
from glm_dist.tasks.results import Measurement, Results, show_results, write_results
from glm_dist.tasks.task_data import TaskData
from glm_dist.train.engine import TrainingEngine
from glm_dist.train.fit import saved_shapes
from glm_dist.train.state import load_weights
from glm_dist.train.workload import OpenWorkload, Selection, open_pretraining

log = logging.getLogger(__name__)


class TaskWorkload:
    """Finetuning; see ``train.workload.Workload``."""

    def __init__(self, config: RunConfig, data: TaskData) -> None:
        """Join examples and loss.

        Args:
            config: Checked configuration.
            data: Its examples.
        """
        self._config = config
        self._data = data
        _announce(config, data)
        self.task = loss_of(data)
        self.rows = TaskItems(data, config.batch.row_length, config.run.seed, config.data)
        self.rows_per_item = data.rows_per_example
        self.selection = selection_of(config)
        self._validated: tuple[int, Outcome] | None = None  # step and outcome of the last one

    def fingerprint(self) -> dict[str, Json]:
        """See ``Workload``."""
        return self._data.fingerprint()

    def digests(self) -> dict[str, str]:
        """See ``Workload``."""
        digests = self._data.digests
        return {f"task.data.{split.value}": digest[:12] for split, digest in digests.items()}

    def validate(
        self,
        engine: TrainingEngine,
        *,
        step: int,
        device: torch.device,
        stops: Callable[[], bool],
    ) -> dict[str, float] | None:
        """Measure all examples of validation; see ``Workload``."""
        found = self.measure(engine, Split.valid, step=step, device=device, stops=stops)
        if found is None:
            return None
        self._validated = (step, found)
        metrics = {name: mean.value for name, mean in found.metrics.items()}
        metrics = {LOSS: found.loss} | metrics
        return {VALID + name: value for name, value in metrics.items() if not math.isnan(value)}

    def measure(
        self,
        engine: TrainingEngine,
        split: Split,
        *,
        step: int,
        device: torch.device,
        stops: Callable[[], bool] = lambda: False,
    ) -> Outcome | None:
        """Measure the examples of a split. Collective over all ranks.

        Args:
            engine: Model of this rank.
            split: One that has examples.
            step: Steps done.
            device: The rank's device.
            stops: See ``Workload``.

        Returns:
            The outcome, equal on all ranks; None after a stop.
        """
        model = TrainedModel(
            engine.model, self._data.tokenizer, self._config, step, engine.groups, self.task
        )
        with engine.evaluating():
            return measure(engine, model, self._data, split, device=device, stops=stops)

    def finish(
        self,
        engine: TrainingEngine,
        *,
        step: int,
        device: torch.device,
        run_dir: Path,
        stops: Callable[[], bool],
    ) -> bool:
        """Measure the last and the best checkpoint and write the results; see ``Workload``."""
        last = self._measure_splits(engine, step=step, device=device, stops=stops)
        ranks = Ranks(None)
        best_step = ranks.on_first(
            "read the best step", str(run_dir), lambda: best_step_of(run_dir)
        )
        best = last
        if best_step is not None and best_step != step:
            info = read_checkpoint(run_dir / CHECKPOINTS / step_name(best_step))
            load_weights(engine, info, saved_shapes(info.manifest))
            best = self._measure_splits(engine, step=best_step, device=device, stops=stops)
        if last is None or best is None:
            log.info("results put off by a stop request; the next start writes them")
            return False
        task = self._config.task
        files = {split: str(getattr(task.data, split.value)) for split in Split}
        results = Results(
            run=self._config.run.name,
            task=task.name,
            seed=self._config.run.seed,
            select=self.selection.metric.removeprefix(VALID),
            larger_is_better=self.selection.larger_is_better,
            files=files,
            last=last,
            best=None if best_step is None else best,
        )

        def write() -> None:
            write_results(results, run_dir)
            show_results(results, table_console(stderr=True))

        ranks.on_first("write the results", str(run_dir), write)
        return True

    def _measure_splits(
        self,
        engine: TrainingEngine,
        *,
        step: int,
        device: torch.device,
        stops: Callable[[], bool],
    ) -> Measurement | None:
        outcomes: dict[Split, Outcome] = {}
        for split in (Split.valid, Split.test):
            if split not in self._data.records:
                continue
            found = None
            if split is Split.valid and self._validated is not None:
                validated_step, validated = self._validated
                found = validated if validated_step == step else None
            if found is None:
                found = self.measure(engine, split, step=step, device=device, stops=stops)
            if found is None:
                return None
            outcomes[split] = found
        return Measurement(step, outcomes)


def _announce(config: RunConfig, data: TaskData) -> None:
    task = config.task
    counts = " ".join(f"{split.value}={len(found)}" for split, found in data.records.items())
    log.info(
        "task=%s kind=%s examples: %s rows_per_example=%d row_length=%d steps=%d steps_of_epoch=%d",
        *(task.name, task.kind.name, counts, data.rows_per_example),
        *(config.batch.row_length, config.run.steps, task.epoch_steps),
    )
    for said in data.repeated():
        log.info("warning: %s", said)  # on the first rank alone
    log.info("pattern: %s", task.prompt_pattern)
    example = data.example(data.first)
    log.info("first prompt: %s", data.tokenizer.decode(example.questions[0].prompt.tokens))
    log.info("its answers: %s", " | ".join(data.shown_answers(example)))


def open_with(data: TaskData | None) -> OpenWorkload:
    """Choose what is learned.

    Args:
        data: Examples of a task; None: corpora, in pretraining.
    """
    return open_pretraining if data is None else lambda config: TaskWorkload(config, data)


def selection_of(config: RunConfig) -> Selection:
    """Return the metric that chooses the best checkpoint."""
    name = config.task.selecting_metric
    return Selection(VALID + name, larger_is_better=name != LOSS)


def best_step_of(run_dir: Path) -> int | None:
    """Return the step of the best checkpoint; None where none is kept."""
    folder = run_dir / CHECKPOINTS
    return read_best(folder).step if is_file(folder / BEST_FILE) else None
