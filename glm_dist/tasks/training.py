"""Benchmarks of a run in training: files of examples that validation measures as well."""

from collections.abc import Sequence
from pathlib import Path

from glm_dist.config.schema import RunConfig
from glm_dist.data.tokenizer.tokenizer import load_tokenizer
from glm_dist.generate.load import TrainedModel
from glm_dist.tasks.evaluate import Settings, evaluate
from glm_dist.tasks.examples import Examples
from glm_dist.train.engine import TrainingEngine


class TrainingBenchmarks:
    """Evaluates a run's benchmarks between its steps."""

    def __init__(self, config: RunConfig, benchmarks: Sequence[Examples]) -> None:
        """Store the inputs.

        Args:
            config: The run's configuration.
            benchmarks: As ``examples.read_benchmarks`` gives them.
        """
        self._config = config
        self._benchmarks = benchmarks
        self._tokenizer = load_tokenizer(config.tokenizer)

    def __call__(self, engine: TrainingEngine, step: int) -> dict[str, float]:
        """Evaluate all benchmarks. Collective over all ranks.

        Args:
            engine: Holds this rank's part of the model.
            step: Steps done.

        Returns:
            Metrics by ``<file>/<metric>``, equal on every rank.
        """
        model = TrainedModel(engine.model, self._tokenizer, self._config, step, engine.groups)
        settings = Settings(batch_size=self._config.batch.micro_batch_size)
        with engine.evaluating():
            results = [evaluate(model, examples, settings) for examples in self._benchmarks]
        return {
            f"{Path(result.task).name}/{name}": mean.value
            for result in results
            for name, mean in result.metrics.items()
        }
