"""A Transformer layer with DeepNorm residuals, as in GLM-130B (arXiv 2203.00555, 2210.02414).

DeepNorm is a norm after each sum, LN(α x + f(x)) with α = sqrt(2 L), for L layers of the whole
model. Here each norm is applied at the input of the next sublayer: u = LN(x), then α u + f(u). A
layer therefore has the parameters of a pre-norm layer, the first norm takes the embedding, and the
last layer's norm is the model's final norm.
"""

import torch
from megatron.core.transformer.transformer_layer import TransformerLayer

from glm_dist.model.attention.plan import AttentionPlan


class DeepNormLayer(TransformerLayer):  # type: ignore[misc]
    """Self-attention and MLP, each added to its normalised and scaled input."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        packed_seq_params: AttentionPlan | None = None,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        """Run the layer; GLM does not use megatron-core's other arguments.

        Args:
            hidden_states: [s, b, h], under sequence parallelism [s/t, b, h].
            attention_mask: Unused; there is no mask tensor.
            packed_seq_params: Segments of the rows.

        Returns:
            Hidden states of the same shape, and None for a context that GLM does not have.
        """
        alpha = residual_factor(self.config.num_layers)
        normed = self.input_layernorm(hidden_states)
        attended = self.self_attention(
            normed, attention_mask=attention_mask, packed_seq_params=packed_seq_params
        )
        add = self.self_attn_bda(self.training, self.config.bias_dropout_fusion)
        hidden_states = add(attended, alpha * normed, self.hidden_dropout)
        normed = self.pre_mlp_layernorm(hidden_states)
        add = self.mlp_bda(self.training, self.config.bias_dropout_fusion)
        return add(self.mlp(normed), alpha * normed, self.hidden_dropout), None


def residual_factor(num_layers: int) -> float:
    """Return the weight of a sublayer's input relative to its output: α = sqrt(2 L)."""
    return float((2 * num_layers) ** 0.5)
