"""Classification head on the last stage, replicated over tensor ranks (GLM 4f61ed7).

Its input is equal on all tensor ranks, so its gradients are too, and nothing is reduced.
"""

import torch

from glm_dist.model.cross_entropy import sum_dtype


class ClassificationHead(torch.nn.Module):
    """Linear, tanh, dropout, linear."""

    def __init__(
        self,
        hidden_size: int,
        num_classes: int,
        *,
        dropout: float,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Create the layers; ``parameters.initialize`` sets their values.

        Args:
            hidden_size: Width of the hidden states, h.
            num_classes: Logits of a hidden state.
            dropout: Probability between tanh and the second layer.
            dtype: Number format of the parameters.
            device: Device of the parameters.
        """
        super().__init__()
        self.pool = torch.nn.Linear(hidden_size, hidden_size, dtype=dtype, device=device)
        self.dropout = torch.nn.Dropout(dropout)
        self.output = torch.nn.Linear(hidden_size, num_classes, dtype=dtype, device=device)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Compute logits [n, classes] in fp32 from hidden states [n, h]."""
        pooled = self.dropout(torch.tanh(self.pool(hidden)))
        logits: torch.Tensor = self.output(pooled)
        return logits.to(sum_dtype(logits.dtype))
