"""Jobs of a comparison: pretraining by each objective, then finetuning from all initial weights.

No torch: the plan is made, and what can be checked is checked, before anything starts.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from glm_dist.config.compare import RANDOM, CompareConfig
from glm_dist.config.finetuning import EXPERIMENT
from glm_dist.config.load import dump_config, load_config
from glm_dist.config.schema import RunConfig
from glm_dist.data.tokenizer.tokenizer import load_tokenizer
from glm_dist.errors import ConfigError
from glm_dist.observe.endings import FINISHED_FILE
from glm_dist.observe.run_folder import CONFIG_FILE
from glm_dist.tasks import finetune
from glm_dist.tasks.compare.last_words import read_last_words
from glm_dist.tasks.readers.records import Split
from glm_dist.tasks.results import RESULTS_FILE
from glm_dist.tasks.task_data import read_task_data
from glm_dist.train.preflight import check_files

LAST_WORDS_FILE = "last_words.json"
"""File in the folder of a pretraining with its measurement."""


@dataclass(frozen=True)
class Job:
    """One run, or the measurement of one."""

    name: str
    """Name of the run."""
    first: str
    """Initial weights: an objective, or ``RANDOM``."""
    overrides: tuple[str, ...]
    """Configuration of the run."""
    folder: Path
    """Folder of the run."""
    result: str = FINISHED_FILE
    """File in it that says that the job is done."""
    task: str = ""
    """Task of a finetuning."""
    seed: int = 0
    """Seed of a finetuning."""
    needs: str = ""
    """Name of the run that must be finished before."""

    @property
    def is_pretraining(self) -> bool:
        """True for the pretraining of an objective."""
        return not self.task and self.result == FINISHED_FILE

    @property
    def is_finished(self) -> bool:
        """True if the job needs no more work."""
        return (self.folder / self.result).exists()


@dataclass(frozen=True)
class Comparison:
    """A comparison, as typed and as composed."""

    config: RunConfig
    """Configuration of the pretrainings, but for the objective."""
    typed: tuple[str, ...]
    config_dir: Path | None = None

    @property
    def folder(self) -> Path:
        """Folder of the comparison, which holds those of the runs."""
        return self.config.run_dir

    @property
    def settings(self) -> CompareConfig:
        """The section ``compare``."""
        return self.config.compare

    @property
    def firsts(self) -> list[str]:
        """Names of the initial weights, the reference first and ``RANDOM`` last."""
        return [*map(CompareConfig.short, self.settings.objectives), RANDOM]

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(map(CompareConfig.short, self.settings.tasks))

    def jobs(self) -> list[Job]:
        """List all jobs in an order in which each finds what it needs."""
        return [*self._pretrainings(), *self._measurements(), *self._finetunings()]

    def named(self) -> Mapping[str, Job]:
        """List the runs by name, without measurements."""
        return {job.name: job for job in self.jobs() if job.result != LAST_WORDS_FILE}

    def _pretrainings(self) -> Iterator[Job]:
        for objective in self.settings.objectives:
            name = pretraining_name(objective)
            chosen = (f"corruption={objective}", *self._place(name))
            yield Job(name, objective, (*self.typed, *chosen), self.folder / name)

    def _measurements(self) -> Iterator[Job]:
        for job in self._pretrainings():
            if self.settings.last_words is not None:
                yield replace(job, result=LAST_WORDS_FILE, needs=job.name)

    def _finetunings(self) -> Iterator[Job]:
        settings = self.settings
        for seed in settings.seeds:
            for task in settings.tasks:
                for first in self.firsts:
                    short = CompareConfig.short(task)
                    name = f"{first}-{short}-{seed}"
                    origin = settings.objectives[0] if first == RANDOM else first
                    needs = pretraining_name(origin)
                    drawn = ("run.init_with=architecture",) if first == RANDOM else ()
                    overrides = (
                        f"experiment={EXPERIMENT}",
                        f"task={task}",
                        f"run.init_from={self.folder / needs}",
                        *drawn,
                        f"run.seed={seed}",
                        f"paths.data={self.config.paths.data}",
                        "parallel=dp",
                        *settings.finetune,
                        *self._place(name),
                    )
                    yield Job(
                        name,
                        first,
                        overrides,
                        self.folder / name,
                        result=RESULTS_FILE,
                        task=short,
                        seed=seed,
                        needs=needs,
                    )

    def _place(self, name: str) -> tuple[str, ...]:
        return f"run.name={name}", f"paths.runs={self.folder}"


def pretraining_name(objective: str) -> str:
    """Return the name of the run that pretrains an objective."""
    return f"pretrain-{objective}"


def plan(typed: Sequence[str], *, config_dir: Path | None = None) -> Comparison:
    """Compose a comparison and check it, but for the number of processes.

    Args:
        typed: Overrides.
        config_dir: Folder of the groups; None: conf/.

    Raises:
        ConfigError: Nothing is compared, or a value is wrong.
        DataError: A file of examples or a corpus cannot be used.
    """
    config = load_config(typed, config_dir=config_dir)
    settings = config.compare
    lists = {"objectives": settings.objectives, "tasks": settings.tasks, "seeds": settings.seeds}
    empty = [name for name, values in lists.items() if not values]
    if empty:
        raise ConfigError(
            f"compare.{empty[0]} is empty, so there is nothing to compare.\n"
            "  Choose experiment=compare_objectives, or set compare.objectives, compare.tasks and"
            " compare.seeds.",
            key=f"compare.{empty[0]}",
            value="[]",
            fix="experiment=compare_objectives",
        )
    comparison = Comparison(config, tuple(typed), config_dir)
    _check(comparison)
    return comparison


def _check(comparison: Comparison) -> None:
    """Check every pretraining, and the examples of every task as each objective reads them.

    Raises:
        GlmDistError: A job would fail.
    """
    config_dir, jobs = comparison.config_dir, comparison.jobs()
    with TemporaryDirectory() as folder:
        for job in jobs:
            if job.is_pretraining:
                config = load_config(job.overrides, config_dir=config_dir)
                _check_saves(config)
                if not job.folder.exists():
                    check_files(config, asks_store=False)
                # A finetuning takes its model from a run, whose configuration is enough here.
                (Path(folder) / job.name).mkdir()
                (Path(folder) / job.name / CONFIG_FILE).write_text(dump_config(config))
        seen = set()
        for job in jobs:
            if job.task and job.seed == comparison.settings.seeds[0]:
                origin = f"run.init_from={Path(folder) / job.needs}"
                overrides = [*job.overrides, origin]
                config = load_config(overrides, config_dir=config_dir)
                if job.task not in seen:  # all examples; the other objectives read the same
                    finetune.complete(config, overrides, config_dir=config_dir)
                    seen.add(job.task)
                else:
                    splits = (Split.valid,)
                    tokenizer = load_tokenizer(config.tokenizer)
                    data = read_task_data(config, tokenizer, splits=splits)
                    data.rows(data.example(data.first))
    if comparison.settings.last_words is not None:
        read_last_words(Path(comparison.settings.last_words))


def _check_saves(config: RunConfig) -> None:
    """Refuse pretrainings that leave no weights to finetune.

    Raises:
        ConfigError: They save no checkpoint.
    """
    if config.checkpoint.interval == 0:
        raise ConfigError(
            "checkpoint.interval=0 saves no checkpoints, but finetunings begin with those of the"
            " pretrainings.\n"
            "  Leave it out; compare.finetune may have checkpoint=none.",
            key="checkpoint.interval",
            value=0,
            fix="leave it out",
        )
