"""Layers through torch.compile: norms, biases, GELU, dropout and residuals become few kernels.

A layer is two graphs with the core attention between them, which stays as it is. All layers share
the compiled code.
"""

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer


def compile_layers(model: torch.nn.Module) -> None:
    """Have every layer compiled when it first runs.

    Args:
        model: What a rank holds; changed in place, its parameters and their names are not.
    """
    for module in model.modules():
        if isinstance(module, TransformerLayer):
            module.compile()
