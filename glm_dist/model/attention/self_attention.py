"""Self-attention of GLM: fused projection, core attention, output projection.

megatron-core builds the modules and names their parameters. Its forward also serves grouped
queries, inference engines, rotary embeddings and offloading, which GLM does without.
"""

from functools import partial

import torch
from megatron.core import tensor_parallel
from megatron.core.transformer.attention import SelfAttention

from glm_dist.model.attention.plan import AttentionPlan


class GLMSelfAttention(SelfAttention):  # type: ignore[misc]
    """Self-attention under the prefix mask."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        packed_seq_params: AttentionPlan | None = None,
        **_: object,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Compute self-attention; GLM does not use megatron-core's other arguments.

        Args:
            hidden_states: [s, b, h], or this rank's part of it under sequence parallelism.
            attention_mask: Unused; there is no mask tensor.
            packed_seq_params: Plan of the micro-batch.

        Returns:
            [s, b, h], as the input is sharded, and the bias that the layer adds.
        """
        assert packed_seq_params is not None, "hidden_states passes the plan to every layer"
        mixed, _ = self.linear_qkv(hidden_states)  # [s, b, 3 h/t]
        mixed = mixed.unflatten(2, (self.num_attention_heads_per_partition, -1))
        core = partial(self.core_attention, plan=packed_seq_params)
        if self.checkpoint_core_attention and self.training:
            context = tensor_parallel.checkpoint(core, False, mixed)
        else:
            context = core(mixed)
        output: tuple[torch.Tensor, torch.Tensor | None] = self.linear_proj(context)
        return output
