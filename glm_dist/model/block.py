"""GLM's Transformer block as a megatron-core configuration and module spec.

Pre-LayerNorm blocks, biases everywhere, tanh GELU, learned positions: the official model (GLM 2.1),
or GLM-130B's options instead. Our own modules are the layer, its MLP, self-attention with its core,
linear layers with updates of low rank and, without a library's kernels, the norm.
"""

from functools import partial
from typing import Any

import torch
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLPSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from glm_dist.config.schema import (
    Activation,
    Dtype,
    ModelConfig,
    RecomputeConfig,
    RecomputeMode,
    Residual,
)
from glm_dist.model.attention.dispatch import PrefixAttention
from glm_dist.model.attention.self_attention import GLMSelfAttention
from glm_dist.model.layer import MLP, DeepNormLayer, PreNormLayer
from glm_dist.model.lora import column_linear, row_linear
from glm_dist.model.norm import layer_norm_class
from glm_dist.parallel.layout import Layout

TORCH_DTYPES = {
    Dtype.fp32: torch.float32,
    Dtype.bf16: torch.bfloat16,
    Dtype.fp16: torch.float16,
}

ACTIVATIONS = {
    Activation.gelu: partial(torch.nn.functional.gelu, approximate="tanh"),
    Activation.geglu: torch.nn.functional.gelu,
}

RECOMPUTE: dict[RecomputeMode, dict[str, object]] = {
    RecomputeMode.none: {},
    RecomputeMode.selective: {"recompute_granularity": "selective"},
    RecomputeMode.full: {"recompute_granularity": "full", "recompute_method": "uniform"},
}
"""Recompute modes under megatron-core's names; its "selective" means core attention."""


def transformer_config(
    model: ModelConfig,
    dtype: Dtype,
    *,
    layout: Layout,
    device: torch.device,
    recompute: RecomputeConfig,
) -> TransformerConfig:
    """Build megatron-core's configuration of the blocks.

    Args:
        model: Architecture.
        dtype: Number format of parameters and activations.
        layout: Degrees of parallelism.
        device: Device of the parameters.
        recompute: Activations to recompute.
    """
    torch_dtype = TORCH_DTYPES[dtype]
    interleaved = layout.virtual_stages > 1
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        ffn_hidden_size=model.mlp_size,
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        layernorm_epsilon=model.layernorm_epsilon,
        activation_func=ACTIVATIONS[model.activation],
        gated_linear_unit=model.activation is Activation.geglu,
        params_dtype=torch_dtype,
        pipeline_dtype=torch_dtype,
        bf16=dtype is Dtype.bf16,
        fp16=dtype is Dtype.fp16,
        tensor_model_parallel_size=layout.tensor_parallel_size,
        # Layout assigns layers to stages; megatron-core must not divide them again.
        pipeline_model_parallel_size=1,
        virtual_pipeline_model_parallel_size=layout.virtual_stages if interleaved else None,
        microbatch_group_size_per_vp_stage=layout.pipeline_parallel_size,
        sequence_parallel=layout.sequence_parallel,
        # Weights are drawn by name in parameters.py, so that the layout does not change them.
        perform_initialization=False,
        use_cpu_initialization=device.type != "cuda",
        # The schedule must not divide by its own token count; the loss scale is the only factor.
        calculate_per_token_loss=True,
        # gloo has no batched isend/irecv; NCCL needs it to avoid a deadlock between neighbours.
        # With interleaving, tensors of both directions may travel between the same two ranks.
        # Batched calls of megatron-core 0.16 mixed them up (wrong gradients, no error); overlapped
        # calls do not.
        batch_p2p_comm=device.type == "cuda" and not interleaved,
        overlap_p2p_comm=interleaved,
        batch_p2p_sync=False,  # would synchronise after each message, for versions before torch 2
        # Our own linear layers add to main gradients, without apex's or other kernels.
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        # An overlapped send may still read the output that this would free.
        deallocate_pipeline_outputs=not interleaved,
        **_recompute_settings(recompute),
    )


def _recompute_settings(recompute: RecomputeConfig) -> dict[str, Any]:
    settings = dict(RECOMPUTE[recompute.mode])
    if recompute.mode is RecomputeMode.full:
        settings["recompute_num_layers"] = recompute.segment_layers
    return settings


def block_spec(
    num_layers: int, model: ModelConfig, *, device: torch.device
) -> TransformerBlockSubmodules:
    """Build the spec of one pipeline stage's layers.

    Args:
        num_layers: Layers on this stage.
        model: Architecture.
        device: Chooses the norm's implementation.
    """
    norm = layer_norm_class(device)
    layer = ModuleSpec(
        module=DeepNormLayer if model.residual is Residual.deep_norm else PreNormLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=norm,
            self_attention=ModuleSpec(
                module=GLMSelfAttention,
                params={"attn_mask_type": AttnMaskType.arbitrary},
                submodules=SelfAttentionSubmodules(
                    linear_qkv=column_linear("linear_qkv", model),
                    core_attention=PrefixAttention,
                    linear_proj=row_linear("linear_proj", model),
                ),
            ),
            pre_mlp_layernorm=norm,
            mlp=ModuleSpec(
                module=MLP,
                submodules=MLPSubmodules(
                    linear_fc1=column_linear("linear_fc1", model),
                    linear_fc2=row_linear("linear_fc2", model),
                ),
            ),
        ),
    )
    return TransformerBlockSubmodules(layer_specs=[layer] * num_layers, layer_norm=norm)
