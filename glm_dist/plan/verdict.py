"""Verdict on the memory of a run: whether it fits its GPUs, and overrides that make it fit."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations

from glm_dist.config.checks import check_config
from glm_dist.config.schema import Dtype, RecomputeConfig, RecomputeMode, RunConfig
from glm_dist.errors import GlmDistError, LaunchError
from glm_dist.parallel.layout import Layout
from glm_dist.plan.memory import RankMemory, rank_memory
from glm_dist.plan.state import ParameterTable
from glm_dist.plan.wording import gib

MOST_PROPOSED = 3
"""Ways to make a run fit that an error names."""
MOST_CHANGES = 3
"""Overrides that a proposal combines at most."""
LARGEST_TENSOR_SIZE = 8
"""GPUs of the usual node, whose links tensor parallelism needs."""
LARGEST_ZERO_STAGE = 3


@dataclass(frozen=True)
class WorstRank:
    """The rank that needs most memory."""

    rank: int
    stage: int
    stages: int
    memory: RankMemory

    def __str__(self) -> str:
        """Return the rank and its stage in words."""
        where = f", stage {self.stage} of {self.stages}" if self.stages > 1 else ""
        return f"rank {self.rank}{where}"


def worst_rank(
    config: RunConfig,
    layout: Layout,
    *,
    rows_per_item: int = 1,
    table: ParameterTable | None = None,
) -> WorstRank:
    """Find the rank that needs most memory; ranks of one stage need about the same.

    Args:
        config: Checked configuration.
        layout: Layout of its processes.
        rows_per_item: Rows of an example, in finetuning.
        table: The model's parameters; None lists them.
    """
    table = table or ParameterTable.of(config)
    tensor_size, stages = layout.tensor_parallel_size, layout.pipeline_parallel_size
    each = tensor_size * layout.data_parallel_size  # ranks of a stage
    ranks = range(0, layout.world_size, each)
    if config.zero.stage == 2 and config.precision.dtype is Dtype.fp32:
        # Replicas keep the gradients of whole parameters, so some keep more.
        ranks = range(0, layout.world_size, tensor_size)
    found = [
        (rank, rank_memory(config, layout, rank, rows_per_item=rows_per_item, table=table))
        for rank in ranks
    ]
    rank, memory = max(found, key=lambda pair: pair[1].total)
    return WorstRank(rank, rank // each, stages, memory)


def describe_parts(memory: RankMemory) -> str:
    """Return the parts of a rank's memory in words."""
    parts = (
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("optimizer", memory.optimizer),
        ("activations", memory.activations),
        ("buffers", memory.buffers),
        ("margin", memory.margin),
    )
    return ", ".join(f"{name} {gib(size)}" for name, size in parts)


def check_fits(
    config: RunConfig, world_size: int, *, memory: int, device: str, rows_per_item: int = 1
) -> WorstRank:
    """Check that every rank fits its GPU.

    Args:
        config: Checked configuration.
        world_size: Processes of the job.
        memory: Bytes of each GPU.
        device: What to call the GPU in an error.
        rows_per_item: Rows of an example, in finetuning.

    Returns:
        The rank that needs most.

    Raises:
        LaunchError: It does not fit; the error has the parts and what would fit.
    """
    layout = Layout.from_config(config, world_size)
    worst = worst_rank(config, layout, rows_per_item=rows_per_item)
    if worst.memory.total <= memory:
        return worst
    fixes = list(
        _first(_ways_to_fit(config, world_size, memory=memory, rows_per_item=rows_per_item))
    )
    ways = ", or ".join(fixes)
    remedy = f"Set {ways}" if fixes else _smallest_job(config, layout, memory, device)
    raise LaunchError(
        f"{worst} needs {gib(worst.memory.total)}, and {device} has {gib(memory)}.\n"
        f"  {describe_parts(worst.memory)}.\n"
        f"  {remedy}; --force goes on regardless.",
        key="memory",
        value=worst.memory.total,
        fix=fixes[0] if fixes else "start more processes",
    )


def _first(ways: Iterator[str]) -> Iterator[str]:
    for _, way in zip(range(MOST_PROPOSED), ways, strict=False):
        yield way


def _smallest_job(config: RunConfig, layout: Layout, memory: int, device: str) -> str:
    """Say how many GPUs hold at least weights, gradients and optimizer, however they are cut."""
    alone = Layout()
    whole = replace(config, zero=replace(config.zero, stage=0))
    state = rank_memory(whole, alone, 0).state
    needed = -(-state // memory)
    if needed > layout.world_size:
        return (
            f"Start at least {needed} processes: weights, gradients and optimizer take"
            f" {gib(state)} in all, and {layout.world_size} of {device} have"
            f" {gib(layout.world_size * memory)}"
        )
    return (
        f"Start more processes: up to {MOST_CHANGES} changes of parallel, zero, recompute and"
        " batch.micro_batch_size do not suffice"
    )


def _ways_to_fit(
    config: RunConfig, world_size: int, *, memory: int, rows_per_item: int
) -> Iterator[str]:
    """Yield overrides with which the job fits: single ones, or if there are none, several."""
    table = ParameterTable.of(config)
    single = list(_changes(config, world_size))
    for size in range(1, MOST_CHANGES + 1):
        found = set()
        for chosen in combinations(single, size):
            keys = frozenset(change.key for change in chosen)
            if len(keys) < size or keys in found:  # the smallest of such changes came first
                continue
            changed = config
            for change in chosen:
                changed = change.applied_to(changed)
            if _fits(changed, world_size, memory, rows_per_item=rows_per_item, table=table):
                found.add(keys)
                yield " ".join(change.override for change in chosen)
        if found:
            return


def _fits(
    config: RunConfig, world_size: int, memory: int, *, rows_per_item: int, table: ParameterTable
) -> bool:
    try:
        check_config(config, world_size=world_size)
    except GlmDistError:
        return False
    layout = Layout.from_config(config, world_size)
    worst = worst_rank(config, layout, rows_per_item=rows_per_item, table=table)
    return worst.memory.total <= memory


@dataclass(frozen=True)
class _Change:
    """One override that saves memory."""

    key: str
    override: str
    value: int | bool

    def applied_to(self, config: RunConfig) -> RunConfig:
        """Return the configuration with it."""
        if self.key == "recompute":
            return replace(config, recompute=RecomputeConfig(RecomputeMode.full, 1))
        section, _, name = self.key.partition(".")
        values = {name: self.value}
        if name == "pipeline_parallel_size":
            values |= {"stage_layers": []}  # type: ignore[dict-item]
        return replace(config, **{section: replace(getattr(config, section), **values)})


def _changes(config: RunConfig, world_size: int) -> Iterator[_Change]:
    """Yield changes that save memory, those that cost least time first."""
    parallel, batch = config.parallel, config.batch
    if config.zero.stage == 0:
        yield _Change("zero.stage", "zero=stage1", value=1)
    if parallel.tensor_parallel_size > 1 and not parallel.sequence_parallel:
        yield _Change("parallel.sequence_parallel", "parallel.sequence_parallel=true", value=True)
    rows = batch.global_batch_size // config.data_parallel_size(world_size)
    for size in range(batch.micro_batch_size - 1, 0, -1):
        if rows % size == 0:
            yield _Change("batch.micro_batch_size", f"batch.micro_batch_size={size}", value=size)
    if config.recompute.mode is not RecomputeMode.full:
        yield _Change("recompute", "recompute=full", value=True)
    for name, largest in (
        ("tensor_parallel_size", LARGEST_TENSOR_SIZE),
        ("pipeline_parallel_size", world_size),
    ):
        key, size = f"parallel.{name}", 2 * getattr(parallel, name)
        while size <= min(largest, world_size):
            cleared = " parallel.stage_layers=[]" if parallel.stage_layers else ""
            rest = cleared if name.startswith("pipeline") else ""
            yield _Change(key, f"{key}={size}{rest}", value=size)
            size *= 2
    for stage in range(max(config.zero.stage + 1, 2), LARGEST_ZERO_STAGE + 1):
        yield _Change("zero.stage", f"zero=stage{stage}", value=stage)
