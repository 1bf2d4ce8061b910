"""All ways to cut a run over a number of GPUs: those that work, by speed, and why others do not."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

from glm_dist.config.checks import check_config
from glm_dist.config.load import compose_config
from glm_dist.config.schema import RecomputeMode, RunConfig
from glm_dist.errors import GlmDistError
from glm_dist.parallel.layout import Layout
from glm_dist.plan.cluster import Cluster
from glm_dist.plan.cost import StepTime, step_peak, step_time, step_work
from glm_dist.plan.state import ParameterTable
from glm_dist.plan.verdict import WorstRank, worst_rank
from glm_dist.plan.wording import gib
from glm_dist.plan.workload import in_rows

MOST_VIRTUAL_STAGES = 4
MOST_ROWS = 64
"""Largest micro-batch that is tried; products gain nothing from more."""

TENSOR, PIPELINE = "parallel.tensor_parallel_size", "parallel.pipeline_parallel_size"
VIRTUAL, STAGE_LAYERS = "parallel.virtual_stages", "parallel.stage_layers"
REPLICAS = "parallel.data_parallel_size"
SEQUENCE, ROWS = "parallel.sequence_parallel", "batch.micro_batch_size"
MODE, SEGMENT = "recompute.mode", "recompute.segment_layers"
MODES = (RecomputeMode.none, RecomputeMode.full)
"""Without stored scores, selective recomputation saves nothing."""

SEARCHED = (
    *(TENSOR, PIPELINE, REPLICAS, VIRTUAL, STAGE_LAYERS, SEQUENCE),
    *(ROWS, "zero.stage", MODE, SEGMENT),
)
"""Keys whose values a search chooses."""

Choice = Mapping[str, Any]
"""Values by key, as in an override."""

UNCUT: Choice = {
    **{TENSOR: 1, PIPELINE: 1, REPLICAS: None, VIRTUAL: 1, STAGE_LAYERS: [], SEQUENCE: False},
    **{ROWS: 1, MODE: RecomputeMode.none, SEGMENT: 1},
}
"""Values that every model and batch allows."""


def load_open(overrides: Sequence[str], *, config_dir: Path | None = None) -> RunConfig:
    """Load a configuration whose searched values may contradict each other: a search decides them.

    An experiment's ZeRO stage need not suit the pipeline that a user asks for.

    Args:
        overrides: As for ``load_config``.
        config_dir: As for ``load_config``.

    Raises:
        ConfigError: Something else is wrong.
    """
    config = compose_config(overrides, config_dir=config_dir)
    check_config(_with(config, UNCUT), world_size=None)
    return config


@dataclass(frozen=True)
class Plan:
    """One way to cut a run."""

    config: RunConfig
    layout: Layout
    changes: Choice
    """Values that differ from the configuration as given."""
    memory: WorstRank
    cluster: Cluster
    table: ParameterTable = field(repr=False)
    rows_per_item: int = 1
    """Rows of an example, in finetuning."""

    @property
    def missing(self) -> int:
        """Bytes by which it does not fit; 0 or less if it does."""
        return self.memory.memory.total - self.cluster.gpu.memory

    @cached_property
    def time(self) -> StepTime:
        """Time of a step."""
        return step_time(self._of_rows, self.layout, self.cluster, table=self.table)

    @property
    def tokens_per_second(self) -> float:
        """Positions of all replicas."""
        batch = self._of_rows.batch
        return batch.global_batch_size * batch.row_length / self.time.total

    @property
    def mfu(self) -> float:
        """Share of the peak by the published convention, 0 to 1."""
        peak = step_peak(self.config, self.cluster.gpu) * self.layout.world_size
        return step_work(self._of_rows) / self.time.total / peak

    @cached_property
    def _of_rows(self) -> RunConfig:
        return in_rows(self.config, self.rows_per_item)

    @property
    def overrides(self) -> list[str]:
        """The changes as they are typed."""
        return [f"{key}={_typed(value)}" for key, value in self.changes.items()]


@dataclass
class LeftOut:
    """Ways that one rule excludes."""

    reason: str
    """Error of the first of them; of memory, of that which misses least."""
    count: int = 0


@dataclass
class Ranking:
    """Outcome of a search."""

    plans: list[Plan] = field(default_factory=list)
    """Fastest first."""
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    """By the key of the error; ``memory`` for what does not fit."""
    rows_per_item: int = 1
    """Rows of an example, in finetuning."""

    def leave_out(self, key: str, reason: str) -> LeftOut:
        """Count a way that does not work."""
        entry = self.left_out.setdefault(key, LeftOut(reason))
        entry.count += 1
        return entry


def make_plan(
    config: RunConfig,
    cluster: Cluster,
    gpus: int,
    *,
    changes: Choice | None = None,
    table: ParameterTable | None = None,
    rows_per_item: int = 1,
) -> Plan:
    """Plan one way; whether it fits is for the caller to see.

    Args:
        config: As given.
        cluster: Where it runs.
        gpus: Processes of the job.
        changes: Values of other keys.
        table: The model's parameters; None lists them.
        rows_per_item: Rows of an example, in finetuning.

    Raises:
        GlmDistError: The configuration would be refused.
    """
    changes, table = changes or {}, table or ParameterTable.of(config)
    changed = _with(config, changes)
    check_config(changed, world_size=gpus)
    layout = Layout.from_config(changed, gpus)
    memory = worst_rank(changed, layout, rows_per_item=rows_per_item, table=table)
    differences = _differences(config, changes)
    return Plan(changed, layout, differences, memory, cluster, table, rows_per_item)


def rank_plans(
    config: RunConfig,
    cluster: Cluster,
    gpus: int,
    *,
    fixed: Collection[str] = (),
    rows_per_item: int = 1,
) -> Ranking:
    """Try all layouts, ZeRO stages, micro-batches and recomputation.

    Args:
        config: As given.
        cluster: Where it runs.
        gpus: Processes of the job.
        fixed: Keys that keep their value.
        rows_per_item: Rows of an example, in finetuning.
    """
    table = ParameterTable.of(config)
    found = Ranking(rows_per_item=rows_per_item)
    nearest: Plan | None = None
    for cut in _cuts(config, cluster, gpus, fixed):
        for mode in _values(MODE, config, fixed, MODES):
            for rows in _values(ROWS, config, fixed, _micro_batches(config, gpus, cut)):
                changes = {**cut, MODE: mode, ROWS: rows}
                if mode is not RecomputeMode.full and SEGMENT not in fixed:
                    changes[SEGMENT] = 1  # checks refuse others without recomputation
                try:
                    plan = make_plan(
                        config,
                        cluster,
                        gpus,
                        changes=changes,
                        table=table,
                        rows_per_item=rows_per_item,
                    )
                except GlmDistError as error:
                    found.leave_out(error.key or "other", str(error).splitlines()[0])
                    continue
                if plan.missing <= 0:
                    found.plans.append(plan)
                    continue
                found.leave_out("memory", "")
                if nearest is None or plan.missing < nearest.missing:
                    nearest = plan
                break  # larger micro-batches need more
    if nearest is not None:
        entry = found.left_out["memory"]
        entry.reason = f"the nearest misses {gib(nearest.missing)}: {' '.join(nearest.overrides)}"
    found.plans.sort(key=_order)
    return found


def _order(plan: Plan) -> tuple[float, bool, int]:
    """Sort by speed; of equally fast ways the plainer, then the smaller one is first."""
    recomputes = plan.config.recompute.mode is not RecomputeMode.none
    # Equal times are sums of other parts, which differ in their last digits.
    return (-float(f"{plan.tokens_per_second:.9g}"), recomputes, plan.memory.memory.total)


def _cuts(
    config: RunConfig, cluster: Cluster, gpus: int, fixed: Collection[str]
) -> Iterator[Choice]:
    """Yield layouts and ZeRO stages, those that checks refuse among them."""
    each = min(cluster.gpus_per_node, gpus)
    sizes = [n for n in _divisors(each) if gpus % n == 0 and n & (n - 1) == 0]
    for tensor_size, stages in product(
        _values(TENSOR, config, fixed, sizes), _values(PIPELINE, config, fixed, _divisors(gpus))
    ):
        if gpus % (tensor_size * stages) or stages > config.model.num_layers:
            continue
        is_whole = stages == 1
        zero = [1, 2, 3] if is_whole and gpus > tensor_size else [1]
        chunks = [1] if is_whole else list(range(1, MOST_VIRTUAL_STAGES + 1))
        for count, stage in product(
            _values(VIRTUAL, config, fixed, chunks), _values("zero.stage", config, fixed, zero)
        ):
            cut = {TENSOR: tensor_size, PIPELINE: stages, VIRTUAL: count, "zero.stage": stage}
            if REPLICAS not in fixed:
                cut[REPLICAS] = None
            if SEQUENCE not in fixed:
                # Checks refuse sequences that do not split evenly; tensor ranks need no such split.
                cut[SEQUENCE] = tensor_size > 1 and config.batch.row_length % tensor_size == 0
            if STAGE_LAYERS not in fixed:
                cut[STAGE_LAYERS] = _stage_layers(config, stages * count)
            yield cut


def _values(
    key: str, config: RunConfig, fixed: Collection[str], others: Iterable[Any]
) -> list[Any]:
    return [_value(config, key)] if key in fixed else list(others)


def _micro_batches(config: RunConfig, gpus: int, cut: Choice) -> Iterator[int]:
    replicas = gpus // (cut[TENSOR] * cut[PIPELINE])
    rows = max(config.batch.global_batch_size // replicas, 1)
    return (n for n in _divisors(rows) if n <= MOST_ROWS)


def _divisors(number: int) -> Iterator[int]:
    return (n for n in range(1, number + 1) if number % n == 0)


def _stage_layers(config: RunConfig, chunks: int) -> list[int]:
    """Return the layers of each chunk; the ends have one less where that comes out even."""
    layers = config.model.num_layers
    each = (layers + 2) // chunks
    if layers % chunks == 0 or (layers + 2) % chunks or each < 2:
        return []
    return [each - 1, *[each] * (chunks - 2), each - 1]


def _with(config: RunConfig, changes: Choice) -> RunConfig:
    """Return the configuration with other values."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in changes.items():
        section, _, name = key.partition(".")
        sections.setdefault(section, {})[name] = value
    changed = {
        section: replace(getattr(config, section), **values) for section, values in sections.items()
    }
    return replace(config, **changed)


def _differences(config: RunConfig, changes: Choice) -> Choice:
    return {key: value for key, value in changes.items() if _value(config, key) != value}


def _value(config: RunConfig, key: str) -> Any:
    section, _, name = key.partition(".")
    return getattr(getattr(config, section), name)


def _typed(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, RecomputeMode):
        return value.name
    return str(value).replace(" ", "")
