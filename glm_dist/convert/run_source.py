"""Checkpoints of our runs, read tensor by tensor in official names and row order."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from glm_dist.checkpoint.best import StepChoice
from glm_dist.checkpoint.load import WEIGHTS, CheckpointInfo, choose_checkpoint
from glm_dist.checkpoint.reader import TensorReader
from glm_dist.config.load import load_config_file
from glm_dist.config.parameter_specs import parameter_specs
from glm_dist.config.schema import RunConfig
from glm_dist.convert.merge import merged_weights
from glm_dist.convert.official import (
    check_official_form,
    has_official_name,
    official_name,
    official_rows,
)
from glm_dist.convert.source import Source, Tensors
from glm_dist.errors import CheckpointError
from glm_dist.observe.run_folder import CHECKPOINTS, CONFIG_FILE


def read_run(folder: Path, *, step: StepChoice) -> Source:
    """Open a checkpoint of a run; every file's hash is compared.

    Args:
        folder: The run's folder.
        step: Which checkpoint; the newest complete one if None.

    Raises:
        CheckpointError: There is none, it is damaged, or it does not fit the configuration.
        ConfigError: The configuration cannot be read, or has no official form.
    """
    config = load_config_file(folder / CONFIG_FILE)
    check_official_form(config.model, any_epsilon=True)
    info = choose_checkpoint(folder / CHECKPOINTS, step)
    ours = weights_of(info, config)
    used = {WEIGHTS + name for name in ours}
    model, notes = config.model, tuple[str, ...]()
    if model.lora_rank > 0:
        ours, model = merged_weights(ours, model), model.without_lora
        scale, rank = config.model.lora_scale, config.model.lora_rank
        notes = (f"weights are W + {scale:g} B A, of rank {rank}",)
    heads = model.num_attention_heads
    specs = parameter_specs(model, config.padded_vocab_size)
    kept = [spec.name for spec in specs if has_official_name(spec)]
    back = {official_name(name): name for name in kept}

    def read(name: str) -> torch.Tensor:
        return official_rows(name, ours[back[name]], num_attention_heads=heads)

    rest = [name for name in info.manifest.tensors if name not in used]
    added = [name for name in ours if name not in kept]
    dtypes = {info.manifest.tensors[name].dtype for name in used}
    return Source(
        title=f"run {folder}, checkpoint of step {info.manifest.step}",
        model=model,
        sizes={},
        padded_vocab_size=config.padded_vocab_size,
        tensors=Tensors(back, read),
        dtype=getattr(torch, dtypes.pop()) if len(dtypes) == 1 else torch.float32,
        step=info.manifest.step,
        ignored=tuple(sorted({f"{name.partition('.')[0]}.*" for name in rest} | set(added))),
        notes=notes,
        origin={"run": str(folder.resolve()), "step": info.manifest.step},
        config=replace(config, model=model),
    )


def weights_of(info: CheckpointInfo, config: RunConfig) -> Mapping[str, torch.Tensor]:
    """Open the weights of a checkpoint, by our name; each is read when it is asked for.

    Args:
        info: A complete checkpoint.
        config: Of its run.

    Raises:
        CheckpointError: Weights are missing or of other shapes.
    """
    saved = info.manifest.tensors
    specs = parameter_specs(config.model, config.padded_vocab_size)
    for spec in specs:
        record = saved.get(WEIGHTS + spec.name)
        if record is None or record.shape != spec.shape:
            found = "missing" if record is None else f"of shape {list(record.shape)}"
            raise CheckpointError(
                f"{info.path} does not fit {CONFIG_FILE} of its run: {spec.name} is {found}, and"
                f" should be of shape {list(spec.shape)}.\n"
                f"  Restore the run's {CONFIG_FILE}.",
                key=spec.name,
                value=found,
            )
    reader = TensorReader(info.path, info.manifest)

    def read(name: str) -> torch.Tensor:
        record = saved[WEIGHTS + name]
        return reader.read(WEIGHTS + name, record)

    return Tensors(dict.fromkeys(spec.name for spec in specs), read)
