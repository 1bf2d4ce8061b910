"""Official checkpoints of any number of model-parallel parts, read tensor by tensor.

Looking at a checkpoint reads names and shapes; the weights of torch's zip format stay on the disk
until one is asked for.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from glm_dist.config.schema import ModelConfig
from glm_dist.convert.dtypes import NAMES
from glm_dist.convert.official import (
    CLASSIFIER,
    CLASSIFIER_PREFIX,
    POSITION_TABLES,
    WORD_TABLE,
    OfficialParameter,
    official_model,
    official_parameters,
)
from glm_dist.convert.official_folder import OfficialFiles, find_official, part_name
from glm_dist.convert.restricted import damaged, load_restricted
from glm_dist.convert.source import Source, Tensors
from glm_dist.errors import CheckpointError

MODULE = "module"
LAYER = re.compile(r"transformer\.layers\.(\d+)\.")
BEST = "best"
"""Tag under which the official finetuning saves the weights that it trained."""
HEAD_BIAS = "multichoice_head.bias"
FUSED = "transformer.layers.0.attention.query_key_value.weight"
_MAX_LISTED = 5


class _Part:
    """One model-parallel rank's file."""

    def __init__(self, path: Path) -> None:
        content = load_restricted(path)
        if not isinstance(content, Mapping) or not isinstance(content.get(MODULE), Mapping):
            keys = sorted(map(str, content))[:_MAX_LISTED] if isinstance(content, Mapping) else []
            raise CheckpointError(
                f"{path} is no official checkpoint: it has no {MODULE!r} with weights by name, but"
                f" {', '.join(keys) or type(content).__name__}.\n"
                "  Name mp_rank_00_model_states.pt of a GLM, or its folder.",
                key=str(path),
                value=", ".join(keys),
            )
        self.path = path
        self.content: Mapping[str, Any] = content
        self.tensors: dict[str, torch.Tensor] = {}
        self.ignored = [str(key) for key in content if key not in (MODULE, "iteration")]
        self._sort(content[MODULE])

    def _sort(self, module: Mapping[Any, Any]) -> None:
        """Take the model's tensors out of the module, under their plain names.

        A classification head is taken if all of it is there.
        """
        has_head = CLASSIFIER.keys() <= module.keys()
        for stored, value in module.items():
            name = str(stored).removeprefix(CLASSIFIER_PREFIX)
            is_head = has_head and stored in CLASSIFIER
            if not (name == WORD_TABLE or name.startswith("transformer.") or is_head):
                self.ignored.append(f"{MODULE}.{stored}")
                continue
            if name in self.tensors:
                raise damaged(self.path, f"it has {name} with and without {CLASSIFIER_PREFIX!r}")
            if not isinstance(value, torch.Tensor) or not _is_plain(value):
                raise damaged(self.path, f"{stored} is no plain tensor of floating-point numbers")
            self.tensors[name] = value

    def number(self, key: str) -> int | None:
        """A whole number beside the module; None if there is none of that name."""
        value = self.content.get(key)
        if not isinstance(value, int) or isinstance(value, bool):
            return None
        return value if 0 <= value < 10**18 else None


def read_official(source: Path) -> Source:
    """Open an official checkpoint.

    Args:
        source: See ``find_official``.

    Raises:
        CheckpointError: Files are missing, damaged or hold objects that are not allowed, or
            parameters are missing or of wrong shapes.
    """
    files = find_official(source)
    parts = [_Part(path) for path in files.parts]
    parameters = _check(files, parts)
    used = {each.name: each for each in parameters}
    dtypes = Counter(parts[0].tensors[name].dtype for name in used)
    step = _step(files, parts)
    whole = _model(parts)
    layers = sorted({name for part in parts for name in part.tensors.keys() - used.keys()})
    ignored = [*dict.fromkeys(name for part in parts for name in part.ignored), *layers]
    count = len(parts)
    sizes = ("num_layers", "hidden_size", "max_position_embeddings", "num_classes")
    return Source(
        title=f"official checkpoint {files.folder}, {count} part{'s' * (count > 1)}, step {step}",
        model=whole.model,
        sizes={f"model.{name}": getattr(whole.model, name) for name in sizes},
        padded_vocab_size=whole.padded_vocab_size,
        tensors=Tensors(used, lambda name: _merged(used[name], parts)),
        dtype=dtypes.most_common(1)[0][0],
        step=step,
        is_mapped=count == 1,
        ignored=tuple(ignored),
        notes=tuple(_drifted(parameters, parts)),
        origin={"official": str(files.folder.resolve()), "parts": count, "tag": files.tag},
    )


class _Whole(NamedTuple):
    """Sizes of the whole model."""

    model: ModelConfig
    padded_vocab_size: int


def _model(parts: Sequence[_Part]) -> _Whole:
    """Take the sizes from shapes; ``_check`` has seen that they are there."""
    tensors = parts[0].tensors
    rows, h = tensors[WORD_TABLE].shape
    model = official_model(
        num_layers=len({match[1] for name in tensors if (match := LAYER.match(name))}),
        hidden_size=h,
        max_position_embeddings=tensors[POSITION_TABLES[0]].shape[0] - 1,
        num_classes=tensors[HEAD_BIAS].numel() if HEAD_BIAS in tensors else 0,
    )
    return _Whole(model, rows * len(parts))


def _check(files: OfficialFiles, parts: Sequence[_Part]) -> tuple[OfficialParameter, ...]:
    """Compare names, shapes and sizes of all parts; return the parameters of the whole model."""
    first = parts[0]
    needed = (WORD_TABLE, POSITION_TABLES[0], FUSED)
    absent = [name for name in needed if name not in first.tensors]
    if absent:
        raise _missing(files, first, absent)
    for name in needed:
        if first.tensors[name].ndim != 2 or 0 in first.tensors[name].shape:
            raise damaged(first.path, f"{name} has the shape {_shown(first.tensors[name].shape)}")
    _check_count(files, first, len(parts))
    whole = _model(parts)
    parameters = official_parameters(whole.model, whole.padded_vocab_size)
    for part in parts:
        missing = [each.name for each in parameters if each.name not in part.tensors]
        if missing:
            raise _missing(files, part, missing)
        for each in parameters:
            found, wanted = tuple(part.tensors[each.name].shape), each.part_shape(len(parts))
            if found != wanted:
                raise CheckpointError(
                    f"{part.path}: {each.name} has the shape {_shown(found)}; by the other tensors"
                    f" it is {_shown(wanted)}.\n"
                    "  The parts are not those of one GLM; fetch them again.",
                    key=each.name,
                    value=_shown(found),
                )
        held = sum(part.tensors[each.name].nbytes for each in parameters)
        if held > part.path.stat().st_size:
            raise damaged(part.path, "its tensors claim more bytes than the file has")
        if part.number("iteration") != first.number("iteration"):
            raise CheckpointError(
                f"{part.path} is of iteration {part.number('iteration')}, and {first.path.name} of"
                f" {first.number('iteration')}.\n"
                "  Put the parts of one checkpoint together.",
                key=str(part.path),
                value=part.number("iteration"),
            )
    return parameters


def _check_count(files: OfficialFiles, first: _Part, count: int) -> None:
    """Refuse a checkpoint whose last parts are missing."""
    rows, h = first.tensors[FUSED].shape
    parts, rest = divmod(3 * h, rows)
    if rest or parts == count:
        return  # the shapes say more
    here = f"{count} {'is' if count == 1 else 'are'}"
    raise CheckpointError(
        f"{files.folder} is a checkpoint of {parts} parts, and {here} there: {FUSED} has {rows} of"
        f" {3 * h} rows.\n"
        f"  Copy {part_name(parts - 1 if parts > count else 0)} and the other parts there.",
        key=str(files.folder),
        value=count,
    )


def _missing(files: OfficialFiles, part: _Part, names: Sequence[str]) -> CheckpointError:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    remedy = "Name a whole checkpoint of a GLM with block positions (arXiv 2103.10360)."
    if files.tag == BEST:
        remedy = (
            f"{BEST} holds only what the finetuning trained; name a checkpoint of an iteration, or"
            " the one that the finetuning began with."
        )
    return CheckpointError(
        f"{part.path} lacks {', '.join(names[:_MAX_LISTED])}{more}.\n  {remedy}",
        key=names[0],
        value=len(names),
    )


def _merged(parameter: OfficialParameter, parts: Sequence[_Part]) -> torch.Tensor:
    return parameter.merge([part.tensors[parameter.name] for part in parts])


def _drifted(parameters: Sequence[OfficialParameter], parts: Sequence[_Part]) -> Iterator[str]:
    """Name parameters that every part has whole, and not equal."""
    names = [
        each.name
        for each in parameters
        if each.spec.tensor_dim is None
        and any(
            not torch.equal(part.tensors[each.name], parts[0].tensors[each.name])
            for part in parts[1:]
        )
    ]
    if names:
        listed = ", ".join(names[:_MAX_LISTED])
        more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
        yield f"not equal in all parts, taken from {parts[0].path.name}: {listed}{more}"


def _step(files: OfficialFiles, parts: Sequence[_Part]) -> int:
    step = parts[0].number("iteration")
    return (files.iteration or 0) if step is None else step


def _is_plain(tensor: torch.Tensor) -> bool:
    is_dense = tensor.layout is torch.strided and tensor.device.type == "cpu"
    return is_dense and tensor.dtype in NAMES


def _shown(shape: Sequence[int]) -> str:
    return str(list(shape))
