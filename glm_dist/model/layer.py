"""A Transformer layer: attention and MLP, each added to its input, with a short forward.

megatron-core's layer would do the same through several levels of Python, for cross attention,
mixtures of experts and CUDA graphs that GLM does not have. Names of parameters are megatron-core's.

``PreNormLayer``: x + f(LN(x)), the official model (GLM 2.1).

``DeepNormLayer``: LN(α x + f(x)) with α = sqrt(2 L) for L layers of the whole model, as in GLM-130B
(arXiv 2203.00555, 2210.02414). Here each norm is applied at the input of the next sublayer:
u = LN(x), then α u + f(u). A layer therefore has the parameters of a pre-norm layer, the first norm
takes the embedding, and the last layer's norm is the model's final norm.

Shapes: s row length, b micro-batch, h hidden, t tensor ranks.
"""

import torch
from megatron.core.process_groups_config import ProcessGroupCollection
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.spec_utils import build_module
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import (
    BaseTransformerLayer,
    TransformerLayerSubmodules,
)

from glm_dist.model.attention.plan import AttentionPlan
from glm_dist.model.norm import LayerNorm
from glm_dist.model.pointwise import ONE_BY_ONE, Pointwise


class MLP(MegatronModule):  # type: ignore[misc]
    """Two products around an activation; the second one's bias is left to the residual sum."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: MLPSubmodules,
        tensor_group: torch.distributed.ProcessGroup,
    ) -> None:
        """Create the products.

        Args:
            config: Sizes, and whether the activation is gated.
            submodules: Specs of the two products.
            tensor_group: Ranks that share them.
        """
        super().__init__(config)
        self.pointwise: Pointwise = ONE_BY_ONE
        self.is_gated = config.gated_linear_unit
        self.linear_fc1 = build_module(
            submodules.linear_fc1,
            config.hidden_size,
            config.ffn_hidden_size * (2 if self.is_gated else 1),
            config=config,
            init_method=config.init_method,
            gather_output=False,
            bias=True,
            skip_bias_add=True,
            is_expert=False,
            tp_comm_buffer_name="fc1",
            tp_group=tensor_group,
        )
        self.linear_fc2 = build_module(
            submodules.linear_fc2,
            config.ffn_hidden_size,
            config.hidden_size,
            config=config,
            init_method=config.output_layer_init_method,
            bias=True,
            input_is_parallel=True,
            skip_bias_add=True,
            is_expert=False,
            tp_comm_buffer_name="fc2",
            tp_group=tensor_group,
        )

    def forward(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output [s, b, h] and the bias [h] that is not added yet."""
        inner, bias = self.linear_fc1(hidden)  # [s, b, f/t], twice as wide if gated
        activation = self.pointwise.geglu if self.is_gated else self.pointwise.gelu
        output: tuple[torch.Tensor, torch.Tensor] = self.linear_fc2(activation(inner, bias))
        return output


class TransformerLayer(MegatronModule, BaseTransformerLayer):  # type: ignore[misc]
    """The parts of a layer; subclasses join them."""

    def __init__(
        self,
        config: TransformerConfig,
        submodules: TransformerLayerSubmodules,
        layer_number: int = 1,
        pg_collection: ProcessGroupCollection | None = None,
        vp_stage: int | None = None,
    ) -> None:
        """Take the constructor call that megatron-core's block makes.

        Args:
            config: Sizes and dropout.
            submodules: Specs of norms, attention and MLP.
            layer_number: Number of the layer on this stage, from 1.
            pg_collection: Process groups.
            vp_stage: Unused; ``Layout`` assigns layers to stages.
        """
        super().__init__(config=config)
        assert pg_collection is not None, "megatron-core's block passes it"
        self.layer_number = layer_number
        self.hidden_dropout = config.hidden_dropout
        self.pointwise: Pointwise = ONE_BY_ONE
        norm = {
            "config": config,
            "hidden_size": config.hidden_size,
            "eps": config.layernorm_epsilon,
        }
        self.input_layernorm = build_module(submodules.input_layernorm, **norm)
        self.self_attention = build_module(
            submodules.self_attention,
            config=config,
            layer_number=layer_number,
            pg_collection=pg_collection,
        )
        self.pre_mlp_layernorm = build_module(submodules.pre_mlp_layernorm, **norm)
        self.mlp = build_module(submodules.mlp, config=config, tensor_group=pg_collection.tp)

    def _attend(
        self, normed: torch.Tensor, plan: AttentionPlan | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the output of attention [s, b, h] and the bias [h] that is not added yet."""
        attended: tuple[torch.Tensor, torch.Tensor] = self.self_attention(
            normed, attention_mask=None, packed_seq_params=plan
        )
        return attended

    def _add(
        self,
        update: tuple[torch.Tensor, torch.Tensor],
        residual: torch.Tensor,
        *,
        alpha: float = 1.0,
    ) -> torch.Tensor:
        dropout = self.hidden_dropout if self.training else 0.0
        return self.pointwise.add(*update, residual, alpha=alpha, dropout=dropout)

    def _add_and_norm(
        self,
        update: tuple[torch.Tensor, torch.Tensor],
        residual: torch.Tensor,
        *,
        alpha: float = 1.0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Add the output of attention, and normalise the sum for the MLP."""
        if not isinstance(self.pre_mlp_layernorm, LayerNorm):  # a library's kernel
            total = self._add(update, residual, alpha=alpha)
            return total, self.pre_mlp_layernorm(total)
        dropout = self.hidden_dropout if self.training else 0.0
        # Through the module, whose hooks gather its parameters with ZeRO 3.
        joined: tuple[torch.Tensor, torch.Tensor] = self.pre_mlp_layernorm(
            residual, update, alpha, dropout
        )
        return joined


class PreNormLayer(TransformerLayer):
    """Self-attention and MLP of the normalised input, each added to the input."""

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
        attended = self._attend(self.input_layernorm(hidden_states), packed_seq_params)
        total, normed = self._add_and_norm(attended, hidden_states)
        return self._add(self.mlp(normed), total), None


class DeepNormLayer(TransformerLayer):
    """Self-attention and MLP, each added to its normalised and scaled input."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        packed_seq_params: AttentionPlan | None = None,
        **_: object,
    ) -> tuple[torch.Tensor, None]:
        """Run the layer; see ``PreNormLayer``."""
        alpha = (2 * self.config.num_layers) ** 0.5
        normed = self.input_layernorm(hidden_states)
        attended = self._attend(normed, packed_seq_params)
        normed = self._add_and_norm(attended, normed, alpha=alpha)[1]
        return self._add(self.mlp(normed), normed, alpha=alpha), None
