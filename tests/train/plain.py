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
HIDDEN = 32
LORA_SCALE = 2.0
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
    tokens = torch.from_numpy(row.tokens)
    hidden = table[tokens.where(tokens < vocab_size, 0)]  # [s, h]
    if "shrink" in options:
        hidden = 0.1 * hidden + 0.9 * hidden.detach()
    if "embedding.prompt.table.weight" in weights:
        slot = tokens - len(weights["embedding.word_embeddings.weight"])
        prompted = _prompt(weights)[slot.clamp(min=0)]
        hidden = torch.where(slot[:, None] >= 0, prompted, hidden)
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
    weight = weights[f"{name}.weight"]
    if f"{name}.lora_a" in weights:
        weight = weight + LORA_SCALE * weights[f"{name}.lora_b"] @ weights[f"{name}.lora_a"]
    return hidden @ weight.t() + weights[f"{name}.bias"]


def _prompt(weights: dict[str, torch.Tensor]) -> torch.Tensor:
    """The rows that take the places of slots [k, h]: table, LSTM, MLP, as far as there are."""
    own = {n.removeprefix("embedding.prompt."): w for n, w in weights.items() if ".prompt." in n}
    rows = own["table.weight"]
    for layer in range(2 if "lstm.weight_ih_l0" in own else 0):
        directions = []
        for end, order in ((f"l{layer}", 1), (f"l{layer}_reverse", -1)):
            state, cell, outputs = torch.zeros(HIDDEN), torch.zeros(HIDDEN), []
            for row in rows[::1] if order == 1 else rows.flip(0):
                gates = row @ own[f"lstm.weight_ih_{end}"].t() + own[f"lstm.bias_ih_{end}"]
                gates = gates + state @ own[f"lstm.weight_hh_{end}"].t()
                i, f, g, o = (gates + own[f"lstm.bias_hh_{end}"]).chunk(4)
                cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
                state = o.sigmoid() * cell.tanh()
                outputs.append(state)
            directions.append(torch.stack(outputs[::order]))
        rows = torch.cat(directions, dim=1)
    if "mlp.0.weight" in own:
        inner = (rows @ own["mlp.0.weight"].t() + own["mlp.0.bias"]).relu()
        rows = inner @ own["mlp.2.weight"].t() + own["mlp.2.bias"]
    return rows


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
    trainable: Callable[[str], bool] = lambda _: True,
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
        trainable: Says of a name whether it is trained.

    Returns:
        Loss and gradient norm of each step, and the final weights.
    """
    weights = {n: torch.from_numpy(w.copy()) for n, w in initial.items()}
    trained = {n: w.requires_grad_() for n, w in weights.items() if trainable(n)}
    first = {n: torch.zeros_like(w) for n, w in trained.items()}
    second = {n: torch.zeros_like(w) for n, w in trained.items()}
    losses, norms = [], []
    for step, rows in enumerate(batches, start=1):
        loss = loss_of(weights, rows)
        gradients = dict(
            zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True)
        )
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients.values()))
        for name, weight in trained.items():
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
