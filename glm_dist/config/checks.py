"""Rules that involve several values, or the number of started processes; no file is opened.

The range of each single value is checked where the sections are built (``rules.py``).
"""

import math
from bisect import bisect_right

from glm_dist.config.blend import check_corpora
from glm_dist.config.interval_checks import check_intervals
from glm_dist.config.observe_checks import check_observe
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
    TaskKind,
    TokenizerKind,
)
from glm_dist.config.task_checks import check_task
from glm_dist.config.trainable import trainable_names
from glm_dist.config.wording import divisors, either, positive_multiples
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
    if config.data.corpora or config.task.kind is TaskKind.none:
        check_corpora(config.data)  # a task has examples instead
    _check_shares(config)
    _check_sentinels(config)
    _check_positions(config)
    _check_compile(config)
    check_intervals(config)
    check_observe(config, world_size=world_size)
    _check_tasks(config)
    if config.optimizer.trainable:  # the list of names is as long as the model has layers
        trainable_names(config)
    check_task(config)
    if world_size is not None:
        replicas: int | None = config.data_parallel_size(world_size)
    else:
        replicas = config.parallel.data_parallel_size
    _check_batch(config.batch, replicas=replicas)
    check_parallel(config, replicas=replicas)
    if config.precision.dtype is Dtype.fp16 and not has_accelerator:
        raise ConfigError(
            "precision.dtype=fp16 does not train on CPUs, and no GPU is visible.\n"
            "  Choose precision=bf16 or precision=fp32, or start where there is a GPU.",
            key="precision.dtype",
            value="fp16",
            fix="precision=bf16",
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
            f"config_version={config.config_version} cannot be set: it marks the configurations"
            " that runs"
            " save.\n  Leave it out.",
            key="config_version",
            value=config.config_version,
            fix=f"config_version={CONFIG_VERSION}",
        )
    problem = name_problem(config.run.name)
    if problem:
        raise ConfigError(
            f"run.name={config.run.name!r} {problem}.\n"
            "  Set run.name=my_run; paths.runs is the folder it is made in.",
            key="run.name",
            value=config.run.name,
            fix="run.name=my_run",
        )
    for key, value in (
        ("paths.data", config.paths.data),
        ("paths.runs", config.paths.runs),
        ("tokenizer.path", config.tokenizer.path),
    ):
        if not value.strip():
            raise ConfigError(
                f"{key} is empty.\n  Set {key}=<path>, or leave it out to keep the group's value.",
                key=key,
                value=value,
                fix=f"{key}=<path>",
            )


def _check_model(config: RunConfig) -> None:
    model, parallel = config.model, config.parallel
    heads, tp = model.num_attention_heads, parallel.tensor_parallel_size
    if parallel.data_parallel_size is not None and parallel.data_parallel_size < 1:
        raise ConfigError(
            f"parallel.data_parallel_size={parallel.data_parallel_size}, but it must be a whole"
            " number"
            " of at least 1, or null to use all processes.\n"
            "  Set parallel.data_parallel_size=null.",
            key="parallel.data_parallel_size",
            value=parallel.data_parallel_size,
            fix="parallel.data_parallel_size=null",
        )
    if model.hidden_size % heads:
        sizes = positive_multiples(model.hidden_size, heads)
        raise ConfigError(
            f"model.hidden_size={model.hidden_size} does not divide into"
            f" model.num_attention_heads={heads}.\n"
            f"  Set model.hidden_size={either(sizes)}, or another number of heads.",
            key="model.hidden_size",
            value=model.hidden_size,
            fix=f"model.hidden_size={sizes[-1]}",
        )
    if heads % tp:
        raise ConfigError(
            f"parallel.tensor_parallel_size={tp} does not divide"
            f" model.num_attention_heads={heads}.\n"
            f"  Set parallel.tensor_parallel_size={either(divisors(heads))}.",
            key="parallel.tensor_parallel_size",
            value=tp,
            fix="parallel.tensor_parallel_size=1",
        )
    if config.padded_vocab_size % tp:
        fits = divisors(math.gcd(heads, config.padded_vocab_size))
        raise ConfigError(
            f"parallel.tensor_parallel_size={tp} does not divide the {config.padded_vocab_size}"
            " rows of the"
            " padded vocabulary.\n"
            "  Set"
            f" parallel.tensor_parallel_size={either(fits)}.",
            key="parallel.tensor_parallel_size",
            value=tp,
            fix="parallel.tensor_parallel_size=1",
        )
    tokenizer = config.tokenizer
    if not tokenizer.fixed_task_masks and tokenizer.kind is not TokenizerKind.chinese_sentencepiece:
        raise ConfigError(
            "tokenizer.fixed_task_masks=false has no meaning for"
            f" tokenizer.kind={tokenizer.kind.name}, which has one scheme of ids.\n"
            "  Leave it out, or choose tokenizer=chinese_unfixed.",
            key="tokenizer.fixed_task_masks",
            value=False,
            fix="tokenizer.fixed_task_masks=true",
        )


def _check_architecture(model: ModelConfig, *, tensor_parallel_size: int) -> None:
    """Check the options beyond the plain block."""
    size, tp = model.ffn_hidden_size, tensor_parallel_size
    if size is not None and size < 1:
        raise ConfigError(
            f"model.ffn_hidden_size={size}, but it must be a whole number of at least 1, or null"
            " for"
            " 4 x model.hidden_size.\n  Set model.ffn_hidden_size=null.",
            key="model.ffn_hidden_size",
            value=size,
            fix="model.ffn_hidden_size=null",
        )
    if size is not None and size % tp:
        sizes = positive_multiples(size, tp)
        raise ConfigError(
            f"model.ffn_hidden_size={size} does not divide over the {tp} processes that share the"
            " MLP"
            " (parallel.tensor_parallel_size).\n"
            f"  Set model.ffn_hidden_size={either(sizes)}, or parallel.tensor_parallel_size=1.",
            key="model.ffn_hidden_size",
            value=size,
            fix=f"model.ffn_hidden_size={sizes[-1]}",
        )
    if model.position_encoding is PositionEncoding.rotary_2d and model.head_size % 4:
        widths = positive_multiples(model.head_size, 4)
        sizes = [width * model.num_attention_heads for width in widths]
        raise ConfigError(
            "model.position_encoding=rotary_2d turns pairs of dimensions along two axes, so that"
            " a head"
            " needs a multiple of 4; model.hidden_size / num_attention_heads ="
            f" {model.hidden_size} /"
            f" {model.num_attention_heads} = {model.head_size}.\n"
            f"  Set model.hidden_size={either(sizes)}, or model.position_encoding=learned.",
            key="model.position_encoding",
            value="rotary_2d",
            fix="model.position_encoding=learned",
        )


def _check_shares(config: RunConfig) -> None:
    data, corruption = config.data, config.corruption
    held_out = data.validation_share + data.test_share
    if held_out >= 1:
        raise ConfigError(
            "data.validation_share + data.test_share leave no documents to train on: they add up to"
            f" {held_out:g}.\n  Set data.validation_share=0.05 data.test_share=0.001.",
            key="data.validation_share + data.test_share",
            value=held_out,
            fix="data.validation_share=0.05 data.test_share=0.001",
        )
    total = corruption.span_share + corruption.sentence_share + corruption.document_share
    if abs(total - 1) > SHARE_TOLERANCE:
        proposal = _shares_of_one(corruption, total)
        raise ConfigError(
            "corruption.span_share + sentence_share + document_share must be 1; they add up to"
            f" {total:g}.\n  Leave all three out, or set {proposal}.",
            key="corruption.span_share + sentence_share + document_share",
            value=total,
            fix=proposal,
        )


def _shares_of_one(corruption: CorruptionConfig, total: float) -> str:
    """The written shares in proportion, as overrides that add up to 1."""
    spans = round(corruption.span_share / total, 4) if total else 1.0
    sentences = round(corruption.sentence_share / total, 4) if total else 0.0
    shares = {"span": spans, "sentence": sentences, "document": 1 - spans - sentences}
    return " ".join(f"corruption.{name}_share={share:.4g}" for name, share in shares.items())


def _check_sentinels(config: RunConfig) -> None:
    corruption, tokenizer = config.corruption, config.tokenizer
    by_task = corruption.task is PretrainingTask.span_corruption
    if (by_task or corruption.sentinels) and tokenizer.sentinel_pairs == 0:
        asker = "corruption.task=span_corruption" if by_task else "corruption.sentinels=true"
        proposal = f"tokenizer.sentinel_pairs=100 tokenizer.vocab_size={tokenizer.vocab_size + 200}"
        raise ConfigError(
            f"{asker} marks each blank with a sentinel, and tokenizer.sentinel_pairs=0 has none.\n"
            f"  Set {proposal}.",
            key="tokenizer.sentinel_pairs",
            value=0,
            fix=proposal,
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
        holder = "the tables of " if is_learned else ""
        raise ConfigError(
            f"batch.row_length={rows} needs positions up to {needed}, more than {holder}"
            f"model.max_position_embeddings={positions}.\n"
            f"  Set batch.row_length={fits} or less, or model.max_position_embeddings={needed}.",
            key="batch.row_length",
            value=rows,
            fix=f"batch.row_length={fits}",
        )


def _check_compile(config: RunConfig) -> None:
    if config.compile.enabled and config.zero.stage == 3:
        raise ConfigError(
            "compile.enabled=true does not work with zero.stage=3, whose hooks gather parameters"
            " inside each"
            " layer.\n  Choose zero=stage2, or compile=eager.",
            key="compile.enabled",
            value=True,
            fix="compile=eager",
        )


def _check_tasks(config: RunConfig) -> None:
    """Refuse benchmarks in layouts in which nothing can be generated during training."""
    obstacles = {
        "zero.stage": (config.zero.stage == 3, config.zero.stage, "zero=stage2"),
        "parallel.virtual_stages": (
            config.parallel.virtual_stages > 1,
            config.parallel.virtual_stages,
            "parallel.virtual_stages=1",
        ),
        "parallel.sequence_parallel": (
            config.parallel.sequence_parallel,
            True,
            "parallel.sequence_parallel=false",
        ),
    }
    writes = config.task.kind in (TaskKind.seq2seq, TaskKind.infill)
    for key, (stands_in_the_way, value, fix) in obstacles.items():
        if writes and stands_in_the_way:
            raise ConfigError(
                f"task.kind={config.task.kind.name} writes answers in validations, which cannot be"
                f" done with {key}={value}.\n  Set {fix}.",
                key=key,
                value=value,
                fix=fix,
            )
        if config.evaluation.tasks and stands_in_the_way:
            raise ConfigError(
                f"evaluation.tasks cannot be measured during training with {key}={value}.\n"
                f"  Set {fix}, or evaluation.tasks=[] and use glm-dist evaluate.",
                key="evaluation.tasks",
                value=config.evaluation.tasks,
                fix=fix,
            )


def _check_batch(batch: BatchConfig, *, replicas: int | None) -> None:
    """Check that replicas and micro-batches divide the step's rows without rest."""
    rows, micro = batch.global_batch_size, batch.micro_batch_size
    unit = micro * (replicas or 1)
    if rows % unit == 0:
        return
    sizes = positive_multiples(rows, unit)
    smaller = ""
    if replicas is None or rows % replicas == 0:
        fitting = max(size for size in divisors(rows // (replicas or 1)) if size <= micro)
        smaller = f", or batch.micro_batch_size={fitting}"
    product = f"batch.micro_batch_size={micro}"
    if replicas:
        product = f"micro_batch_size x replicas = {micro} x {replicas} = {unit}"
    raise ConfigError(
        f"batch.global_batch_size={rows} is not a multiple of {product}.\n"
        f"  Set batch.global_batch_size={either(sizes)}{smaller}.",
        key="batch.global_batch_size",
        value=rows,
        fix=f"batch.global_batch_size={sizes[-1]}",
    )
