"""GLM and its training written out in plain torch: no megatron-core, no DeepSpeed, no padding.

The layout grid compares with this, so that an error that all layouts share is an error too.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional

from glm_dist.data.rows import Row

HEADS = 4
EPSILON = 1e-5


Weights = dict[str, torch.Tensor]


def final_hidden(
    weights: Weights, row: Row, *, vocab_size: int, options: frozenset[str] = frozenset()
) -> torch.Tensor:
    """Normalised hidden states [s, h] of a row, under a dense mask.

    Args:
        weights: Whole parameters by global name.
        row: Any row that is not packed.
        vocab_size: Tokens that exist; later rows of the table are padding.
        options: Names of ``grid.ARCHITECTURE``.
    """
    table = weights["embedding.word_embeddings.weight"][:vocab_size]
    hidden = table[torch.from_numpy(row.tokens)]  # [s, h]
    if "shrink" in options:
        hidden = 0.1 * hidden + 0.9 * hidden.detach()
    position_ids = [torch.from_numpy(row.positions), torch.from_numpy(row.block_positions)]
    if "rotary_2d" not in options:
        for name, ids in zip(("position", "block_position"), position_ids, strict=True):
            hidden = hidden + weights[f"embedding.{name}_embeddings.weight"][ids]
    index = torch.arange(len(row.tokens))
    visible = (index[None] <= index[:, None]) | (index[None] < row.prefix_length)
    layer = 0
    while f"decoder.layers.{layer}.input_layernorm.weight" in weights:
        hidden = _block(weights, f"decoder.layers.{layer}.", hidden, visible, options, position_ids)
        layer += 1
    return _norm(weights, "decoder.final_layernorm", hidden)


def loss_sum(
    weights: Weights,
    rows: list[Row],
    *,
    vocab_size: int,
    options: frozenset[str] = frozenset(),
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """Summed cross entropy of rows, each computed alone; arguments as ``final_hidden``."""
    table = weights["embedding.word_embeddings.weight"][:vocab_size]
    total = torch.zeros(())
    for row in rows:
        logits = final_hidden(weights, row, vocab_size=vocab_size, options=options) @ table.t()
        mask = torch.from_numpy(row.loss_mask)
        total = total + functional.cross_entropy(
            logits[mask],
            torch.from_numpy(row.targets)[mask],
            reduction="sum",
            label_smoothing=label_smoothing,
        )
    return total


def num_targets(rows: list[Row]) -> int:
    """Predicted tokens of rows."""
    return sum(int(row.loss_mask.sum()) for row in rows)


def _norm(weights: dict[str, torch.Tensor], name: str, hidden: torch.Tensor) -> torch.Tensor:
    centred = hidden - hidden.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + EPSILON).rsqrt()
    return centred * scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def _linear(weights: dict[str, torch.Tensor], name: str, hidden: torch.Tensor) -> torch.Tensor:
    return hidden @ weights[f"{name}.weight"].t() + weights[f"{name}.bias"]


def _turned(heads: torch.Tensor, position_ids: list[torch.Tensor]) -> torch.Tensor:
    """Each half of a head [s, a, d] as complex numbers, times e^(i angle)."""
    halves = []
    for half, ids in zip(heads.chunk(2, dim=2), position_ids, strict=True):
        real, imaginary = half.chunk(2, dim=2)
        pairs = torch.arange(real.size(2))
        angle = ids[:, None, None] / 10000 ** (2 * pairs / half.size(2))
        turned = torch.complex(real, imaginary) * torch.polar(torch.ones_like(angle), angle)
        halves += [turned.real, turned.imag]
    return torch.cat(halves, dim=2)


def _block(
    weights: dict[str, torch.Tensor],
    layer: str,
    hidden: torch.Tensor,
    visible: torch.Tensor,
    options: frozenset[str],
    position_ids: list[torch.Tensor],
) -> torch.Tensor:
    length, size = hidden.shape
    normed = _norm(weights, f"{layer}input_layernorm", hidden)
    if "deep_norm" in options:
        layers = sum(name.endswith("input_layernorm.weight") for name in weights)
        hidden = math.sqrt(2 * layers) * normed
    fused = _linear(weights, f"{layer}self_attention.linear_qkv", normed)
    query, key, value = fused.view(length, HEADS, 3, size // HEADS).unbind(2)  # [s, a, d]
    if "rotary_2d" in options:
        query, key = _turned(query, position_ids), _turned(key, position_ids)
    scores = torch.einsum("iad,jad->aij", query, key) / math.sqrt(size // HEADS)
    attention = scores.masked_fill(~visible, -math.inf).softmax(-1)
    context = torch.einsum("aij,jad->iad", attention, value).reshape(length, size)
    hidden = hidden + _linear(weights, f"{layer}self_attention.linear_proj", context)
    normed = _norm(weights, f"{layer}pre_mlp_layernorm", hidden)
    if "deep_norm" in options:
        hidden = math.sqrt(2 * layers) * normed
    inner = _linear(weights, f"{layer}mlp.linear_fc1", normed)
    if "geglu" in options:
        gate, value = inner[:, : inner.size(1) // 2], inner[:, inner.size(1) // 2 :]
        inner = 0.5 * gate * (1 + torch.erf(gate / math.sqrt(2))) * value
    else:
        cubic = math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)
        inner = 0.5 * inner * (1 + torch.tanh(cubic))
    return hidden + _linear(weights, f"{layer}mlp.linear_fc2", inner)


def train(
    initial: dict[str, np.ndarray],
    batches: list[list[Row]],
    *,
    loss_of: Callable[[Weights, list[Row]], torch.Tensor],
    learning_rate: float,
    betas: tuple[float, float],
    epsilon: float,
    weight_decay: float,
    clip: float,
) -> tuple[list[float], list[float], dict[str, np.ndarray]]:
    """AdamW written out, one batch a step.

    Args:
        initial: Whole parameters; everything is computed in their dtype.
        batches: Rows of each step.
        loss_of: Computes the mean loss of a batch.
        learning_rate: Of every step.
        betas: Decays of the moments.
        epsilon: Added to the root of the second moment.
        weight_decay: On matrices.
        clip: Largest gradient norm.

    Returns:
        Loss and gradient norm of each step, and the final weights.
    """
    weights = {n: torch.from_numpy(w.copy()).requires_grad_() for n, w in initial.items()}
    first = {n: torch.zeros_like(w) for n, w in weights.items()}
    second = {n: torch.zeros_like(w) for n, w in weights.items()}
    losses, norms = [], []
    for step, rows in enumerate(batches, start=1):
        loss = loss_of(weights, rows)
        gradients = dict(
            zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True)
        )
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        for name, weight in weights.items():
            gradient = gradients[name] * min(1.0, clip / (norm + 1e-6))
            first[name] = betas[0] * first[name] + (1 - betas[0]) * gradient
            second[name] = betas[1] * second[name] + (1 - betas[1]) * gradient.square()
            update = (first[name] / (1 - betas[0] ** step)) / (
                (second[name] / (1 - betas[1] ** step)).sqrt() + epsilon
            )
            with torch.no_grad():
                if weight.dim() > 1:
                    weight *= 1 - learning_rate * weight_decay
                weight -= learning_rate * update
        losses.append(float(loss.detach()))
        norms.append(norm)
    return losses, norms, {n: w.detach().numpy() for n, w in weights.items()}
