"""GLM written out in plain torch, one layer in memory at a time: the check of a conversion.

It reads weights either in official row order, three blocks of h rows, or in ours, three blocks for
each head, and shares no code with the conversion between the two. (GLM 2.1; official 4f61ed7)
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

VOCABULARY_CHUNK = 8192
"""Rows of the word table that are in memory at a time."""

Read = Callable[[str], torch.Tensor]


@dataclass(frozen=True)
class Rows:
    """Input of the model; [b, s] but for the last."""

    tokens: torch.Tensor
    positions: torch.Tensor
    block_positions: torch.Tensor
    prefix_length: torch.Tensor
    """[b]: tokens of Part A, which everything sees; later ones see what stands before them."""


def random_rows(*, vocab_size: int, max_position: int, seed: int = 0) -> Rows:
    """Draw two rows of tokens with a Part B, up to 32 tokens each.

    Args:
        vocab_size: Tokens are drawn from all of the table.
        max_position: Largest position and block position.
        seed: Of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    length = min(32, max_position + 1)
    shape = (2, length)

    def draw(end: int) -> torch.Tensor:
        return torch.randint(0, end, shape, generator=generator)

    return Rows(
        tokens=draw(vocab_size),
        positions=draw(max_position + 1),
        block_positions=draw(max_position + 1),
        prefix_length=torch.tensor([length // 2, length - 1]),
    )


@torch.no_grad()
def plain_logits(
    read: Read, rows: Rows, *, num_layers: int, heads: int, epsilon: float, by_head: bool
) -> torch.Tensor:
    """Compute logits in fp32.

    Args:
        read: Returns a parameter by official name, in any dtype.
        rows: Input.
        num_layers: L.
        heads: a.
        epsilon: Of the norms.
        by_head: True if the fused projection's rows are [a, 3, d], as ours; False: [3, a, d].

    Returns:
        [b, s, V].
    """

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, read(f"{name}.weight").float(), read(f"{name}.bias").float())

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        weight, bias = read(f"{name}.weight").float(), read(f"{name}.bias").float()
        return functional.layer_norm(x, x.shape[-1:], weight, bias, epsilon)

    table = read("word_embeddings.weight")
    x = table[rows.tokens].float()
    x = x + read("transformer.position_embeddings.weight")[rows.positions].float()
    x = x + read("transformer.block_position_embeddings.weight")[rows.block_positions].float()
    visible = _visible(rows)
    for layer in range(num_layers):
        prefix = f"transformer.layers.{layer}"
        name = f"{prefix}.attention.query_key_value"
        fused = (
            _three(read(f"{name}.{kind}").float(), heads, by_head) for kind in ("weight", "bias")
        )
        y = norm(f"{prefix}.input_layernorm", x)
        q, k, v = (
            functional.linear(y, weight, bias).view(*y.shape[:2], heads, -1).transpose(1, 2)
            for weight, bias in zip(*fused, strict=True)
        )  # [b, a, s, d]
        scores = q @ (k / math.sqrt(k.shape[-1])).transpose(-1, -2)
        seen = scores.masked_fill(~visible, float("-inf")).softmax(-1) @ v
        x = x + linear(f"{prefix}.attention.dense", seen.transpose(1, 2).flatten(2))
        y = linear(f"{prefix}.mlp.dense_h_to_4h", norm(f"{prefix}.post_attention_layernorm", x))
        x = x + linear(f"{prefix}.mlp.dense_4h_to_h", functional.gelu(y, approximate="tanh"))
    x = norm("transformer.final_layernorm", x)
    pieces = torch.split(table, VOCABULARY_CHUNK)
    return torch.cat([functional.linear(x, piece.float()) for piece in pieces], dim=-1)


def _three(fused: torch.Tensor, heads: int, by_head: bool) -> tuple[torch.Tensor, ...]:
    """Take query, key and value out of a fused weight or bias, each with rows [a, d]."""
    if not by_head:
        return fused.chunk(3)
    grouped = fused.view(heads, 3, -1, *fused.shape[1:])
    return tuple(grouped[:, kind].flatten(0, 1) for kind in range(3))


def _visible(rows: Rows) -> torch.Tensor:
    """[b, 1, s, s]: True where a query sees a key."""
    s = rows.tokens.shape[1]
    key = torch.arange(s)
    causal = key[None, :] <= key[:, None]
    prefix = key[None, None, :] < rows.prefix_length[:, None, None]
    return (causal[None] | prefix)[:, None]
