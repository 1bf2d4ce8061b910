"""Official checkpoints made by hand: names, shapes and shards as written in the official code."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

LAYERS, HIDDEN, HEADS, POSITIONS, ROWS = 2, 16, 4, 40, 128

State = dict[str, torch.Tensor]


def make_state(
    *,
    layers: int = LAYERS,
    hidden: int = HIDDEN,
    positions: int = POSITIONS,
    rows: int = ROWS,
    dtype: torch.dtype = torch.float16,
    std: float = 0.2,
) -> State:
    """Random weights; large enough that every parameter changes the logits visibly."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, generator=generator) * std).to(dtype)

    state = {
        "word_embeddings.weight": draw(rows, hidden),
        "transformer.position_embeddings.weight": draw(positions + 1, hidden),
        "transformer.block_position_embeddings.weight": draw(positions + 1, hidden),
    }
    for layer in range(layers):
        for name, shape in {
            "input_layernorm": (hidden,),
            "attention.query_key_value": (3 * hidden, hidden),
            "attention.dense": (hidden, hidden),
            "post_attention_layernorm": (hidden,),
            "mlp.dense_h_to_4h": (4 * hidden, hidden),
            "mlp.dense_4h_to_h": (hidden, 4 * hidden),
        }.items():
            state[f"transformer.layers.{layer}.{name}.weight"] = draw(*shape)
            state[f"transformer.layers.{layer}.{name}.bias"] = draw(shape[0])
    for kind in ("weight", "bias"):
        state[f"transformer.final_layernorm.{kind}"] = draw(hidden)
    return state


def shard(name: str, whole: torch.Tensor, rank: int, parts: int) -> torch.Tensor:
    """Cut as the official layers do: columns, rows, or rows of each of Q, K and V."""
    if name.endswith(("attention.dense.weight", "dense_4h_to_h.weight")):
        return whole.chunk(parts, dim=1)[rank].clone()
    if "query_key_value" in name:
        return torch.cat([block.chunk(parts)[rank] for block in whole.chunk(3)])
    if name == "word_embeddings.weight" or "dense_h_to_4h" in name:
        return whole.chunk(parts)[rank].clone()
    return whole


def write_parts(
    folder: Path,
    state: Mapping[str, torch.Tensor],
    *,
    parts: int = 1,
    beside: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    iteration: int | None = 7,
    **how: Any,
) -> Path:
    """Write the files of all model-parallel ranks.

    Args:
        folder: Created.
        state: Whole weights.
        parts: Ranks.
        beside: Further keys beside ``module``.
        extra: Further entries of ``module``.
        iteration: None leaves the key out.
        **how: For ``torch.save``.
    """
    folder.mkdir(parents=True)
    for rank in range(parts):
        module = {name: shard(name, tensor, rank, parts) for name, tensor in state.items()}
        content = {"module": module | dict(extra or {}), **(beside or {})}
        if iteration is not None:
            content["iteration"] = iteration
        torch.save(content, folder / f"mp_rank_{rank:02d}_model_states.pt", **how)
    return folder


class Numpy1Pickler(pickle._Pickler):  # type: ignore[name-defined]  # the one written in Python
    """Writes the module path that numpy 1 had."""

    def save_global(self, obj: Any, name: str | None = None) -> None:
        if getattr(obj, "__module__", None) == "numpy._core.multiarray":
            self.write(b"cnumpy.core.multiarray\n" + obj.__name__.encode() + b"\n")
            self.memoize(obj)
        else:
            super().save_global(obj, name)


class Numpy1Pickle:
    """Stands in for the module pickle in ``torch.save``."""

    Pickler = Numpy1Pickler

    @staticmethod
    def dump(obj: Any, file: Any, protocol: int) -> None:
        """Write one object, as legacy files have several."""
        Numpy1Pickler(file, protocol).dump(obj)


def write_vocabulary(folder: Path, rows: int = ROWS) -> Path:
    """A BERT vocabulary whose ids, sop and eop included, fill a table of so many rows."""
    pieces = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "."]
    pieces += [f"w{number}" for number in range(len(pieces), rows - 10)]
    file = folder / "vocab.txt"
    file.write_text("\n".join(pieces))
    return file
