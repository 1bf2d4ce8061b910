"""One rank's part of GLM: its shards of embedding, blocks, final norm and tied head.

Shapes: b micro-batch, s row length, h hidden, v padded vocabulary, n targets, t tensor ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from megatron.core.enums import ModelType
from megatron.core.tensor_parallel.layers import VocabParallelEmbedding
from megatron.core.transformer.transformer_block import TransformerBlock
from megatron.core.transformer.transformer_config import TransformerConfig

from glm_dist.config.parameter_specs import WORD_EMBEDDINGS, ParameterSpec, parameter_specs
from glm_dist.config.schema import (
    Dtype,
    ModelConfig,
    PositionEncoding,
    RecomputeConfig,
    RunConfig,
)
from glm_dist.model.attention.dropout import draw_words
from glm_dist.model.attention.rotary import plan_rotation
from glm_dist.model.batch import StageBatch
from glm_dist.model.block import block_spec, transformer_config
from glm_dist.model.classifier import ClassificationHead
from glm_dist.model.embedding import GLMEmbedding, keep_weight
from glm_dist.model.head import head_logits
from glm_dist.model.parameters import ParameterShard, mark_for_norm, match_shards
from glm_dist.model.pointwise import ONE_BY_ONE, Pointwise
from glm_dist.model.prompt import Prompt
from glm_dist.parallel.groups import ParallelGroups
from glm_dist.parallel.sequence import gather_targets, prepare_process


class GLMStage(torch.nn.Module):
    """The part of the model that one pipeline rank holds."""

    def __init__(
        self,
        model: ModelConfig,
        *,
        vocab_size: int,
        padded_vocab_size: int,
        dtype: Dtype,
        groups: ParallelGroups,
        device: torch.device,
        recompute: RecomputeConfig | None = None,
        chunk: int = 0,
    ) -> None:
        """Create the stage's modules; ``parameters.initialize`` sets their values.

        Args:
            model: Architecture.
            vocab_size: Tokens that exist.
            padded_vocab_size: Rows of the word table, a multiple of 128.
            dtype: Number format of parameters and activations.
            groups: This rank's process groups.
            device: Device of the parameters.
            recompute: Activations that are not kept; None keeps all.
            chunk: Index of the virtual stage on this rank.
        """
        super().__init__()
        layout, stage = groups.layout, groups.coordinates.pipeline
        if layout.sequence_parallel:
            prepare_process()
        self.config = transformer_config(
            model, dtype, layout=layout, device=device, recompute=recompute or RecomputeConfig()
        )
        self.model_type = ModelType.encoder_or_decoder  # read by megatron's schedules
        self.groups = groups
        self.vocab_size = vocab_size
        self.pointwise: Pointwise = ONE_BY_ONE  # of the head; each module has its own
        layers = layout.layers_of_stage(model.num_layers, stage, chunk=chunk)
        self.first_layer = layers.start
        self.is_first = groups.is_first_stage and chunk == 0
        self.is_last = groups.is_last_stage and chunk == layout.virtual_stages - 1
        self.rotates = model.position_encoding is PositionEncoding.rotary_2d
        self.embedding: GLMEmbedding | None = None
        self.head: VocabParallelEmbedding | None = None
        if self.is_first:
            self.embedding = self._first_tables(model, padded_vocab_size, device=device)
        elif self.is_last:
            self.head = self._tied_copy(padded_vocab_size)
        self.decoder = TransformerBlock(
            self.config,
            block_spec(len(layers), model, device=device),
            pre_process=self.is_first,
            post_process=self.is_last,
            pg_collection=groups.collection(),
        )
        self.classifier = self._classifier(model.num_classes, device=device)
        self.to(device)
        self._draws_words = self._settle_attention(device)
        self._shards = self._matched(parameter_specs(model, padded_vocab_size), layers)
        mark_for_norm(self._shards)

    @property
    def _keeps_only_inputs(self) -> bool:
        """True if layers that learn are recomputed in backward as a whole."""
        learns = any(parameter.requires_grad for parameter in self.decoder.parameters())
        return learns and self.config.recompute_granularity == "full"

    def _settle_attention(self, device: torch.device) -> bool:
        """Number the attention layers; return True if their kernels drop weights in training."""
        attentions = [layer.self_attention.core_attention for layer in self.decoder.layers]
        for number, attention in enumerate(attentions, start=self.first_layer):
            attention.settle(number, device)
        return any(attention.uses_kernels and attention.dropout > 0.0 for attention in attentions)

    def _first_tables(
        self, model: ModelConfig, padded_vocab_size: int, *, device: torch.device
    ) -> GLMEmbedding:
        is_learned = model.position_encoding is PositionEncoding.learned
        prompt: Prompt | None = None
        if model.prompt_tokens > 0:
            prompt = Prompt(
                model,
                padded_vocab_size,
                dtype=self.config.params_dtype,
                device=device,
                sequence_parallel=self.config.sequence_parallel,
            )
        return GLMEmbedding(
            self.config,
            padded_vocab_size=padded_vocab_size,
            max_position_embeddings=model.max_position_embeddings if is_learned else None,
            gradient_share=model.embedding_gradient_share,
            tensor_group=self.groups.tensor,
            device=device,
            prompt=prompt,
        )

    def _tied_copy(self, padded_vocab_size: int) -> VocabParallelEmbedding:
        """Build the last stage's copy of the word table; the two gradients are summed."""
        head = VocabParallelEmbedding(
            padded_vocab_size,
            self.config.hidden_size,
            init_method=keep_weight,
            config=self.config,
            tp_group=self.groups.tensor,
        )
        # DeepSpeed must count the copy's gradient once in the norm.
        head.weight.ds_pipe_replicated = True
        return head

    def _classifier(self, num_classes: int, *, device: torch.device) -> ClassificationHead | None:
        if not self.is_last or num_classes == 0:
            return None
        return ClassificationHead(
            self.config.hidden_size,
            num_classes,
            dropout=self.config.hidden_dropout,
            dtype=self.config.params_dtype,
            device=device,
        )

    def set_input_tensor(self, tensors: list[torch.Tensor | None]) -> None:
        """Take the previous stage's hidden states [s, b, h]; called by megatron's schedules."""
        self.decoder.set_input_tensor(tensors[0])

    @property
    def tied_weight(self) -> torch.Tensor | None:
        """This stage's slice of the word table [v/t, h]; None on the stages between."""
        table = self.head if self.embedding is None else self.embedding.word_embeddings
        return None if table is None else table.weight

    def forward(self, batch: StageBatch) -> torch.Tensor:
        """Run the embedding, if this stage has it, and the blocks.

        Returns:
            [s, b, h], normalised on the last stage; this rank's part of the rows under sequence
            parallelism.
        """
        embedded = None
        if self.embedding is not None:
            embedded = self.embedding(batch.tokens, batch.positions, batch.block_positions)
            if self._keeps_only_inputs and torch.is_grad_enabled():
                # Backward recomputes only segments of which an input has a gradient, even if all
                # of the embedding is frozen.
                embedded.requires_grad_()
        plan = batch.attention
        if self.rotates:
            rotation = plan_rotation(
                batch.positions, batch.block_positions, head_size=self.config.kv_channels
            )
            plan = replace(plan, rotation=rotation)
        if self._draws_words and self.training:
            num_rows, row_length = batch.tokens.shape
            words = draw_words(num_rows, row_length, device=batch.tokens.device)
            plan = replace(plan, words=words)
        hidden: torch.Tensor = self.decoder(embedded, None, packed_seq_params=plan)
        return hidden

    def at_targets(self, hidden: torch.Tensor, target_index: torch.Tensor) -> torch.Tensor:
        """Gather the hidden states at targets from the tensor ranks that hold them.

        Args:
            hidden: Output of ``forward``.
            target_index: Indices of the targets [n], as s_index * b + b_index.

        Returns:
            [n, h] on every tensor rank.
        """
        if self.config.sequence_parallel:
            # The head's gradient is already summed over its ranks, as gather_targets requires.
            return gather_targets(hidden, target_index, group=self.groups.tensor)
        return hidden.flatten(0, 1).index_select(0, target_index)  # [s, b, h] -> [n, h]

    @property
    def head_weight(self) -> torch.Tensor:
        """The last stage's slice of the word table [v/t, h]."""
        weight = self.tied_weight
        assert weight is not None, "the last stage always holds the word table"
        return weight

    def logits(self, batch: StageBatch) -> torch.Tensor:
        """Return logits at the targets [n, vocab_size] in fp32; last stage only."""
        return self.logits_of(self(batch), batch)

    def logits_of(self, hidden: torch.Tensor, batch: StageBatch) -> torch.Tensor:
        """Return logits at the targets from the output of ``forward`` [n, vocab_size] in fp32."""
        return head_logits(
            self.at_targets(hidden, batch.target_index),
            self.head_weight,
            vocab_size=self.vocab_size,
            group=self.groups.tensor,
        )

    def class_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits of the classification head [n, classes] in fp32; last stage only.

        Args:
            hidden: Output of ``at_targets`` [n, h].
        """
        assert self.classifier is not None, "model.num_classes is 0"
        logits: torch.Tensor = self.classifier(hidden)
        if self.head is not None:
            # The copy of the word table takes no part, but its gradient is summed with the table's.
            logits = logits + 0.0 * self.head.weight[0, 0]
        return logits

    def shards(self) -> list[ParameterShard]:
        """Return each of this rank's parameters as a shard of the whole model."""
        return list(self._shards)

    def _matched(self, specs: Sequence[ParameterSpec], layers: range) -> list[ParameterShard]:
        ends = {"is_first": self.is_first, "is_last": self.is_last}
        return match_shards(
            self._global_names(),
            [spec for spec in specs if spec.is_held_by(layers, **ends)],
            tensor_rank=self.groups.coordinates.tensor,
            tensor_size=self.groups.layout.tensor_parallel_size,
        )

    def _global_names(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        for name, parameter in self.named_parameters():
            if name == "head.weight":
                yield WORD_EMBEDDINGS, parameter
            elif name.startswith("decoder.layers."):
                _, _, layer, rest = name.split(".", 3)
                yield f"decoder.layers.{int(layer) + self.first_layer}.{rest}", parameter
            else:
                yield name, parameter


class GLMShard(torch.nn.Module):
    """One rank's part of the model: one stage, or several interleaved chunks."""

    def __init__(self, chunks: Sequence[GLMStage]) -> None:
        """Store the chunks, in the order in which rows pass through them."""
        super().__init__()
        self._chunks = torch.nn.ModuleList(chunks)

    @property
    def chunks(self) -> tuple[GLMStage, ...]:
        """Model chunks that the schedule runs; more than one only with interleaved stages."""
        return tuple(self._chunks)  # type: ignore[arg-type]

    @property
    def blocks(self) -> tuple[torch.nn.Module, ...]:
        """Modules that hold all parameters, layers before the chunks around them."""
        layers = (layer for chunk in self.chunks for layer in chunk.decoder.layers)
        return (*layers, *self.chunks)

    @property
    def config(self) -> TransformerConfig:
        """megatron-core's configuration that the schedule reads."""
        return self.chunks[0].config

    @property
    def tied_weight(self) -> torch.Tensor | None:
        """This rank's slice of the word table [v/t, h]; None on the stages between."""
        tables = [chunk.tied_weight for chunk in self.chunks if chunk.tied_weight is not None]
        return tables[0] if tables else None

    def shards(self) -> list[ParameterShard]:
        """Return the shard of the whole model that each of this rank's parameters holds."""
        return [shard for chunk in self.chunks for shard in chunk.shards()]


def build_shard(
    config: RunConfig,
    *,
    groups: ParallelGroups,
    device: torch.device,
    recompute: RecomputeConfig | None = None,
) -> GLMShard:
    """Create this rank's part of the model; ``parameters.initialize`` sets its values.

    Args:
        config: Checked configuration.
        groups: This rank's process groups.
        device: Device of the parameters.
        recompute: Activations that are not kept; None keeps all.
    """
    return GLMShard(
        [
            GLMStage(
                config.model,
                vocab_size=config.tokenizer.vocab_size,
                padded_vocab_size=config.padded_vocab_size,
                dtype=config.precision.dtype,
                groups=groups,
                device=device,
                recompute=recompute,
                chunk=chunk,
            )
            for chunk in range(groups.layout.virtual_stages)
        ]
    )
