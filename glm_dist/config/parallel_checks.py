"""Rules between the degrees of parallelism, ZeRO and the number format.

What is refused here would be wrong without an error, or hang, once processes run.
"""

import math
from collections.abc import Sequence

from glm_dist.config.schema import Dtype, Offload, RecomputeMode, RunConfig
from glm_dist.config.wording import divisors, either, multiples
from glm_dist.errors import ConfigError

LONGEST_PROPOSAL = 128
"""Numbers of layers that a message lists at most; GLM-130B has 70 layers in all."""


def check_parallel(config: RunConfig, *, replicas: int | None) -> None:
    """Check how layers, rows and optimizer state are cut.

    Args:
        config: Typed configuration; each value alone is already in its range.
        replicas: Known number of replicas, by which the step's rows are divisible.

    Raises:
        ConfigError: Two values contradict each other.
    """
    _check_stages(config)
    _check_recompute(config)
    _check_interleaving(config, replicas=replicas)
    _check_sequence_parallel(config)
    _check_zero(config)


def _check_stages(config: RunConfig) -> None:
    """Check that every chunk of every stage gets layers, and every layer a chunk."""
    parallel = config.parallel
    pp, chunks = parallel.pipeline_parallel_size, parallel.virtual_stages
    if chunks > 1 and pp == 1:
        raise ConfigError(
            key="parallel.virtual_stages",
            found=chunks,
            expected="1 with parallel.pipeline_parallel_size = 1; without stages there is nothing "
            "to interleave",
            fix="leave it out, or choose parallel=pp2",
        )
    check_stage_layers(
        config.model.num_layers,
        num_stages=pp,
        chunks_per_stage=chunks,
        listed=parallel.stage_layers,
    )


def check_stage_layers(
    layers: int, *, num_stages: int, chunks_per_stage: int, listed: Sequence[int]
) -> None:
    """Check that the chunks of all stages hold every layer once, and at least one each.

    Args:
        layers: Layers of the whole model.
        num_stages: Pipeline stages.
        chunks_per_stage: Virtual stages of each.
        listed: Layers of each chunk; empty divides them evenly.

    Raises:
        ConfigError: They do not.
    """
    pp, chunks = num_stages, chunks_per_stage
    if listed:
        _check_listed_layers(listed, layers, stages=pp, chunks=chunks)
        return
    proposal = _proposed_layers(layers, pp, chunks)
    uneven = f", or list the layers: parallel.stage_layers={proposal}" if proposal else ""
    if layers % pp:
        raise ConfigError(
            key="parallel.pipeline_parallel_size",
            found=pp,
            expected=f"a divisor of model.num_layers = {layers}",
            fix=f"choose {either(divisors(layers))}{uneven}",
        )
    if layers // pp % chunks:
        raise ConfigError(
            key="parallel.virtual_stages",
            found=chunks,
            expected=f"a divisor of the {layers // pp} layers of each stage",
            fix=f"choose {either(divisors(layers // pp))}{uneven}",
        )


def _check_listed_layers(listed: Sequence[int], layers: int, *, stages: int, chunks: int) -> None:
    number = stages * chunks
    if len(listed) != number and chunks > 1:
        problem = f"{stages} stages x {chunks} chunks = {number} numbers, one for each chunk"
    elif len(listed) != number:
        problem = f"{number} number{'s' if number > 1 else ''}, one for each stage"
    elif min(listed) < 1:
        problem = "at least 1 layer in each"
    elif sum(listed) != layers:
        problem = f"numbers that add up to model.num_layers = {layers}, not to {sum(listed)}"
    else:
        return
    proposal = _proposed_layers(layers, stages, chunks) or "[]"
    raise ConfigError(
        key="parallel.stage_layers",
        found=_as_typed(listed),
        expected=problem,
        fix=f"set parallel.stage_layers={proposal}",
    )


def _proposed_layers(layers: int, stages: int, chunks: int) -> str:
    """A split in which embedding and head weigh in: what is left over goes to them last.

    Empty where there are fewer layers than chunks, or too many chunks to read.
    """
    number = stages * chunks
    if layers < number or number > LONGEST_PROPOSAL:
        return ""
    least, left = divmod(layers, number)
    by_room = sorted(
        range(number),
        key=lambda place: (place == number - 1, place == 0, place % stages == stages - 1, place),
    )
    longer = by_room[:left]
    return _as_typed([least + (place in longer) for place in range(number)])


def _as_typed(numbers: Sequence[int]) -> str:
    return f"[{','.join(map(str, numbers))}]"


def _check_recompute(config: RunConfig) -> None:
    """Check that layers are computed again in equal segments; megatron-core runs over the end."""
    parallel, segment = config.parallel, config.recompute.segment_layers
    chunks = parallel.pipeline_parallel_size * parallel.virtual_stages
    depths = parallel.stage_layers or [config.model.num_layers // chunks]
    if segment > 1 and config.recompute.mode is not RecomputeMode.full:
        raise ConfigError(
            key="recompute.segment_layers",
            found=segment,
            expected=f"1 with recompute.mode = {config.recompute.mode.name}; only whole layers are "
            "computed again in segments",
            fix="leave it out, or choose recompute=full",
        )
    if math.gcd(*depths) % segment:
        raise ConfigError(
            key="recompute.segment_layers",
            found=segment,
            expected=f"a divisor of the layers of every stage, {either(sorted(set(depths)))}",
            fix=f"choose {either(divisors(math.gcd(*depths)))}",
        )


def _check_interleaving(config: RunConfig, *, replicas: int | None) -> None:
    """Check that the micro-batches fill the groups in which interleaved stages run them."""
    pp, chunks = config.parallel.pipeline_parallel_size, config.parallel.virtual_stages
    rows, micro = config.batch.global_batch_size, config.batch.micro_batch_size
    if chunks == 1 or replicas is None or rows // replicas // micro % pp == 0:
        return
    share = rows // replicas
    fitting = [size for size in divisors(share) if share // size % pp == 0 and size <= micro]
    smaller = f"batch.micro_batch_size={fitting[-1]}, or " if fitting else ""
    raise ConfigError(
        key="batch.micro_batch_size",
        found=micro,
        expected=f"a number of micro-batches that parallel.pipeline_parallel_size = {pp} divides, "
        f"because parallel.virtual_stages = {chunks} runs them in groups of that many; now "
        f"global_batch_size / (micro_batch_size x replicas) = {rows} / ({micro} x {replicas}) = "
        f"{share // micro}",
        fix=f"set {smaller}parallel.virtual_stages=1",
    )


def _check_sequence_parallel(config: RunConfig) -> None:
    tp, rows = config.parallel.tensor_parallel_size, config.batch.row_length
    if not config.parallel.sequence_parallel:
        return
    if tp == 1:
        raise ConfigError(
            key="parallel.sequence_parallel",
            found="true",
            expected="false with parallel.tensor_parallel_size = 1; it cuts rows over the "
            "processes that share a layer",
            fix="leave it out, or choose parallel=tp2",
        )
    if rows % tp:
        below, above = multiples(rows, tp)
        raise ConfigError(
            key="batch.row_length",
            found=rows,
            expected=f"a multiple of parallel.tensor_parallel_size = {tp}, because "
            "parallel.sequence_parallel cuts rows in equal parts",
            fix=f"set batch.row_length={either([below, above])}, or "
            "parallel.sequence_parallel=false",
        )


def _check_zero(config: RunConfig) -> None:
    stage, pp = config.zero.stage, config.parallel.pipeline_parallel_size
    if stage >= 2 and pp > 1:
        raise ConfigError(
            key="zero.stage",
            found=stage,
            expected=f"0 or 1 with parallel.pipeline_parallel_size = {pp}; the pipeline's schedule "
            "cannot shard gradients",
            fix="choose zero=stage1, or parallel.pipeline_parallel_size=1",
        )
    if stage == 0 and config.precision.dtype is not Dtype.fp32:
        raise ConfigError(
            key="zero.stage",
            found=0,
            expected=f"1, 2 or 3 with precision.dtype = {config.precision.dtype.name}; without "
            "ZeRO there are no fp32 master weights",
            fix="choose zero=stage1, which shards nothing over one replica, or precision=fp32",
        )
    if stage < 2 and config.zero.overlap_comm:
        raise ConfigError(
            key="zero.overlap_comm",
            found="true",
            expected=f"false with zero.stage = {stage}; its gradients are reduced once, after the "
            "last backward",
            fix="set zero.overlap_comm=false, or choose zero=stage2",
        )
    if stage == 0 and config.zero.offload_optimizer is not Offload.none:
        raise ConfigError(
            key="zero.offload_optimizer",
            found=config.zero.offload_optimizer.name,
            expected="none with zero.stage = 0; it is ZeRO that moves the optimizer",
            fix="choose zero=stage1, which shards nothing over one replica, or leave it out",
        )
