"""Rules that involve several values, or the number of started processes; no file is opened.

The range of each single value is checked where the sections are built (``rules.py``).
"""

import math
from bisect import bisect_right

from glm_dist.config.blend import check_corpora
from glm_dist.config.parallel_checks import check_parallel
from glm_dist.config.rules import name_problem
from glm_dist.config.schema import (
    CONFIG_VERSION,
    BatchConfig,
    CorruptionConfig,
    Dtype,
    ModelConfig,
    PositionEncoding,
    PretrainingTask,
    RunConfig,
    TokenizerKind,
)
from glm_dist.config.wording import divisors, either, multiples
from glm_dist.errors import ConfigError

SHARE_TOLERANCE = 1e-6
"""By how much three written shares may miss 1."""


def check_config(
    config: RunConfig, *, world_size: int | None, has_accelerator: bool = True
) -> None:
    """Check everything that is known before a file is opened.

    Args:
        config: Typed configuration; each value alone is already in its range.
        world_size: Processes of the job; None where they are not known yet.
        has_accelerator: False where the job is known to run on CPUs.

    Raises:
        ConfigError: Two values contradict each other.
        LaunchError: The number of processes does not fit.
    """
    _check_names(config)
    _check_model(config)
    _check_architecture(config.model, tensor_parallel_size=config.parallel.tensor_parallel_size)
    check_corpora(config.data)
    _check_shares(config)
    _check_sentinels(config)
    _check_positions(config)
    _check_compile(config)
    _check_intervals(config)
    if world_size is not None:
        replicas: int | None = config.data_parallel_size(world_size)
    else:
        replicas = config.parallel.data_parallel_size
    _check_batch(config.batch, replicas=replicas)
    check_parallel(config, replicas=replicas)
    if config.precision.dtype is Dtype.fp16 and not has_accelerator:
        raise ConfigError(
            key="precision.dtype",
            found="fp16",
            expected="fp32 or bf16, because no GPU is visible and fp16 does not train on CPUs",
            fix="choose precision=bf16 or precision=fp32, or start where a GPU is",
        )


def positions_needed(corruption: CorruptionConfig, row_length: int) -> int:
    """Position or block position that rows reach for certain.

    With sentences or documents one blank may fill the row, so block positions go up to its length;
    the baselines count positions through the row.
    With short spans only, a row holds at least n source tokens, where a share r of them is masked
    by spans of one token: n (1 + 2 r) = row_length. The data layer knows the exact n.

    Args:
        corruption: Objectives and their ratios.
        row_length: Tokens of Part A and Part B together.
    """
    if corruption.task is not PretrainingTask.blank_infilling:
        return row_length - 1
    if corruption.sentence_share > 0 or corruption.document_share > 0:
        return row_length - 1
    return int(row_length / (1 + 2 * corruption.span_mask_ratio)) - 1


def _check_names(config: RunConfig) -> None:
    if config.config_version != CONFIG_VERSION:
        raise ConfigError(
            key="config_version",
            found=config.config_version,
            expected=str(CONFIG_VERSION),
            fix="leave it out; it marks saved configurations",
        )
    problem = name_problem(config.run.name)
    if problem:
        raise ConfigError(
            key="run.name",
            found=repr(config.run.name),
            expected=problem,
            fix="set run.name=my_run; its parent folder is paths.runs",
        )
    for key, value in (
        ("paths.data", config.paths.data),
        ("paths.runs", config.paths.runs),
        ("tokenizer.path", config.tokenizer.path),
    ):
        if not value.strip():
            raise ConfigError(
                key=key,
                found=repr(value),
                expected="a path that is not empty",
                fix=f"set {key}=<path>, or leave it out to keep the group's value",
            )


def _check_model(config: RunConfig) -> None:
    model, parallel = config.model, config.parallel
    heads, tp = model.num_attention_heads, parallel.tensor_parallel_size
    if parallel.data_parallel_size is not None and parallel.data_parallel_size < 1:
        raise ConfigError(
            key="parallel.data_parallel_size",
            found=parallel.data_parallel_size,
            expected="a whole number of at least 1, or null to fill the started processes",
            fix="set parallel.data_parallel_size=null",
        )
    if model.hidden_size % heads:
        below, above = multiples(model.hidden_size, heads)
        raise ConfigError(
            key="model.hidden_size",
            found=model.hidden_size,
            expected=f"a multiple of model.num_attention_heads = {heads}",
            fix=f"set model.hidden_size={either([below, above] if below else [above])}, "
            "or another number of heads",
        )
    if heads % tp:
        raise ConfigError(
            key="parallel.tensor_parallel_size",
            found=tp,
            expected=f"a divisor of model.num_attention_heads = {heads}",
            fix=f"choose {either(divisors(heads))}",
        )
    if config.padded_vocab_size % tp:
        raise ConfigError(
            key="parallel.tensor_parallel_size",
            found=tp,
            expected=f"a divisor of the padded vocabulary of {config.padded_vocab_size} rows",
            fix=f"choose {either(divisors(math.gcd(heads, config.padded_vocab_size)))}",
        )
    tokenizer = config.tokenizer
    if not tokenizer.fixed_task_masks and tokenizer.kind is not TokenizerKind.chinese_sentencepiece:
        raise ConfigError(
            key="tokenizer.fixed_task_masks",
            found="false",
            expected=f"true for tokenizer.kind = {tokenizer.kind.name}, which has one id scheme",
            fix="leave it out, or choose tokenizer=chinese_unfixed",
        )


def _check_architecture(model: ModelConfig, *, tensor_parallel_size: int) -> None:
    """Check the options beyond the plain block."""
    size, tp = model.ffn_hidden_size, tensor_parallel_size
    if size is not None and size < 1:
        raise ConfigError(
            key="model.ffn_hidden_size",
            found=size,
            expected="a whole number of at least 1, or null for 4 x model.hidden_size",
            fix="set model.ffn_hidden_size=null",
        )
    if size is not None and size % tp:
        below, above = multiples(size, tp)
        raise ConfigError(
            key="model.ffn_hidden_size",
            found=size,
            expected=f"a multiple of parallel.tensor_parallel_size = {tp}, whose processes share "
            "the MLP",
            fix=f"set model.ffn_hidden_size={either([below, above] if below else [above])}, or "
            "parallel.tensor_parallel_size=1",
        )
    if model.position_encoding is PositionEncoding.rotary_2d and model.head_size % 4:
        below, above = multiples(model.head_size, 4)
        sizes = [width * model.num_attention_heads for width in (below, above) if width]
        raise ConfigError(
            key="model.position_encoding",
            found="rotary_2d",
            expected="heads of a multiple of 4 dims, two pairs or more to turn; model.hidden_size "
            f"/ num_attention_heads = {model.hidden_size} / {model.num_attention_heads} = "
            f"{model.head_size}",
            fix=f"set model.hidden_size={either(sizes)}, or model.position_encoding=learned",
        )


def _check_shares(config: RunConfig) -> None:
    data, corruption = config.data, config.corruption
    held_out = data.validation_share + data.test_share
    if held_out >= 1:
        raise ConfigError(
            key="data.validation_share + data.test_share",
            found=f"{held_out:g}",
            expected="less than 1, so that documents are left to train on",
            fix="set data.validation_share=0.05 data.test_share=0.001",
        )
    total = corruption.span_share + corruption.sentence_share + corruption.document_share
    if abs(total - 1) > SHARE_TOLERANCE:
        raise ConfigError(
            key="corruption.span_share + sentence_share + document_share",
            found=f"{total:g}",
            expected="1",
            fix="choose corruption=glm_mixed, or set all three",
        )


def _check_sentinels(config: RunConfig) -> None:
    corruption, tokenizer = config.corruption, config.tokenizer
    uses = corruption.sentinels or corruption.task is PretrainingTask.span_corruption
    if uses and tokenizer.sentinel_pairs == 0:
        raise ConfigError(
            key="tokenizer.sentinel_pairs",
            found=0,
            expected="a pair for each blank a row may have; corruption.sentinels and "
            "corruption.task=span_corruption need them",
            fix="set tokenizer.sentinel_pairs=100 and "
            f"tokenizer.vocab_size={tokenizer.vocab_size + 200}",
        )


def _check_positions(config: RunConfig) -> None:
    rows, positions = config.batch.row_length, config.model.max_position_embeddings
    needed = positions_needed(config.corruption, rows)
    is_learned = config.model.position_encoding is PositionEncoding.learned
    if needed > positions:
        lengths = range(min(rows, 4 * positions + 4))  # ratios below 1 allow less than 3 times
        fits = bisect_right(
            lengths, positions, key=lambda length: positions_needed(config.corruption, length)
        )
        fits -= 1
        raise ConfigError(
            key="batch.row_length",
            found=rows,
            expected=f"rows whose positions, here up to {needed}, fit "
            f"{'the tables of ' if is_learned else ''}"
            f"model.max_position_embeddings = {positions}",
            fix=f"set batch.row_length={fits} or less, or model.max_position_embeddings={needed}",
        )


def _check_compile(config: RunConfig) -> None:
    if config.compile.enabled and config.zero.stage == 3:
        raise ConfigError(
            key="compile.enabled",
            found="true",
            expected="false with zero.stage = 3, whose hooks gather parameters inside each layer",
            fix="choose zero=stage2, or compile=eager",
        )


def _check_intervals(config: RunConfig) -> None:
    evaluation, checkpoint = config.evaluation, config.checkpoint
    if evaluation.interval > 0 and evaluation.rows_per_objective == 0:
        raise ConfigError(
            key="evaluation.rows_per_objective",
            found=0,
            expected=f"at least 1, because evaluation.interval = {evaluation.interval} asks for "
            "validation",
            fix="set evaluation.rows_per_objective=1024, or evaluation.interval=0",
        )
    if evaluation.interval > 0 and config.data.validation_share == 0:
        raise ConfigError(
            key="data.validation_share",
            found=0,
            expected=f"more than 0, because evaluation.interval = {evaluation.interval} asks for "
            "validation",
            fix="set data.validation_share=0.05, or evaluation.interval=0",
        )
    if checkpoint.interval > 0 and checkpoint.keep_last == 0:
        raise ConfigError(
            key="checkpoint.keep_last",
            found=0,
            expected=f"at least 1, because checkpoint.interval = {checkpoint.interval} asks for "
            "checkpoints",
            fix="set checkpoint.keep_last=3, or checkpoint.interval=0",
        )


def _check_batch(batch: BatchConfig, *, replicas: int | None) -> None:
    """Check that replicas and micro-batches divide the step's rows without rest."""
    rows, micro = batch.global_batch_size, batch.micro_batch_size
    unit = micro * (replicas or 1)
    if rows % unit == 0:
        return
    below, above = multiples(rows, unit)
    smaller = ""
    if replicas is None or rows % replicas == 0:
        fitting = max(size for size in divisors(rows // (replicas or 1)) if size <= micro)
        smaller = f", or batch.micro_batch_size={fitting}"
    product = f"micro_batch_size x replicas = {micro} x {replicas} = {unit}"
    raise ConfigError(
        key="batch.global_batch_size",
        found=rows,
        expected=f"a multiple of {product if replicas else f'micro_batch_size = {micro}'}",
        fix=f"set batch.global_batch_size={either([below, above] if below else [above])}{smaller}",
    )
