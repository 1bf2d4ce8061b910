"""Rules between the degrees of parallelism, ZeRO and the number format.

What is refused here would be wrong without an error, or hang, once processes run.
"""

from glm_dist.config.schema import Dtype, RunConfig
from glm_dist.config.wording import either, multiples
from glm_dist.errors import ConfigError


def check_parallel(config: RunConfig) -> None:
    """Check how layers, rows and optimizer state are cut.

    Args:
        config: Typed configuration; each value alone is already in its range.

    Raises:
        ConfigError: Two values contradict each other.
    """
    _check_sequence_parallel(config)
    _check_zero(config)


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
