"""megatron-core's GPTModel as a contestant: same layers and width, every position predicted."""

from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.enums import ModelType
from megatron.core.models.gpt.gpt_layer_specs import (
    get_gpt_layer_local_spec,
    get_gpt_layer_with_transformer_engine_spec,
)
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.problems import PADDED_VOCAB_SIZE
from glm_dist.config.parameter_specs import Constant, ParameterSpec
from glm_dist.config.schema import ModelConfig, RecomputeConfig, RecomputeMode
from glm_dist.model.batch import StageBatch
from glm_dist.model.parameters import ParameterShard
from glm_dist.parallel.groups import ParallelGroups
from glm_dist.train.task import Pretraining, TaskLoss

try:
    from megatron.core.extensions.transformer_engine import HAVE_TE
except ImportError:
    HAVE_TE = False

FLASH = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
"""cuDNN's kernel is the fastest on Hopper; CPUs have the last two."""


class FlashAttention(torch.nn.Module):
    """Causal core attention by torch's fused call, in the place of megatron-core's own."""

    def __init__(self, config: TransformerConfig, *_: object, **__: object) -> None:
        super().__init__()
        self._dropout = config.attention_dropout

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **_: object,
    ) -> torch.Tensor:
        """Return [s, b, h] for query, key and value [s, b, a, d]."""
        heads = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        dropout = self._dropout if self.training else 0.0
        with sdpa_kernel(FLASH, set_priority=True):
            out = scaled_dot_product_attention(*heads, is_causal=True, dropout_p=dropout)
        return out.permute(2, 0, 1, 3).flatten(2)


def layer_spec(attention: str) -> ModuleSpec:
    """Return megatron-core's layer with an attention: own, flash (torch's fused call) or te.

    Args:
        attention: With te every module of the layer is TransformerEngine's.
    """
    if attention == "te":
        return get_gpt_layer_with_transformer_engine_spec()
    spec = get_gpt_layer_local_spec()
    if attention == "flash":
        spec.submodules.self_attention.submodules.core_attention = FlashAttention
    return spec


def gpt_config(
    model: ModelConfig, recompute: RecomputeConfig, *, on_gpu: bool
) -> TransformerConfig:
    """Build the configuration with megatron-core's own fusions, where there is a GPU."""
    again: dict[str, Any] = {}
    if recompute.mode is RecomputeMode.selective:
        again = {"recompute_granularity": "selective"}
    elif recompute.mode is RecomputeMode.full:
        again = {
            "recompute_granularity": "full",
            "recompute_method": "uniform",
            "recompute_num_layers": 1,
        }
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        num_attention_heads=model.num_attention_heads,
        ffn_hidden_size=model.mlp_size,
        hidden_dropout=model.hidden_dropout,
        attention_dropout=model.attention_dropout,
        params_dtype=torch.bfloat16,
        pipeline_dtype=torch.bfloat16,
        bf16=True,
        activation_func=torch.nn.functional.gelu,
        bias_activation_fusion=on_gpu,
        bias_dropout_fusion=on_gpu,
        cross_entropy_loss_fusion=on_gpu,
        calculate_per_token_loss=True,  # the schedule divides nothing; the step's weight does
        use_cpu_initialization=not on_gpu,
        perform_initialization=False,
        **again,
    )


class GPTStage(torch.nn.Module):
    """GPTModel with the interface that the engine needs."""

    def __init__(
        self,
        model: ModelConfig,
        recompute: RecomputeConfig,
        groups: ParallelGroups,
        *,
        attention: str,
        device: torch.device,
    ) -> None:
        super().__init__()
        if not parallel_state.is_initialized():
            parallel_state.initialize_model_parallel()  # GPTModel asks it; ours does not
        self.model_type = ModelType.encoder_or_decoder  # read by megatron's schedules
        self.config = gpt_config(model, recompute, on_gpu=device.type == "cuda")
        self.gpt = GPTModel(
            self.config,
            layer_spec(attention),
            vocab_size=PADDED_VOCAB_SIZE,
            max_sequence_length=model.max_position_embeddings,
            position_embedding_type="learned_absolute",
            share_embeddings_and_output_weights=True,
            pg_collection=groups.collection(),
        )
        self.to(device)
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.dim() > 1:
                    parameter.normal_(std=0.02)
                else:
                    parameter.fill_(float("norm" in name and name.endswith("weight")))

    def set_input_tensor(self, tensors: list[torch.Tensor | None]) -> None:
        """Take the previous stage's hidden states, of which there are none."""
        self.gpt.set_input_tensor(tensors[0])

    @property
    def decoder(self) -> torch.nn.Module:
        """Return the layers."""
        decoder: torch.nn.Module = self.gpt.decoder
        return decoder

    @property
    def tied_weight(self) -> None:
        """Used only under ZeRO 3."""
        return None

    def shards(self) -> list[ParameterShard]:
        shards = []
        for name, parameter in self.named_parameters():
            shape = tuple(parameter.shape)
            spec = ParameterSpec(name, shape, Constant(0.0), decays=len(shape) > 1)
            shards.append(ParameterShard(spec, parameter, spec.slice_of(0, tensor_size=1)))
        return shards

    def forward(self, batch: StageBatch) -> torch.Tensor:
        """Return the sum of the losses of all positions."""
        tokens = batch.tokens
        positions = torch.arange(tokens.size(1), device=tokens.device)
        future = None  # on a GPU megatron-core makes its own
        if tokens.device.type != "cuda":
            future = (positions[None, :] > positions[:, None])[None, None]  # [1, 1, s, s]
        losses = self.gpt(tokens, positions.expand_as(tokens), future, labels=tokens.roll(-1, 1))
        return losses.double().sum()


class AllPositions(Pretraining):
    """Training task of GPTModel, which computes its own loss."""

    def weight(self, batch: StageBatch) -> int:
        """Return the number of positions."""
        return batch.tokens.numel()

    def loss(self, stage: object, hidden: torch.Tensor, batch: StageBatch) -> TaskLoss:
        return TaskLoss(hidden, hidden.new_zeros(0, 2))
