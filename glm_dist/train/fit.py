"""Fit of a model to the weights it starts from: names and shapes, before a weight is read.

A weight that is drawn where the user expects a pretrained one, or a pretrained one that is left
out, spoils a run without a sign. So every name that is not loaded is listed, and is an error unless
finetuning adds or replaces it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from glm_dist.checkpoint.manifest import WEIGHTS, Manifest
from glm_dist.config.load import load_config_file
from glm_dist.config.parameter_specs import CLASSIFIER, PROMPT, ParameterSpec, parameter_specs
from glm_dist.config.schema import RunConfig
from glm_dist.errors import CheckpointError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Fit:
    """Weights of a model, by the source of their first values."""

    loaded: tuple[str, ...]
    """Read from the checkpoint, those in ``grown`` included."""
    grown: tuple[str, ...]
    """Position tables with more rows than the saved ones; the other rows are drawn."""
    new: tuple[str, ...]
    """Drawn: the parts that finetuning adds."""
    unused: tuple[str, ...]
    """Saved, but not in the model: head and prompt of another task."""


def fit_weights(saved: Mapping[str, Shape], specs: Iterable[ParameterSpec], *, origin: Path) -> Fit:
    """Compare the weights of a checkpoint with a model.

    Args:
        saved: Shapes of the saved weights by name.
        specs: All parameters of the model.
        origin: The checkpoint, for the error.

    Raises:
        CheckpointError: Weights would be new or unused that no task adds, or have other shapes.
    """
    wanted = {spec.name: spec for spec in specs}
    common = [name for name in sorted(wanted) if name in saved]
    replaced = {n for n in common if _is_of_one_task(n) and saved[n] != wanted[n].shape}
    loaded = [name for name in common if name not in replaced]
    grown = [name for name in loaded if is_grown(name, saved[name], wanted[name].shape)]
    new = sorted((wanted.keys() - saved.keys()) | replaced)
    unused = sorted((saved.keys() - wanted.keys()) | replaced)
    problems = [
        f"{name}: {saved[name]} saved, {wanted[name].shape} here"
        for name in loaded
        if name not in grown and saved[name] != wanted[name].shape
    ]
    problems += [f"{name}: not saved" for name in new if not wanted[name].is_added]
    problems += [
        f"{name}: saved, but not in this model" for name in unused if not _is_of_one_task(name)
    ]
    if problems:
        raise _does_not_fit(origin, problems, has_lora=any(".lora_" in name for name in unused))
    return Fit(tuple(loaded), tuple(grown), tuple(new), tuple(unused))


def fit_checkpoint(config: RunConfig, manifest: Manifest, *, origin: Path) -> Fit:
    """Compare a checkpoint with the model of a configuration; see ``fit_weights``."""
    return fit_weights(saved_shapes(manifest), _specs(config), origin=origin)


def fit_architecture(config: RunConfig, file: Path) -> None:
    """Check that a run has the model of another one, apart from what finetuning adds.

    Args:
        config: The run's configuration.
        file: Saved configuration of the other one.

    Raises:
        CheckpointError: The models differ.
        ConfigError: The file cannot be read.
    """
    saved = {spec.name: spec.shape for spec in _specs(load_config_file(file))}
    fit_weights(saved, _specs(config), origin=file.parent)


def saved_shapes(manifest: Manifest) -> dict[str, Shape]:
    """Return the shapes of the weights of a checkpoint, by their names in the model."""
    return {
        name.removeprefix(WEIGHTS): record.shape
        for name, record in manifest.tensors.items()
        if name.startswith(WEIGHTS)
    }


def is_grown(name: str, saved: Sequence[int], wanted: Sequence[int]) -> bool:
    """Return True if a weight is a position table that has more rows than the saved one."""
    is_table = name.endswith("position_embeddings.weight")
    return is_table and saved[0] < wanted[0] and tuple(saved[1:]) == tuple(wanted[1:])


def _specs(config: RunConfig) -> tuple[ParameterSpec, ...]:
    return parameter_specs(config.model, config.padded_vocab_size)


def _is_of_one_task(name: str) -> bool:
    """Return True for weights of a classifier or a prompt."""
    return name.startswith((CLASSIFIER, PROMPT))


def _does_not_fit(origin: Path, problems: Sequence[str], *, has_lora: bool) -> CheckpointError:
    advice = "Use the model.* and tokenizer.vocab_size of that run (see its config.yaml)."
    fix = "model=<that run's>"
    if has_lora:
        fix = "glm-dist convert <that run> <new run> --to ours"
        advice += f"\n  To add its LoRA updates to its weights: {fix}"
    return CheckpointError(
        f"run.init_from={origin} has other weights than the model:\n"
        + "".join(f"  {problem}\n" for problem in problems)
        + advice,
        key="run.init_from",
        value=str(origin),
        fix=fix,
    )
