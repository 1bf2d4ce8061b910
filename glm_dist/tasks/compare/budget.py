"""Text that a pretraining reads and predicts, counted in its rows."""

from dataclasses import dataclass

import numpy as np

from glm_dist.config.schema import RunConfig
from glm_dist.data.row_source import open_row_source

MOST_ROWS = 2048
"""Rows that are counted, evenly spread over the run."""


@dataclass(frozen=True)
class Budget:
    """Tokens of a pretraining."""

    computed: int
    """Tokens of all rows: positions that the model computes, the same for every objective."""
    text: int
    """Of them, tokens of text: neither padding nor the second copy of what is hidden."""
    predicted: int
    """Of them, positions with a loss."""


def count_budget(config: RunConfig) -> Budget:
    """Count the tokens of a pretraining, in a sample of its rows if there are many.

    Args:
        config: Of the run.
    """
    source = open_row_source(config)
    rows = config.run.steps * config.batch.global_batch_size
    sample = np.unique(np.linspace(0, rows - 1, min(rows, MOST_ROWS)).astype(int)).tolist()
    text = predicted = 0
    for number in sample:
        row = source.row(number)
        predicted += int(row.loss_mask.sum())
        text += source.address(number)[1].length
    share = rows / len(sample)
    return Budget(rows * config.batch.row_length, round(text * share), round(predicted * share))
