"""Parameters of the official GLM code (THUDM/GLM at 4f61ed7) and ours.

There are two differences. Our names are megatron-core's. And the official fused projection stacks
[Q | K | V], each h rows in head order, while megatron-core groups the three by head: rows [3, a, d]
become [a, 3, d].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from glm_dist.config.parameter_specs import ParameterSpec, parameter_specs
from glm_dist.config.schema import Activation, ModelConfig, PositionEncoding, Residual
from glm_dist.errors import ConfigError

WORD_TABLE = "word_embeddings.weight"
POSITION_TABLES = (
    "transformer.position_embeddings.weight",
    "transformer.block_position_embeddings.weight",
)
QKV = "attention.query_key_value"
EPSILON = 1e-5
"""Of every norm of the official code, which has no option for it."""

TOP_LEVEL = {
    "word_embeddings.weight": "embedding.word_embeddings.weight",
    "transformer.position_embeddings.weight": "embedding.position_embeddings.weight",
    "transformer.block_position_embeddings.weight": "embedding.block_position_embeddings.weight",
    "transformer.final_layernorm.weight": "decoder.final_layernorm.weight",
    "transformer.final_layernorm.bias": "decoder.final_layernorm.bias",
}
CLASSIFIER = {
    "pool_layer.weight": "classifier.pool.weight",
    "pool_layer.bias": "classifier.pool.bias",
    "multichoice_head.weight": "classifier.output.weight",
    "multichoice_head.bias": "classifier.output.bias",
}
"""The classification head, whose presence puts ``CLASSIFIER_PREFIX`` before all other names."""
CLASSIFIER_PREFIX = "model."
IN_LAYER = {
    "input_layernorm": "input_layernorm",
    "attention.query_key_value": "self_attention.linear_qkv",
    "attention.dense": "self_attention.linear_proj",
    "post_attention_layernorm": "pre_mlp_layernorm",
    "mlp.dense_h_to_4h": "mlp.linear_fc1",
    "mlp.dense_4h_to_h": "mlp.linear_fc2",
}
_TOP_LEVEL_BACK = {ours: official for official, ours in (TOP_LEVEL | CLASSIFIER).items()}
_IN_LAYER_BACK = {ours: official for official, ours in IN_LAYER.items()}


@dataclass(frozen=True)
class OfficialParameter:
    """A parameter of the official model, whole and as the parts of model-parallel files."""

    name: str
    spec: ParameterSpec
    """Shape and division; the rows of the fused projection are three blocks here."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the whole parameter."""
        return self.spec.shape

    @property
    def is_fused(self) -> bool:
        """True if our rows are in another order."""
        return QKV in self.name

    def part_shape(self, parts: int) -> tuple[int, ...]:
        """Return the shape of each of so many parts."""
        return self.spec.slice_of(0, tensor_size=parts).shape

    def part(self, whole: torch.Tensor, rank: int, parts: int) -> torch.Tensor:
        """Cut a part out of the whole parameter; a view, unless its rows are not contiguous.

        Args:
            whole: Official row order.
            rank: Number of the part.
            parts: How many there are.
        """
        piece = self.spec.slice_of(rank, tensor_size=parts)
        if piece.rows:
            return torch.cat([whole.narrow(0, r.global_start, r.num_rows) for r in piece.rows])
        corners = zip(piece.offset, piece.shape, strict=True)
        return whole[tuple(slice(start, start + size) for start, size in corners)]

    def merge(self, pieces: Sequence[torch.Tensor]) -> torch.Tensor:
        """Join the parts; the first of them where every part is the whole parameter."""
        if len(pieces) == 1 or self.spec.tensor_dim is None:
            return pieces[0]
        blocks = [piece.chunk(self.spec.row_blocks) for piece in pieces]
        dim = self.spec.tensor_dim
        joined = [torch.cat(block, dim) for block in zip(*blocks, strict=True)]
        return joined[0] if len(joined) == 1 else torch.cat(joined)


def official_parameters(
    model: ModelConfig, padded_vocab_size: int
) -> tuple[OfficialParameter, ...]:
    """List the parameters of the official model: 5 + 12 L, and 4 of a classification head.

    A prompt's are left out: the official code has them for each task.

    Args:
        model: Sizes, of the official form (``check_official_form``).
        padded_vocab_size: Rows of the word table, V.
    """
    listed = []
    for spec in parameter_specs(model, padded_vocab_size):
        if not has_official_name(spec):
            continue
        name = official_name(spec.name)
        listed.append(
            OfficialParameter(name, replace(spec, row_blocks=3 if QKV in name else spec.row_blocks))
        )
    return tuple(listed)


def official_shapes(model: ModelConfig, padded_vocab_size: int) -> dict[str, tuple[int, ...]]:
    """Return the whole shape of each official parameter; see ``official_parameters``."""
    return {each.name: each.spec.shape for each in official_parameters(model, padded_vocab_size)}


def official_model(
    *,
    num_layers: int,
    hidden_size: int,
    max_position_embeddings: int,
    num_attention_heads: int = 1,
    num_classes: int = 0,
) -> ModelConfig:
    """Return an architecture of the official form; heads change no shape."""
    return ModelConfig(
        num_layers=num_layers,
        hidden_size=hidden_size,
        num_attention_heads=num_attention_heads,
        max_position_embeddings=max_position_embeddings,
        hidden_dropout=0.1,
        attention_dropout=0.1,
        layernorm_epsilon=EPSILON,
        init_std=0.02,
        num_classes=num_classes,
    )


def check_official_form(model: ModelConfig, *, any_epsilon: bool = False) -> None:
    """Refuse an architecture that the official code does not have.

    Args:
        model: Architecture.
        any_epsilon: True where the target names the norms' epsilon; official files do not.

    Raises:
        ConfigError: It has options that the first GLMs lack.
    """
    needed: dict[str, tuple[object, object]] = {
        "position_encoding": (model.position_encoding, PositionEncoding.learned),
        "residual": (model.residual, Residual.pre_norm),
        "activation": (model.activation, Activation.gelu),
        "ffn_hidden_size": (model.mlp_size, 4 * model.hidden_size),
    }
    if not any_epsilon:
        needed["layernorm_epsilon"] = (model.layernorm_epsilon, EPSILON)
    for name, (value, wanted) in needed.items():
        if value == wanted:
            continue
        found, only = (getattr(each, "name", each) for each in (value, wanted))
        both = "official GLMs" if name == "layernorm_epsilon" else "official and Hugging Face GLMs"
        raise ConfigError(
            f"The model has model.{name}={found}; {both} have {only}, and"
            " there is no other form of them.\n"
            "  Only runs with the options of the first GLMs can be exported.",
            key=f"model.{name}",
            value=found,
        )


def has_official_name(spec: ParameterSpec) -> bool:
    """Return False for what finetuning adds to a model, except the classification head."""
    return not spec.is_added or spec.name in _TOP_LEVEL_BACK


def our_name(official_name: str) -> str:
    """Return our global parameter name for an official name.

    Raises:
        KeyError: The official model has no such parameter.
    """
    for names in (TOP_LEVEL, CLASSIFIER):
        if official_name in names:
            return names[official_name]
    _, _, layer, rest = official_name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    return f"decoder.layers.{layer}.{IN_LAYER[module]}.{kind}"


def official_name(our_name: str) -> str:
    """Return the official name for our global parameter name.

    Raises:
        KeyError: The official model has no such parameter.
    """
    if our_name in _TOP_LEVEL_BACK:
        return _TOP_LEVEL_BACK[our_name]
    _, _, layer, rest = our_name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    return f"transformer.layers.{layer}.{_IN_LAYER_BACK[module]}.{kind}"


def from_official(
    state: Mapping[str, torch.Tensor], *, num_attention_heads: int
) -> dict[str, torch.Tensor]:
    """Convert whole parameters of the official model to our names and row order.

    Gradients and optimizer moments have the same layout and are converted likewise.

    Args:
        state: Official name -> whole tensor.
        num_attention_heads: Heads of the model (a).
    """
    return {
        our_name(name): our_rows(name, tensor, num_attention_heads=num_attention_heads)
        for name, tensor in state.items()
    }


def to_official(
    state: Mapping[str, torch.Tensor], *, num_attention_heads: int
) -> dict[str, torch.Tensor]:
    """Convert whole parameters of ours to official names and row order: ``from_official`` back.

    Args:
        state: Our global name -> whole tensor.
        num_attention_heads: Heads of the model (a).
    """
    names = {name: official_name(name) for name in state}
    return {
        official: official_rows(official, state[name], num_attention_heads=num_attention_heads)
        for name, official in names.items()
    }


def our_rows(official: str, tensor: torch.Tensor, *, num_attention_heads: int) -> torch.Tensor:
    """Reorder an official tensor's rows as ours, [3, a, d] -> [a, 3, d]; others are unchanged."""
    return _swap_leading(tensor, 3, num_attention_heads) if QKV in official else tensor


def official_rows(official: str, tensor: torch.Tensor, *, num_attention_heads: int) -> torch.Tensor:
    """Reorder our tensor's rows as official, [a, 3, d] -> [3, a, d]; others are unchanged."""
    return _swap_leading(tensor, num_attention_heads, 3) if QKV in official else tensor


def _swap_leading(tensor: torch.Tensor, outer: int, inner: int) -> torch.Tensor:
    """Reorder rows [outer, inner, d, ...] -> [inner, outer, d, ...], flattened again."""
    shape = tensor.shape
    size = shape[0] // (outer * inner)
    blocks = tensor.reshape(outer, inner, size, *shape[1:])
    return blocks.transpose(0, 1).reshape(shape)
