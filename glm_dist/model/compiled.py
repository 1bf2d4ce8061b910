"""Layers under torch.compile, which fuses norms, biases, GELU, dropout and residuals.

A layer becomes two graphs around core attention, which is not compiled. All layers share the
compiled code.
"""

import torch

from glm_dist.model.layer import TransformerLayer
from glm_dist.model.pointwise import ONE_BY_ONE, use_pointwise


def compile_layers(model: torch.nn.Module) -> None:
    """Compile every layer on its first run.

    Args:
        model: A rank's part of the model, changed in place; parameters and names stay the same.
    """
    for module in model.modules():
        if isinstance(module, TransformerLayer):
            # torch.compile fuses plain operations itself, and their gradients; it cannot look into
            # functions with main gradients.
            use_pointwise(module, ONE_BY_ONE)
            module.compile()
