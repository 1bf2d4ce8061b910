"""Conversion of parameters from the official GLM code (THUDM/GLM at 4f61ed7).

There are two differences. Our names are megatron-core's. And the official fused projection stacks
[Q | K | V], each h rows in head order, while megatron-core groups the three by head: rows [3, a, d]
become [a, 3, d].
"""

from collections.abc import Mapping

import torch

TOP_LEVEL = {
    "word_embeddings.weight": "embedding.word_embeddings.weight",
    "transformer.position_embeddings.weight": "embedding.position_embeddings.weight",
    "transformer.block_position_embeddings.weight": "embedding.block_position_embeddings.weight",
    "transformer.final_layernorm.weight": "decoder.final_layernorm.weight",
    "transformer.final_layernorm.bias": "decoder.final_layernorm.bias",
}
IN_LAYER = {
    "input_layernorm": "input_layernorm",
    "attention.query_key_value": "self_attention.linear_qkv",
    "attention.dense": "self_attention.linear_proj",
    "post_attention_layernorm": "pre_mlp_layernorm",
    "mlp.dense_h_to_4h": "mlp.linear_fc1",
    "mlp.dense_4h_to_h": "mlp.linear_fc2",
}


def our_name(official_name: str) -> str:
    """Return our global parameter name for an official name.

    Raises:
        KeyError: The official model has no such parameter.
    """
    if official_name in TOP_LEVEL:
        return TOP_LEVEL[official_name]
    _, _, layer, rest = official_name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    return f"decoder.layers.{layer}.{IN_LAYER[module]}.{kind}"


def from_official(
    state: Mapping[str, torch.Tensor], *, num_attention_heads: int
) -> dict[str, torch.Tensor]:
    """Convert whole parameters of the official model to our names and row order.

    Gradients and optimizer moments have the same layout and are converted likewise.

    Args:
        state: Official name -> whole tensor.
        num_attention_heads: Heads of the model (a).
    """
    ours = {}
    for name, tensor in state.items():
        if "query_key_value" in name:
            tensor = _swap_leading(tensor, 3, num_attention_heads)
        ours[our_name(name)] = tensor
    return ours


def _swap_leading(tensor: torch.Tensor, outer: int, inner: int) -> torch.Tensor:
    """Reorder rows [outer, inner, d, ...] -> [inner, outer, d, ...], flattened again."""
    shape = tensor.shape
    size = shape[0] // (outer * inner)
    blocks = tensor.reshape(outer, inner, size, *shape[1:])
    return blocks.transpose(0, 1).reshape(shape)
