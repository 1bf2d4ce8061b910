"""Everything between matrix products: norms, biases, activations, dropout, residual sums.

``Pointwise`` is the definition, in torch's own operations and with torch's own gradients. CPUs run
it. On GPUs ``fused.py`` computes the same with one kernel in forward and few in backward.

Shapes: s row length, b micro-batch, h hidden, f features (of the norm, or of the MLP's inside).
"""

from collections.abc import Sequence

import torch
from torch.nn import functional


class Pointwise:
    """The operations one by one, as torch runs them; a module calls them by these names."""

    is_fused = False

    def layer_norm(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, *, eps: float
    ) -> torch.Tensor:
        """Normalise the last dim.

        Args:
            hidden: [s, b, f].
            weight: [f].
            bias: [f].
            eps: Added to the variance.
        """
        return functional.layer_norm(hidden, weight.shape, weight, bias, eps)

    def gelu(self, inputs: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return GELU(inputs + bias) in its tanh form [s, b, f]."""
        return functional.gelu(inputs + bias, approximate="tanh")

    def geglu(self, inputs: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Return GELU(gate) x value, exact GELU, of inputs + bias = (gate, value).

        Args:
            inputs: [s, b, 2 f].
            bias: [2 f].

        Returns:
            [s, b, f].
        """
        gate, value = (inputs + bias).chunk(2, dim=-1)
        return functional.gelu(gate) * value

    def add(
        self,
        update: torch.Tensor,
        bias: torch.Tensor,
        residual: torch.Tensor,
        *,
        alpha: float,
        dropout: float,
    ) -> torch.Tensor:
        """Return alpha x residual + dropout(update + bias).

        Args:
            update: Output of a sublayer [s, b, f].
            bias: Bias of its last product, not added yet [f].
            residual: [s, b, f].
            alpha: Weight of the residual; 1 unless the residuals are DeepNorm's.
            dropout: Probability of dropping a number; 0 when not training.
        """
        dropped = functional.dropout(update + bias, dropout, training=dropout > 0.0)
        return (residual if alpha == 1.0 else alpha * residual) + dropped

    def add_and_norm(
        self,
        update: torch.Tensor,
        bias: torch.Tensor,
        residual: torch.Tensor,
        norm: tuple[torch.Tensor, torch.Tensor],
        *,
        eps: float,
        alpha: float,
        dropout: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of ``add`` and its norm, each [s, b, f].

        Args:
            update: As for ``add``.
            bias: As for ``add``.
            residual: As for ``add``.
            norm: Weight and bias of the norm.
            eps: Added to the variance.
            alpha: As for ``add``.
            dropout: As for ``add``.
        """
        total = self.add(update, bias, residual, alpha=alpha, dropout=dropout)
        return total, self.layer_norm(total, *norm, eps=eps)

    def sum_and_drop(self, parts: Sequence[torch.Tensor], *, dropout: float) -> torch.Tensor:
        """Return dropout(sum of the parts).

        Args:
            parts: One to three embeddings of one shape.
            dropout: Probability of dropping a number; 0 when not training.
        """
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return functional.dropout(total, dropout, training=dropout > 0.0)


ONE_BY_ONE = Pointwise()
"""Default of every module."""


def use_pointwise(model: torch.nn.Module, pointwise: Pointwise) -> None:
    """Let all modules of a model run their operations in one way.

    Args:
        model: Changed in place; parameters and names stay the same.
        pointwise: ``ONE_BY_ONE`` or the fused ones.
    """
    for module in model.modules():
        if hasattr(module, "pointwise"):
            module.pointwise = pointwise  # type: ignore[assignment]
