"""Rules between the degrees of parallelism, ZeRO and the number format.

What is refused here would be wrong without an error, or hang, once processes run.
"""

import math
from collections.abc import Sequence

from glm_dist.config.schema import Offload, RecomputeMode, RunConfig
from glm_dist.config.wording import divisors, either, positive_multiples
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
            f"parallel.virtual_stages={chunks} has nothing to interleave with"
            " parallel.pipeline_parallel_size=1.\n  Leave it out, or choose parallel=pp2.",
            key="parallel.virtual_stages",
            value=chunks,
            fix="parallel.virtual_stages=1",
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
            f"parallel.pipeline_parallel_size={pp} does not divide model.num_layers={layers}.\n"
            f"  Choose {either(divisors(layers))}{uneven}.",
            key="parallel.pipeline_parallel_size",
            value=pp,
            fix=f"parallel.stage_layers={proposal}"
            if proposal
            else "parallel.pipeline_parallel_size=1",
        )
    if layers // pp % chunks:
        raise ConfigError(
            f"parallel.virtual_stages={chunks} does not divide the {layers // pp} layers of each"
            " stage.\n"
            f"  Choose {either(divisors(layers // pp))}{uneven}.",
            key="parallel.virtual_stages",
            value=chunks,
            fix="parallel.virtual_stages=1",
        )


def _check_listed_layers(listed: Sequence[int], layers: int, *, stages: int, chunks: int) -> None:
    number = stages * chunks
    if len(listed) != number and chunks > 1:
        problem = f"have {stages} stages x {chunks} chunks = {number} numbers, one for each chunk"
    elif len(listed) != number:
        problem = f"have {number} number{'s' if number > 1 else ''}, one for each stage"
    elif min(listed) < 1:
        problem = "have at least 1 layer in each"
    elif sum(listed) != layers:
        problem = f"add up to model.num_layers={layers}, not to {sum(listed)}"
    else:
        return
    proposal = _proposed_layers(layers, stages, chunks) or "[]"
    raise ConfigError(
        f"parallel.stage_layers={_as_typed(listed)} must {problem}.\n"
        f"  Set parallel.stage_layers={proposal}.",
        key="parallel.stage_layers",
        value=list(listed),
        fix=f"parallel.stage_layers={proposal}",
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
            f"recompute.segment_layers={segment} has no effect with"
            f" recompute.mode={config.recompute.mode.name}: only whole layers are recomputed in"
            " segments.\n"
            "  Leave it out, or choose recompute=full.",
            key="recompute.segment_layers",
            value=segment,
            fix="recompute.segment_layers=1",
        )
    if math.gcd(*depths) % segment:
        raise ConfigError(
            f"recompute.segment_layers={segment} does not divide the layers of every stage:"
            f" {either(sorted(set(depths)))}.\n"
            f"  Choose {either(divisors(math.gcd(*depths)))}.",
            key="recompute.segment_layers",
            value=segment,
            fix="recompute.segment_layers=1",
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
        f"parallel.virtual_stages={chunks} runs micro-batches in groups of"
        f" parallel.pipeline_parallel_size={pp}, which does not divide the {share // micro} of a"
        " step:"
        f" global_batch_size / (micro_batch_size x replicas) = {rows} / ({micro} x {replicas}).\n"
        f"  Set {smaller}parallel.virtual_stages=1.",
        key="batch.micro_batch_size",
        value=micro,
        fix="parallel.virtual_stages=1",
    )


def _check_sequence_parallel(config: RunConfig) -> None:
    tp, rows = config.parallel.tensor_parallel_size, config.batch.row_length
    if not config.parallel.sequence_parallel:
        return
    if tp == 1:
        raise ConfigError(
            "parallel.sequence_parallel=true splits rows over the processes that share a layer, and"
            " parallel.tensor_parallel_size=1 has one.\n  Leave it out, or choose parallel=tp2.",
            key="parallel.sequence_parallel",
            value=True,
            fix="parallel.sequence_parallel=false",
        )
    if rows % tp:
        lengths = positive_multiples(rows, tp)
        raise ConfigError(
            f"batch.row_length={rows} does not split evenly over parallel.tensor_parallel_size={tp}"
            " processes, as parallel.sequence_parallel does.\n"
            f"  Set batch.row_length={either(lengths)}, or parallel.sequence_parallel=false.",
            key="batch.row_length",
            value=rows,
            fix="parallel.sequence_parallel=false",
        )


def _check_zero(config: RunConfig) -> None:
    stage, pp = config.zero.stage, config.parallel.pipeline_parallel_size
    if stage >= 2 and pp > 1:
        raise ConfigError(
            f"zero.stage={stage} shards gradients, which the schedule of"
            f" parallel.pipeline_parallel_size={pp} cannot.\n"
            "  Choose zero=stage1, or parallel.pipeline_parallel_size=1.",
            key="zero.stage",
            value=stage,
            fix="zero=stage1",
        )
    if (
        config.zero.overlap_comm
        and stage == 1
        and config.zero.offload_optimizer is not Offload.none
    ):
        raise ConfigError(
            "zero.overlap_comm=true does not work with zero.stage=1 and"
            f" zero.offload_optimizer={config.zero.offload_optimizer.name}: DeepSpeed then reduces"
            " gradients once, after the last backward.\n"
            "  Set zero.overlap_comm=false, or choose zero=stage2.",
            key="zero.overlap_comm",
            value=True,
            fix="zero.overlap_comm=false",
        )
    if stage == 0 and config.zero.offload_optimizer is not Offload.none:
        raise ConfigError(
            f"zero.offload_optimizer={config.zero.offload_optimizer.name} needs ZeRO, and"
            " zero.stage=0 is"
            " without.\n"
            "  Choose zero=stage1, which also runs on one replica, or leave it out.",
            key="zero.offload_optimizer",
            value=config.zero.offload_optimizer.name,
            fix="zero.offload_optimizer=none",
        )
