"""Conversion of weights from one kind of folder to another: read, write, compare, account."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from glm_dist.checkpoint.best import StepChoice
from glm_dist.config.schema import Dtype, ModelConfig
from glm_dist.convert.configuration import complete_configuration, heads_of
from glm_dist.convert.dtypes import NAMES, TORCH_DTYPES
from glm_dist.convert.huggingface import read_huggingface, write_huggingface
from glm_dist.convert.huggingface_source import (
    exported_tokenizer,
    huggingface_source,
    with_own_mask_row,
)
from glm_dist.convert.kinds import Kind
from glm_dist.convert.official import (
    CLASSIFIER,
    QKV,
    check_official_form,
    official_parameters,
    our_name,
)
from glm_dist.convert.official_reader import read_official
from glm_dist.convert.official_writer import check_parts, write_official
from glm_dist.convert.plain_model import plain_logits, random_rows
from glm_dist.convert.run_source import read_run, weights_of
from glm_dist.convert.run_writer import write_run
from glm_dist.convert.source import Source
from glm_dist.errors import CheckpointError
from glm_dist.files import FileError, check_absent, exists, new_folder

TOLERANCE = 1e-5
"""Largest difference of logits, relative to the largest logit, that is called rounding."""

Read = Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class Request:
    """A conversion to be done."""

    source: Path
    target: Path
    source_kind: Kind
    target_kind: Kind
    overrides: tuple[str, ...] = ()
    config_dir: Path | None = None
    step: StepChoice = None
    """Checkpoint of a run; the newest if None."""
    parts: int = 1
    """Model-parallel ranks of an official target."""
    dtype: Dtype = Dtype.fp16
    """Of the weights in a target that is not ours; ours keeps the source's."""


@dataclass(frozen=True)
class Account:
    """Result of a conversion, for people."""

    source: Source
    model: ModelConfig
    target: Path
    target_title: str
    copied: int
    permuted: int
    """Fused projections whose rows are in another order."""
    grown: tuple[str, ...]
    largest_difference: float
    """Of logits of the source and of the target as it was read back, over random rows."""
    largest_logit: float
    dtype: torch.dtype
    """Of the weights in the target."""

    def lines(self) -> list[tuple[str, str]]:
        """Return titles and texts, for people."""
        model, source = self.model, self.source
        ignored = ", ".join(source.ignored) or "nothing"
        lines = [
            ("source", source.title),
            (
                "model",
                f"{model.num_layers} layers, hidden {model.hidden_size},"
                f" {model.num_attention_heads} heads, positions to"
                f" {model.max_position_embeddings}, {source.padded_vocab_size} rows of words"
                + (f", head of {model.num_classes} classes" if model.num_classes else ""),
            ),
            ("copied", f"{self.copied} tensors"),
            ("permuted", f"{self.permuted} tensors ({QKV})"),
            ("grown", ", ".join(self.grown) or "nothing"),
            ("ignored", ignored),
            ("missing", "nothing"),
            *(("note", note) for note in source.notes),
            ("target", f"{self.target_title} {self.target}, {NAMES[self.dtype]}"),
            (
                "logits",
                f"largest difference {self.largest_difference:.1e}, largest logit"
                f" {self.largest_logit:.3g}; both with weights in {NAMES[self.dtype]}",
            ),
        ]
        return lines


@dataclass(frozen=True)
class _Result:
    """A written target, and how to read it back."""

    model: ModelConfig
    read: Read
    """Returns a parameter of the written target by official name."""
    by_head: bool
    """True if its fused rows are ours."""
    dtype: torch.dtype
    grown: tuple[str, ...] = ()
    title: str = ""
    expected: Callable[[str, torch.Tensor], torch.Tensor] = lambda _, tensor: tensor
    """Returns a parameter of the source as the target has it."""


Write = Callable[[Path], _Result]
"""Writes into an empty folder."""


def convert(request: Request) -> Account:
    """Convert weights. TARGET appears when it is complete and computes the source's logits.

    Args:
        request: What is asked for.

    Raises:
        GlmDistError: Source, configuration or target cannot be used. Nothing is left of TARGET.
    """
    check_absent(request.target, key="TARGET")
    source = open_source(request)
    write = _writer(request, source)
    _check_space(request, source)
    with new_folder(request.target, key="TARGET") as beside:
        result = write(beside)
        difference, largest = _compare(source, result)
        if not difference <= TOLERANCE * largest:
            raise CheckpointError(
                f"{request.target} would compute other logits than {request.source}: the largest"
                f" difference is {difference:.3g}, the largest logit {largest:.3g}. Nothing was"
                " written.\n"
                "  Check the disk; if it is sound, please report this as a bug.",
                key="TARGET",
                value=difference,
            )
    reorders = result.by_head or source.config is not None
    permuted = sum(QKV in name for name in source.tensors) if reorders else 0
    return Account(
        source=source,
        model=result.model,
        target=request.target,
        target_title=result.title,
        copied=len(source.tensors) - permuted,
        permuted=permuted,
        grown=result.grown,
        largest_difference=difference,
        largest_logit=largest,
        dtype=result.dtype,
    )


def open_source(request: Request) -> Source:
    """Open the source, whatever its kind."""
    match request.source_kind:
        case Kind.ours:
            return read_run(request.source, step=request.step)
        case Kind.official:
            return read_official(request.source)
        case Kind.huggingface:
            return huggingface_source(request.source)


def _writer(request: Request, source: Source) -> Write:
    """Check all that can be checked before something is written."""
    match request.target_kind:
        case Kind.ours:
            return _run_writer(request, source)
        case Kind.official:
            return _official_writer(request, source)
        case Kind.huggingface:
            return _huggingface_writer(request, source)


def _run_writer(request: Request, source: Source) -> Write:
    config = complete_configuration(
        source, request.overrides, target=request.target, config_dir=request.config_dir
    )

    def write(folder: Path) -> _Result:
        written = write_run(folder, source, config, overrides=request.overrides)
        ours = weights_of(written.info, config)
        return _Result(
            model=config.model,
            read=lambda name: ours[our_name(name)],
            by_head=True,
            dtype=source.dtype,
            grown=written.grown,
            title="run",
        )

    return write


def _official_writer(request: Request, source: Source) -> Write:
    heads = heads_of(source, request.overrides, config_dir=request.config_dir)
    model = replace(source.model, num_attention_heads=heads)
    check_official_form(model)
    check_parts(model, request.parts)
    dtype = TORCH_DTYPES[request.dtype]

    def write(folder: Path) -> _Result:
        write_official(
            folder,
            source.tensors,
            model=model,
            padded_vocab_size=source.padded_vocab_size,
            step=source.step,
            parts=request.parts,
            dtype=dtype,
        )
        written = read_official(folder)
        return _Result(
            model=model,
            read=written.tensors.__getitem__,
            by_head=False,
            dtype=dtype,
            title=f"official checkpoint of {request.parts} part{'s' * (request.parts > 1)}",
        )

    return write


def _huggingface_writer(request: Request, source: Source) -> Write:
    heads = heads_of(source, request.overrides, config_dir=request.config_dir)
    model = replace(source.model, num_attention_heads=heads)
    tokenizer = exported_tokenizer(
        source, request.source, request.overrides, config_dir=request.config_dir
    )

    def write(folder: Path) -> _Result:
        write_huggingface(
            folder, source.tensors, model=model, tokenizer=tokenizer, dtype=request.dtype
        )
        return _Result(
            model=model,
            read=read_huggingface(folder).tensors.__getitem__,
            by_head=False,
            dtype=TORCH_DTYPES[request.dtype],
            expected=lambda name, tensor: with_own_mask_row(tokenizer, name, tensor),
            title="Hugging Face folder",
        )

    return write


def _compare(source: Source, result: _Result) -> tuple[float, float]:
    """Compute logits of both sides; return their largest difference and the largest of them."""
    model = result.model
    rows = random_rows(
        vocab_size=source.padded_vocab_size,
        max_position=source.model.max_position_embeddings,
    )

    def logits(read: Read, *, by_head: bool) -> torch.Tensor:
        return plain_logits(
            read,
            rows,
            num_layers=model.num_layers,
            heads=model.num_attention_heads,
            epsilon=model.layernorm_epsilon,
            by_head=by_head,
        )

    def stored(name: str) -> torch.Tensor:
        return result.expected(name, source.tensors[name].to(result.dtype))

    expected = logits(stored, by_head=False)
    found = logits(result.read, by_head=result.by_head)
    differences = [found - expected]
    if model.num_classes > 0:
        differences += [result.read(name).float() - stored(name).float() for name in CLASSIFIER]
    return max(float(each.abs().max()) for each in differences), float(expected.abs().max())


def _check_space(request: Request, source: Source) -> None:
    """Refuse a disk that cannot hold the target and what is computed for it."""
    size = max(source.dtype.itemsize, TORCH_DTYPES[request.dtype].itemsize)
    if request.target_kind is Kind.ours:
        size = source.dtype.itemsize
    parameters = official_parameters(source.model, source.padded_vocab_size)
    needed = 2 * size * sum(each.spec.size for each in parameters)
    place = request.target.absolute().parent
    while not exists(place):
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise FileError(
            f"{place} has {free / 2**30:.1f} GiB free; the conversion needs"
            f" {needed / 2**30:.1f} GiB there.\n"
            "  Free some space, or choose a TARGET on another disk.",
            key="TARGET",
            value=free,
            fix="choose a TARGET on another disk",
        )
