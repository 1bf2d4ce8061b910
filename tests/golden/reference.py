"""Outputs of the official code, and an official model's weights in one of our stages."""

import json
import os
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch

from glm_dist.config.schema import Dtype, ModelConfig
from glm_dist.convert.official import from_official
from glm_dist.model.batch import StageBatch
from glm_dist.model.parameters import local_slice
from glm_dist.model.stage import GLMStage
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.groups import build_groups
from glm_dist.parallel.layout import Layout

REFERENCE = Path(
    os.environ.get(
        "GLM_REFERENCE_DIR", Path(__file__).resolve().parents[2].parent / "shared" / "reference"
    )
)


def reference_files(pattern: str) -> list[object]:
    """Every file of a kind as a test parameter; one skipped parameter where there is none."""
    files = sorted(REFERENCE.glob(pattern))
    if not files:
        reason = f"no {pattern} under GLM_REFERENCE_DIR={REFERENCE}"
        return [pytest.param(None, marks=pytest.mark.skip(reason=reason), id="absent")]
    return [pytest.param(file, id=file.stem) for file in files]


def tensors_under(arrays: Mapping[str, np.ndarray], prefix: str) -> dict[str, torch.Tensor]:
    """The entries whose name begins with a prefix, without it."""
    return {
        name.removeprefix(prefix): torch.from_numpy(arrays[name])
        for name in arrays
        if name.startswith(prefix)
    }


def heads_of(file: Path, hidden_size: int) -> int:
    """Return the number of heads of the model in a file, which its shapes do not show.

    Args:
        file: ``model/<name>.npz``; ``heads.json`` in the same folder lists the heads by file name.
        hidden_size: Size h of the model, for a file that is not listed.
    """
    listing = file.parent / "heads.json"
    listed = json.loads(listing.read_text()) if listing.exists() else {}
    if file.name in listed:
        return int(listed[file.name])
    return max(heads for heads in (2, 4, 6, 8) if hidden_size % heads == 0)


def with_padded_vocabulary(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The word table (or its gradient) with zero rows up to a multiple of 128, as ours has it."""
    table = state["word_embeddings.weight"]
    missing = -table.shape[0] % 128
    return dict(state) | {
        "word_embeddings.weight": torch.nn.functional.pad(table, (0, 0, 0, missing))
    }


def official_stage(
    state: Mapping[str, torch.Tensor], *, num_attention_heads: int, layout: Layout
) -> GLMStage:
    """This rank's stage of an official model, dropout off. Needs a process group."""
    enable_cpu()
    vocab_size, hidden_size = state["word_embeddings.weight"].shape
    model = ModelConfig(
        num_layers=len([name for name in state if name.endswith("input_layernorm.weight")]),
        hidden_size=hidden_size,
        num_attention_heads=num_attention_heads,
        max_position_embeddings=state["transformer.position_embeddings.weight"].shape[0] - 1,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        layernorm_epsilon=1e-5,
        init_std=0.02,
        num_classes=len(state.get("multichoice_head.bias", ())),
    )
    stage = GLMStage(
        model,
        vocab_size=vocab_size,
        padded_vocab_size=vocab_size + -vocab_size % 128,
        dtype=Dtype.fp32,
        groups=build_groups(layout, timedelta(seconds=60)),
        device=torch.device("cpu"),
    )
    ours = from_official(with_padded_vocabulary(state), num_attention_heads=num_attention_heads)
    with torch.no_grad():
        for shard in stage.shards():
            shard.parameter.copy_(local_slice(shard, ours[shard.name]))
    return stage


def stage_batch(
    *,
    tokens: torch.Tensor,
    position_ids: torch.Tensor,
    prefix_length: torch.Tensor,
    targets: torch.Tensor,
    loss_mask: torch.Tensor,
) -> StageBatch:
    """Official batch tensors (position_ids [b, 2, s]) as a stage consumes them."""
    index = loss_mask.bool().t().reshape(-1).nonzero().squeeze(1)
    return StageBatch(
        tokens=tokens,
        positions=position_ids[:, 0],
        block_positions=position_ids[:, 1],
        prefix_length=prefix_length,
        target_index=index,
        target_ids=targets.t().reshape(-1)[index],
    )
