"""GLM (arXiv 2103.10360) for transformers 4.46 to 5, as part of an exported model folder.

Shapes: b rows, s inputs, k inputs and those of the cache, h hidden size, V vocabulary.
"""

from dataclasses import fields
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import GenerationMixin, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    MultipleChoiceModelOutput,
)

from .configuration_glm import GLMConfig

_OUTPUTS = {field.name for field in fields(BaseModelOutputWithPast)}
CACHE = "cache" if "cache" in _OUTPUTS else "past_key_values"  # newer releases renamed it


class GLMAttention(nn.Module):
    """Attention with one fused projection, whose output is [Q | K | V]."""

    def __init__(self, config: GLMConfig, layer: int) -> None:
        """Build the projections of a layer."""
        super().__init__()
        self.layer = layer
        self.num_heads = config.num_attention_heads
        self.dropout = config.attention_dropout_prob
        self.query_key_value = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden: torch.Tensor, visible: torch.Tensor, cache: Cache | None
    ) -> torch.Tensor:
        """Attend from s inputs [b, s, h] to k keys.

        Args:
            hidden: Inputs.
            visible: True where an input sees a key. [b or 1, 1, s, k]
            cache: Receives the new keys and values, and has those before.
        """
        b, s, h = hidden.shape
        projected = self.query_key_value(hidden).view(b, s, 3, self.num_heads, h // self.num_heads)
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # 3 x [b, heads, s, d]
        if cache is not None:
            key, value = cache.update(key, value, self.layer)
        mixed = functional.scaled_dot_product_attention(
            query, key, value, visible, dropout_p=self.dropout if self.training else 0.0
        )
        return self.dense(mixed.transpose(1, 2).reshape(b, s, h))


class GLMMLP(nn.Module):
    """Two projections with an activation between them."""

    def __init__(self, config: GLMConfig) -> None:
        """Build the projections."""
        super().__init__()
        self.dense_h_to_4h = nn.Linear(config.hidden_size, 4 * config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.dense_4h_to_h = nn.Linear(4 * config.hidden_size, config.hidden_size)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Map [b, s, h] to the same shape."""
        return self.dense_4h_to_h(self.activation(self.dense_h_to_4h(hidden)))


class GLMLayer(nn.Module):
    """A pre-norm Transformer layer."""

    def __init__(self, config: GLMConfig, layer: int) -> None:
        """Build layer number ``layer``."""
        super().__init__()
        h, epsilon = config.hidden_size, config.layernorm_epsilon
        self.input_layernorm = nn.LayerNorm(h, eps=epsilon)
        self.attention = GLMAttention(config, layer)
        self.post_attention_layernorm = nn.LayerNorm(h, eps=epsilon)
        self.mlp = GLMMLP(config)
        self.dropout = nn.Dropout(config.output_dropout_prob)

    def forward(
        self, hidden: torch.Tensor, visible: torch.Tensor, cache: Cache | None
    ) -> torch.Tensor:
        """Map [b, s, h] to the same shape; arguments as of ``GLMAttention``."""
        attended = self.attention(self.input_layernorm(hidden), visible, cache)
        hidden = hidden + self.dropout(attended)
        return hidden + self.dropout(self.mlp(self.post_attention_layernorm(hidden)))


class GLMStack(nn.Module):
    """Both position tables, all layers and the last norm."""

    def __init__(self, config: GLMConfig) -> None:
        """Build the stack."""
        super().__init__()
        h, positions = config.hidden_size, config.max_sequence_length + 1
        self.position_embeddings = nn.Embedding(positions, h)
        self.block_position_embeddings = nn.Embedding(positions, h)
        self.dropout = nn.Dropout(config.embedding_dropout_prob)
        self.layers = nn.ModuleList(GLMLayer(config, n) for n in range(config.num_layers))
        self.final_layernorm = nn.LayerNorm(h, eps=config.layernorm_epsilon)
        self.gradient_checkpointing = False

    def forward(
        self,
        words: torch.Tensor,
        position_ids: torch.Tensor,
        visible: torch.Tensor,
        cache: Cache | None,
    ) -> torch.Tensor:
        """Map embedded words [b, s, h], with positions [b, 2, s], to hidden states [b, s, h]."""
        hidden = words + self.position_embeddings(position_ids[:, 0])
        hidden = self.dropout(hidden + self.block_position_embeddings(position_ids[:, 1]))
        for layer in self.layers:
            if self.gradient_checkpointing and self.training:
                hidden = self._gradient_checkpointing_func(layer.__call__, hidden, visible, None)
            else:
                hidden = layer(hidden, visible, cache)
        return self.final_layernorm(hidden)


class GLMPreTrainedModel(PreTrainedModel):
    """Settings that all GLM classes share; ``_auto_class`` has save_pretrained copy this file."""

    config_class = GLMConfig
    base_model_prefix = "glm"
    supports_gradient_checkpointing = True
    _no_split_modules = ("GLMLayer",)
    _supports_cache_class = True
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        """Draw weights that a folder lacks."""
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
        if getattr(module, "bias", None) is not None:
            nn.init.zeros_(module.bias)


def visible_keys(
    attention_mask: torch.Tensor | None, num_rows: int, num_inputs: int, num_past: int
) -> torch.Tensor:
    """Tell which keys each input sees.

    Args:
        attention_mask: One of
            - None: inputs see those before them;
            - prefix lengths [b] or [1]: the first inputs also see each other in both directions;
            - [b, k]: every input sees the keys marked 1, as an encoder;
            - [b, 1, s or 1, >= k]: 1 where an input sees a key; the last k columns count.
        num_rows: b.
        num_inputs: s.
        num_past: Keys in the cache, which the first two forms let every input see.

    Returns:
        True where an input sees a key; an input that would see none sees all. [b or 1, 1, s, k]
    """
    num_keys = num_past + num_inputs
    if attention_mask is not None and attention_mask.dim() == 4:
        visible = attention_mask[..., -num_keys:].bool()
    elif (
        attention_mask is not None
        and attention_mask.dim() == 2
        and (attention_mask.shape == (num_rows, num_keys))
    ):
        visible = attention_mask[:, None, None].bool().expand(-1, -1, num_inputs, -1)
    else:
        device = None if attention_mask is None else attention_mask.device
        ones = torch.ones(num_inputs, num_keys, dtype=torch.bool, device=device)
        visible = ones.tril(num_past)[None, None]
        if attention_mask is not None:
            keys = torch.arange(-num_past, num_inputs, device=device)
            visible = visible | (keys < attention_mask.reshape(-1, 1, 1, 1))
    return visible | ~visible.any(-1, keepdim=True)


class GLMModel(GLMPreTrainedModel):
    """GLM without a head."""

    _auto_class = "AutoModel"

    def __init__(self, config: GLMConfig) -> None:
        """Build the model."""
        super().__init__(config)
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.transformer = GLMStack(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        """Return the word table."""
        return self.word_embeddings

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the word table, as resizing does."""
        self.word_embeddings = value

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Compute hidden states.

        Args:
            input_ids: [b, s]
            position_ids: Position, and block position in Part B, of each input [b, 2, s]; unset:
                all inputs are Part A.
            attention_mask: See ``visible_keys``.
            past_key_values: Keys and values of earlier inputs, as older releases call them.
            cache: The same, as newer ones do.
            use_cache: Whether to return keys and values.
            **kwargs: Ignored.
        """
        b, s = input_ids.shape
        cache = past_key_values if cache is None else cache
        wanted = self.config.use_cache if use_cache is None else use_cache
        if cache is None and wanted and not self.training:
            cache = DynamicCache()
        past = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            positions = torch.arange(past, past + s, device=input_ids.device)
            position_ids = torch.stack([positions, torch.zeros_like(positions)]).expand(b, 2, s)
        visible = visible_keys(attention_mask, b, s, past).to(input_ids.device)
        words = self.word_embeddings(input_ids)
        hidden = self.transformer(words, position_ids, visible, cache)
        return BaseModelOutputWithPast(last_hidden_state=hidden, **{CACHE: cache})


class GLMForConditionalGeneration(GLMPreTrainedModel, GenerationMixin):
    """GLM that predicts the tokens of blanks; the head is the word table."""

    _auto_class = "AutoModelForSeq2SeqLM"

    def __init__(self, config: GLMConfig) -> None:
        """Build the model."""
        super().__init__(config)
        self.glm = GLMModel(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Compute logits [b, s, V], and the loss where there are labels.

        Args:
            input_ids: [b, s]
            position_ids: [b, 2, s]
            attention_mask: See ``visible_keys``.
            labels: Token that each input predicts, -100: none. They are not shifted. [b, s]
            past_key_values: As of ``GLMModel``; so are the next two.
            cache: The same.
            use_cache: Whether to return it.
            **kwargs: Ignored.
        """
        cache = past_key_values if cache is None else cache
        output = self.glm(input_ids, position_ids, attention_mask, cache=cache, use_cache=use_cache)
        logits = functional.linear(output.last_hidden_state, self.glm.word_embeddings.weight)
        loss = None
        if labels is not None:
            loss = functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
        return CausalLMOutputWithPast(loss=loss, logits=logits, **{CACHE: getattr(output, CACHE)})

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor | None = None,
        generation_attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        cache: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Cut positions and mask of whole rows to the inputs of one step.

        Args:
            input_ids: All tokens so far. [b, n]
            position_ids: From ``build_inputs_for_generation``. [b, 2, all]
            generation_attention_mask: From there, too. [b, 1, all, all]
            past_key_values: As of ``GLMModel``; so are the next two.
            cache: The same.
            use_cache: Whether to return it.
            **kwargs: Ignored.

        Raises:
            ValueError: The inputs come from elsewhere, or there is no position left.
        """
        if position_ids is None or generation_attention_mask is None:
            raise ValueError(
                "generate needs the positions of a blank: pass everything that tokenizer."
                "build_inputs_for_generation(inputs, max_gen_length=…) returns."
            )
        end = input_ids.shape[1]
        if end > position_ids.shape[2]:
            raise ValueError(
                f"there are positions for {position_ids.shape[2]} tokens and no more: pass a larger"
                " max_gen_length to build_inputs_for_generation, or generate fewer new tokens."
            )
        cache = past_key_values if cache is None else cache
        begin = 0 if cache is None else cache.get_seq_length()
        return {
            "input_ids": input_ids[:, begin:],
            "position_ids": position_ids[:, :, begin:end],
            "attention_mask": generation_attention_mask[:, :, begin:end, :end],
            "use_cache": use_cache,
            CACHE: cache,
        }

    def _expand_inputs_for_generation(
        self, expand_size: int = 1, **kwargs: Any
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """Repeat the rows for beams; newer releases take the positions for those of pictures."""
        position_ids = kwargs.pop("position_ids", None)
        input_ids, expanded = super()._expand_inputs_for_generation(
            expand_size=expand_size, **kwargs
        )
        if position_ids is not None:
            expanded["position_ids"] = position_ids.repeat_interleave(expand_size, dim=0)
        return input_ids, expanded

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """Keep the positions, which newer releases would continue by themselves."""
        position_ids = model_kwargs.pop("position_ids", None)
        updated = super()._update_model_kwargs_for_generation(
            outputs, model_kwargs, *args, **kwargs
        )
        updated["position_ids"] = position_ids
        return updated


class GLMForMultipleChoice(GLMPreTrainedModel):
    """GLM that scores candidate answers of one blank."""

    _auto_class = "AutoModelForMultipleChoice"

    def __init__(self, config: GLMConfig) -> None:
        """Build the model."""
        super().__init__(config)
        self.glm = GLMModel(config)
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        choice_ids: torch.Tensor,
        choice_indices: torch.Tensor,
        labels: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> MultipleChoiceModelOutput:
        """Score candidates, from what ``build_inputs_for_multiple_choice`` returns.

        Args:
            input_ids: Context and all candidates. [b, s]
            position_ids: [b, 2, s]
            attention_mask: [b, 1, s, s]
            choice_ids: Tokens of each candidate, -100 behind them. [b, candidates, longest]
            choice_indices: Input that predicts each of them. [b, candidates, longest]
            labels: Right candidate of each row, for the loss. [b]
            **kwargs: Ignored.

        Returns:
            Sums of log-probabilities as logits, -inf for candidates that a row lacks.
            [b, candidates]
        """
        output = self.glm(input_ids, position_ids, attention_mask, use_cache=False)
        rows = torch.arange(len(input_ids), device=input_ids.device)[:, None, None]
        hidden = output.last_hidden_state[rows, choice_indices]  # [b, candidates, longest, h]
        logits = functional.linear(hidden, self.glm.word_embeddings.weight)
        is_token = choice_ids >= 0
        log_probabilities = logits.float().log_softmax(-1)
        found = log_probabilities.gather(-1, choice_ids.clamp(min=0)[..., None])[..., 0]
        scores = found.masked_fill(~is_token, 0.0).sum(-1)
        scores = scores.masked_fill(~is_token.any(-1), float("-inf"))
        loss = None if labels is None else functional.cross_entropy(scores, labels)
        return MultipleChoiceModelOutput(loss=loss, logits=scores)
