"""Run folders in which updates of low rank are merged into the weights.

A merged run is a plain model for every command, and ``run.init_from`` begins with its weights.
Other parameters that finetuning has added, such as a classification head, stay.
"""

import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from glm_dist.checkpoint.best import StepChoice
from glm_dist.checkpoint.load import WEIGHTS, CheckpointInfo, choose_checkpoint
from glm_dist.checkpoint.manifest import Json, read_manifest
from glm_dist.checkpoint.save import save_checkpoint
from glm_dist.config.load import dump_config, load_config_file
from glm_dist.config.schema import RunConfig
from glm_dist.convert.merge import FACTORS, merged_weights
from glm_dist.convert.run_source import weights_of
from glm_dist.convert.spill import Spill
from glm_dist.data.tokenizer.stored import TOKENIZER_FOLDER, load_stored_tokenizer, store_tokenizer
from glm_dist.errors import CheckpointError, ConfigError
from glm_dist.files import check_absent, is_dir, new_folder
from glm_dist.observe.run_folder import (
    CHECKPOINTS,
    CONFIG_FILE,
    collect_provenance,
    open_run_folder,
)
from glm_dist.parallel.layout import Layout


@dataclass(frozen=True)
class MergeAccount:
    """Result of a merge, for people."""

    source: Path
    target: Path
    step: int
    merged: int
    """Weights with an update."""
    copied: int
    config: RunConfig
    """Of the source."""

    def lines(self) -> list[tuple[str, str]]:
        """Return titles and texts."""
        model = self.config.model
        return [
            ("source", f"run {self.source}, checkpoint of step {self.step}"),
            (
                "merged",
                f"{self.merged} weights, W + {model.lora_scale:g} B A of rank {model.lora_rank}",
            ),
            ("copied", f"{self.copied} tensors"),
            ("target", f"run {self.target}"),
        ]


def merge_run(source: Path, target: Path, *, step: StepChoice) -> MergeAccount:
    """Merge the updates of a run into a new run folder, which appears when it is complete.

    Args:
        source: The run's folder.
        target: New folder.
        step: Checkpoint, also the best; the newest complete one if None.

    Raises:
        ConfigError: The run has no updates.
        CheckpointError: It has no usable checkpoint, or the new one does not hold what was written.
        DataError: Its tokenizer is gone.
    """
    check_absent(target, key="TARGET")
    config = load_config_file(source / CONFIG_FILE)
    if config.model.lora_rank == 0:
        raise ConfigError(
            f"{source} is a run already, which every command reads, and has no updates to merge"
            " (model.lora_rank=0).\n"
            "  Copy the folder, or add --to official or --to huggingface.",
            key="--to",
            value="ours",
            fix="--to official",
        )
    info = choose_checkpoint(source / CHECKPOINTS, step)
    factored = weights_of(info, config)
    weights = merged_weights(factored, config.model)
    plain = _plain(source, target, config, info)
    with new_folder(target, key="TARGET") as folder:
        written = _write(folder, weights, plain, info=info, source=source)
        _check_equal(weights, weights_of(written, plain))
    merged = sum(name.endswith(FACTORS[0]) for name in factored)
    return MergeAccount(source, target, info.manifest.step, merged, len(weights) - merged, config)


def _plain(source: Path, target: Path, config: RunConfig, info: CheckpointInfo) -> RunConfig:
    """Return the configuration of the merged run, with the tokenizer that the source has."""
    load_stored_tokenizer(config.tokenizer, source, checkpoint=info.manifest.extra)
    stored = source / TOKENIZER_FOLDER
    path = str(stored) if is_dir(stored) else config.tokenizer.path
    return replace(
        config,
        model=config.model.without_lora,
        tokenizer=replace(config.tokenizer, path=path),
        optimizer=replace(config.optimizer, trainable=[]),
        run=replace(config.run, name=target.name, init_from=None),
        paths=replace(config.paths, runs=str(target.absolute().parent)),
    )


def _write(
    folder: Path,
    weights: Mapping[str, torch.Tensor],
    config: RunConfig,
    *,
    info: CheckpointInfo,
    source: Path,
) -> CheckpointInfo:
    layout = Layout().sizes()
    opened = open_run_folder(
        folder,
        config=dump_config(config),
        overrides=[],
        provenance=collect_provenance(
            hosts=[socket.gethostname()],
            world_size=1,
            layout=layout,
            command=sys.argv,
            launcher="glm-dist convert",
        ),
    )
    if opened.lock is not None:
        opened.lock.close()
    store_tokenizer(config.tokenizer, folder)
    spill = Spill(folder)
    data = {key: info.manifest.extra[key] for key in ("data",) if key in info.manifest.extra}
    origin: dict[str, Json] = {"run": str(source.resolve()), "step": info.manifest.step}
    path = save_checkpoint(
        folder / CHECKPOINTS,
        step=info.manifest.step,
        tensors={WEIGHTS + name: spill.keep(weights[name]) for name in weights},
        extra={"merged_from": origin, **data},
        layout=layout,
        keep_last=1,
    )
    return CheckpointInfo(path, read_manifest(path))


def _check_equal(expected: Mapping[str, torch.Tensor], found: Mapping[str, torch.Tensor]) -> None:
    """Compare what was written with what it was made of.

    Raises:
        CheckpointError: A tensor differs.
    """
    for name in expected:
        if not torch.equal(expected[name], found[name]):
            raise CheckpointError(
                f"{name} was not written as it was computed. Nothing was written.\n"
                "  Check the disk; if it is sound, please report this as a bug.",
                key="TARGET",
                value=name,
            )
