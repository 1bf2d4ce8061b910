"""Run folders of imported weights: what a run would have left, without the optimizer's state."""

import logging
import socket
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from glm_dist.checkpoint.load import WEIGHTS, CheckpointInfo
from glm_dist.checkpoint.manifest import read_manifest
from glm_dist.checkpoint.save import save_checkpoint
from glm_dist.config.load import dump_config
from glm_dist.config.schema import RunConfig
from glm_dist.convert.dtypes import cast
from glm_dist.convert.official import (
    POSITION_TABLES,
    OfficialParameter,
    official_parameters,
    our_name,
    our_rows,
)
from glm_dist.convert.source import Source
from glm_dist.convert.spill import Spill
from glm_dist.data.tokenizer.stored import store_tokenizer
from glm_dist.data.tokenizer.tokenizer import load_tokenizer
from glm_dist.observe.run_folder import CHECKPOINTS, collect_provenance, open_run_folder
from glm_dist.parallel.layout import Layout
from glm_dist.seeds import derive_seed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """A checkpoint that was written, and what became of the weights."""

    info: CheckpointInfo
    grown: tuple[str, ...]
    """Official names of tables that are longer than in the source."""


def write_run(
    folder: Path, source: Source, config: RunConfig, *, overrides: Sequence[str]
) -> Written:
    """Write configuration, tokenizer and a checkpoint of weights.

    Args:
        folder: Exists and is empty.
        source: Weights; the checkpoint has their dtype.
        config: Complete configuration.
        overrides: As typed.

    Raises:
        CheckpointError: The checkpoint could not be written.
        DataError: The tokenizer is missing, or has other ids than the configuration says.
    """
    tokenizer = load_tokenizer(config.tokenizer)
    layout = Layout().sizes()
    provenance = collect_provenance(
        hosts=[socket.gethostname()],
        world_size=1,
        layout=layout,
        command=sys.argv,
        launcher="glm-dist convert",
    )
    opened = open_run_folder(
        folder, config=dump_config(config), overrides=overrides, provenance=provenance
    )
    if opened.lock is not None:
        opened.lock.close()
    store_tokenizer(config.tokenizer, folder)
    parameters = official_parameters(config.model, config.padded_vocab_size)
    weights = dict(_weights(source, parameters, config, Spill(folder)))
    path = save_checkpoint(
        folder / CHECKPOINTS,
        step=source.step,
        tensors={WEIGHTS + name: tensor for name, tensor in weights.items()},
        extra={
            "converted_from": dict(source.origin),
            "data": {"tokenizer": tokenizer.fingerprint},
        },
        layout=layout,
        keep_last=1,
    )
    grown = tuple(each.name for each in parameters if _grows(each, source, config))
    return Written(CheckpointInfo(path, read_manifest(path)), grown)


def _weights(
    source: Source, parameters: Sequence[OfficialParameter], config: RunConfig, spill: Spill
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield weights by our name; those that had to be computed lie on the disk."""
    heads = config.model.num_attention_heads
    for each in parameters:
        whole = source.tensors[each.name]
        tensor = our_rows(each.name, cast(each.name, whole, whole.dtype), num_attention_heads=heads)
        grows = _grows(each, source, config)
        if grows:
            tensor = _grown(each, tensor, config)
        is_view = source.is_mapped and not (grows or each.is_fused) and tensor.is_contiguous()
        yield our_name(each.name), tensor if is_view else spill.keep(tensor)


def _grows(parameter: OfficialParameter, source: Source, config: RunConfig) -> bool:
    is_longer = config.model.max_position_embeddings > source.model.max_position_embeddings
    return is_longer and parameter.name in POSITION_TABLES


def _grown(parameter: OfficialParameter, table: torch.Tensor, config: RunConfig) -> torch.Tensor:
    """Put drawn rows behind those of a table, as the official finetuning does."""
    generator = torch.Generator().manual_seed(
        derive_seed("convert", config.run.seed, parameter.name)
    )
    whole = torch.empty(parameter.shape).normal_(0.0, config.model.init_std, generator=generator)
    whole = whole.to(table.dtype)
    whole[: table.shape[0]] = table
    return whole
