"""Layer norm of a block: TransformerEngine's or apex's if installed, otherwise ours."""

from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig

from glm_dist.model.pointwise import ONE_BY_ONE, Pointwise
from glm_dist.parallel.sequence import mark_partial

try:
    from megatron.core.extensions.transformer_engine import HAVE_TE, TENorm
except ImportError:
    HAVE_TE = False
try:
    from megatron.core.fusions.fused_layer_norm import HAVE_FUSED_LAYER_NORM, FusedLayerNorm
except ImportError:
    HAVE_FUSED_LAYER_NORM = False


class LayerNorm(torch.nn.LayerNorm):
    """LayerNorm over the hidden dim with the constructor that megatron-core's specs call."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        """Create a norm.

        Args:
            config: Gives the parameters' number format and sequence parallelism.
            hidden_size: Size of the normalised dim (h).
            eps: Added to the variance; GLM uses 1e-5.
        """
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        if config.sequence_parallel:
            mark_partial(self.weight, self.bias)
        self.pointwise: Pointwise = ONE_BY_ONE

    def forward(
        self,
        hidden: torch.Tensor,
        update: tuple[torch.Tensor, torch.Tensor] | None = None,
        alpha: float = 1.0,
        dropout: float = 0.0,
    ) -> Any:
        """Normalise hidden states, or first add a sublayer's output to them.

        Args:
            hidden: [s, b, h].
            update: Output of a sublayer [s, b, h] and its bias [h]; None to add nothing.
            alpha: Weight of ``hidden`` in the sum.
            dropout: Dropout on the update and its bias.

        Returns:
            The norm [s, b, h]; with an update the pair of the sum and its norm.
        """
        if update is None:
            return self.pointwise.layer_norm(hidden, self.weight, self.bias, eps=self.eps)
        return self.pointwise.add_and_norm(
            *update,
            hidden,
            (self.weight, self.bias),
            eps=self.eps,
            alpha=alpha,
            dropout=dropout,
        )


def layer_norm_class(device: torch.device) -> Any:
    """Return the fastest norm for a device, as a spec's submodule.

    Args:
        device: Device of the parameters; the fused norms are CUDA kernels.
    """
    if device.type == "cuda" and HAVE_TE:
        return TENorm
    if device.type == "cuda" and HAVE_FUSED_LAYER_NORM:
        return FusedLayerNorm
    return LayerNorm
