"""The models and rows that benchmarks measure: GLM in one process, official shapes, random text."""

import os
from collections.abc import Sequence
from datetime import timedelta

import numpy as np
import torch

from glm_dist.config.launch import read_launch_environment
from glm_dist.config.load import load_config
from glm_dist.config.schema import Dtype, ModelConfig, RecomputeConfig
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.data.rows import Row
from glm_dist.model.batch import StageBatch
from glm_dist.model.parameters import initialize
from glm_dist.model.stage import GLMStage
from glm_dist.parallel.groups import ParallelGroups, build_groups
from glm_dist.parallel.layout import Layout
from glm_dist.parallel.process import start_process
from glm_dist.train.task import Pretraining

VOCAB_SIZE = 30524
"""BERT's 30522 pieces, sop and eop: GLM-Base and -Large."""
PADDED_VOCAB_SIZE = 30592

SPAN_MASK_RATIO = 0.15
MEAN_SPAN = 3 / (1 - np.exp(-3))
"""Mean of a Poisson of 3 without its zero."""


def device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def one_process() -> ParallelGroups:
    """Create the groups of a single process, as plain ``python train.py`` does."""
    start_process(read_launch_environment(os.environ), timedelta(minutes=10))
    return build_groups(Layout(), timedelta(minutes=10))


def model_config(name: str, *, positions: int, dropout: float) -> ModelConfig:
    """Load a published size from conf/model.

    Args:
        name: Option of conf/model.
        positions: Rows of the position tables, enough for the row length.
        dropout: Rate for hidden states and attention.
    """
    return load_config(
        [
            "experiment=tiny",
            f"model={name}",
            f"model.max_position_embeddings={positions}",
            f"batch.row_length={positions}",
            f"model.hidden_dropout={dropout}",
            f"model.attention_dropout={dropout}",
            "run.name=benchmark",
        ]
    ).model


def glm(
    model: ModelConfig,
    groups: ParallelGroups,
    *,
    dtype: Dtype,
    device: torch.device,
    recompute: RecomputeConfig | None = None,
) -> GLMStage:
    """Build the whole initialised model, in training mode."""
    stage = GLMStage(
        model,
        vocab_size=VOCAB_SIZE,
        padded_vocab_size=PADDED_VOCAB_SIZE,
        dtype=dtype,
        groups=groups,
        device=device,
        recompute=recompute,
    )
    initialize(stage.shards(), seed=1)
    stage.train()
    return stage


def loss_of(stage: GLMStage, batch: StageBatch) -> torch.Tensor:
    """Compute the summed loss of a micro-batch []."""
    return Pretraining().loss(stage, stage(batch), batch).total


def span_prefix(row_length: int) -> int:
    """Return the tokens of Part A in a full row of short spans: about 82 %.

    A window of w tokens loses 15 % to k spans; Part A keeps a mask for each, Part B repeats the
    lost tokens with one more each: w (1 + 2 * 0.15 / mean span) = row length.
    """
    window = row_length / (1 + 2 * SPAN_MASK_RATIO / MEAN_SPAN)
    return round(window * (1 - SPAN_MASK_RATIO * (1 - 1 / MEAN_SPAN)))


def random_row(row_length: int, prefix: int, rng: np.random.Generator) -> Row:
    """Build a full row with consecutive blanks in Part B, all of it predicted."""
    position = np.arange(row_length)
    in_b = position >= prefix
    return Row(
        tokens=rng.integers(0, VOCAB_SIZE, size=row_length),
        positions=np.where(in_b, rng.integers(0, max(prefix, 1)), position),
        block_positions=np.where(in_b, (position - prefix) % 4 + 1, 0),
        targets=rng.integers(0, VOCAB_SIZE, size=row_length),
        loss_mask=in_b,
        prefix_length=prefix,
        objective="span",
        num_real_tokens=row_length,
    )


def span_micro_batches(
    count: int, *, rows: int, row_length: int, seed: int = 0
) -> Sequence[MicroBatch]:
    """Build micro-batches of short spans; as in real rows, prefixes differ slightly."""
    rng = np.random.default_rng(seed)
    mean = span_prefix(row_length)
    return [
        MicroBatch.stack(
            [random_row(row_length, mean + int(rng.integers(-4, 5)), rng) for _ in range(rows)]
        )
        for _ in range(count)
    ]
