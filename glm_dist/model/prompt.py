"""Trained vectors in the places of prompt slots (P-tuning, arXiv 2103.10385; official GLM 4f61ed7).

Slot j has the token id V + j, behind the V rows of the word table, in any row and as often as the
pattern says. Every rank of the first stage computes all vectors.

Letters: k prompt tokens, h hidden, V padded vocabulary.
"""

import torch
from torch import nn

from glm_dist.config.architecture import ModelConfig
from glm_dist.config.choices import PromptEncoder
from glm_dist.parallel.sequence import mark_partial


class Prompt(nn.Module):
    """A table of vectors and their encoder."""

    def __init__(
        self,
        model: ModelConfig,
        first_id: int,
        *,
        dtype: torch.dtype,
        device: torch.device,
        sequence_parallel: bool,
    ) -> None:
        """Create the modules; ``parameters.initialize`` sets their values.

        Args:
            model: Architecture, with ``prompt_tokens`` above 0.
            first_id: Token id of slot 0, V.
            dtype: Of the parameters.
            device: Of the parameters.
            sequence_parallel: True if ranks embed different positions.
        """
        super().__init__()
        self.first_id = first_id
        h = model.hidden_size
        kind = {"dtype": dtype, "device": device}
        self.table = nn.Embedding(model.prompt_tokens, h, **kind)  # type: ignore[arg-type]
        self.lstm: nn.LSTM | None = None
        self.mlp: nn.Sequential | None = None
        width = h
        if model.prompt_encoder is PromptEncoder.lstm:
            self.lstm = nn.LSTM(h, h, num_layers=2, bidirectional=True, **kind)
            width = 2 * h
        if model.prompt_encoder is not PromptEncoder.none:
            self.mlp = nn.Sequential(
                nn.Linear(width, h, **kind),  # type: ignore[arg-type]
                nn.ReLU(),
                nn.Linear(h, h, **kind),  # type: ignore[arg-type]
            )
        if sequence_parallel:
            mark_partial(*self.parameters())

    def words(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return tokens with id 0 in place of slots, so that the word table can look them up."""
        return tokens.where(tokens < self.first_id, 0)

    def forward(self, tokens: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """Replace the embeddings of slots.

        Args:
            tokens: Ids of any shape [...].
            embedded: Their word embeddings [..., h].

        Returns:
            [..., h]; every parameter gets a gradient, zero if there is no slot.
        """
        vectors = self.table(torch.arange(self.table.num_embeddings, device=tokens.device))
        if self.lstm is not None:
            vectors = self.lstm(vectors)[0]  # [k, h] -> [k, 2 h]
        if self.mlp is not None:
            vectors = self.mlp(vectors)
        slot = tokens - self.first_id
        placed = vectors[slot.clamp(min=0)]
        return torch.where((slot >= 0).unsqueeze(-1), placed, embedded)
