"""Rows of a run: their number, and the mean row's predicted tokens and pairs of attention."""

from dataclasses import dataclass, replace

from glm_dist.config.schema import CorruptionConfig, PretrainingTask, RunConfig
from glm_dist.config.task import TaskKind


@dataclass(frozen=True)
class MeanRow:
    """Shares of a row."""

    targets: float
    """Positions with a target, over all positions."""
    pairs: float
    """Pairs of query and key that the mask allows, over the square of the row length."""

    @classmethod
    def of(cls, config: RunConfig) -> "MeanRow":
        """Average over the objectives of a run.

        Args:
            config: Its corruption; a finetuned model answers with few tokens.
        """
        corruption = config.corruption
        if config.task.kind is not TaskKind.none:
            return cls(targets=0.0, pairs=1.0)
        if corruption.task is PretrainingTask.causal_lm:
            return cls(targets=1.0, pairs=0.5)
        if corruption.task is PretrainingTask.masked_lm:
            return cls(targets=corruption.span_mask_ratio, pairs=1.0)
        if corruption.task is not PretrainingTask.blank_infilling:
            return _prefix_row(corruption.span_mask_ratio, corruption.span_mask_ratio**2)
        return _blank_infilling(corruption)


def _blank_infilling(corruption: CorruptionConfig) -> MeanRow:
    """Average over the three objectives; a document's generated share is uniform up to 1."""
    spans, sentences = corruption.span_mask_ratio, corruption.sentence_mask_ratio
    shortest = corruption.document_min_ratio
    means = (
        (corruption.span_share, spans, spans**2),
        (corruption.sentence_share, sentences, sentences**2),
        (corruption.document_share, (1 + shortest) / 2, (1 + shortest + shortest**2) / 3),
    )
    total = sum(share for share, _, _ in means)
    return _prefix_row(
        sum(share * mean for share, mean, _ in means) / total,
        sum(share * square for share, _, square in means) / total,
    )


def _prefix_row(part_b: float, square: float) -> MeanRow:
    """Return the shares of a row by mean and mean square of Part B's share r.

    Part A sees itself, Part B sees A and itself up to the query: (1-r)^2 + (1-r) r + r^2 / 2.
    """
    return MeanRow(targets=part_b, pairs=1 - part_b + square / 2)


def in_rows(config: RunConfig, rows_per_item: int) -> RunConfig:
    """Return the configuration with batches of rows in place of a finetuning's examples.

    Args:
        config: As checked.
        rows_per_item: Rows of an example.
    """
    batch = replace(
        config.batch,
        global_batch_size=rows_per_item * config.batch.global_batch_size,
        micro_batch_size=rows_per_item * config.batch.micro_batch_size,
    )
    return replace(config, batch=batch)
