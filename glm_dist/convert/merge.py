"""Updates of low rank merged into the weights: W + alpha / r B A, in fp32."""

from collections.abc import Mapping

import torch

from glm_dist.config.schema import ModelConfig
from glm_dist.convert.source import Tensors

FACTORS = (".lora_a", ".lora_b")
"""Ends of the names of factors, behind the name of the linear layer."""


def merged_weights(weights: Mapping[str, torch.Tensor], model: ModelConfig) -> Tensors:
    """Return the parameters of ``model.without_lora``, each made when it is asked for.

    Args:
        weights: Whole parameters of the model, by our name.
        model: Architecture, with updates.
    """

    def read(name: str) -> torch.Tensor:
        module = name.removesuffix(".weight")
        if module + FACTORS[0] not in weights:
            return weights[name]
        a, b = (weights[module + end].float() for end in FACTORS)
        return torch.addmm(weights[name].float(), b, a, alpha=model.lora_scale)

    return Tensors(dict.fromkeys(name for name in weights if not name.endswith(FACTORS)), read)
