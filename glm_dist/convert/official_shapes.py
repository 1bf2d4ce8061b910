"""Parameters of an official GLM: names and whole shapes."""

from glm_dist.config.schema import (
    Activation,
    ModelConfig,
    PositionEncoding,
    Residual,
    pad_vocabulary,
)
from glm_dist.errors import ConfigError


def official_shapes(model: ModelConfig, padded_vocab_size: int) -> dict[str, tuple[int, ...]]:
    """List the parameters of a model under their official names.

    Args:
        model: Sizes, checked with ``check_official_form``.
        padded_vocab_size: Rows of the word table, V.

    Returns:
        Shape of each whole parameter, in the order of the official file: 5 + 12 L of them.
    """
    h, positions = model.hidden_size, model.max_position_embeddings + 1
    shapes: dict[str, tuple[int, ...]] = {
        "word_embeddings.weight": (padded_vocab_size, h),
        "transformer.position_embeddings.weight": (positions, h),
        "transformer.block_position_embeddings.weight": (positions, h),
    }
    in_layer = {
        "input_layernorm": (h,),
        "attention.query_key_value": (3 * h, h),
        "attention.dense": (h, h),
        "post_attention_layernorm": (h,),
        "mlp.dense_h_to_4h": (4 * h, h),
        "mlp.dense_4h_to_h": (h, 4 * h),
    }
    for layer in range(model.num_layers):
        for module, shape in in_layer.items():
            shapes[f"transformer.layers.{layer}.{module}.weight"] = shape
            shapes[f"transformer.layers.{layer}.{module}.bias"] = shape[:1]
    for kind in ("weight", "bias"):
        shapes[f"transformer.final_layernorm.{kind}"] = (h,)
    return shapes


def check_official_form(model: ModelConfig, padded_vocab_size: int) -> None:
    """Refuse a model for which the official code and the Hugging Face Hub have no form.

    Args:
        model: Architecture.
        padded_vocab_size: Rows of the word table.

    Raises:
        ConfigError: It is not a GLM with learned positions, norms before the layers, a tanh GELU
            and an MLP of 4 h.
    """
    h = model.hidden_size
    needed: dict[str, tuple[object, object]] = {
        "position_encoding": (model.position_encoding, PositionEncoding.learned),
        "residual": (model.residual, Residual.pre_norm),
        "activation": (model.activation, Activation.gelu),
        "ffn_hidden_size": (model.mlp_size, 4 * h),
    }
    for name, (value, wanted) in needed.items():
        if value == wanted:
            continue
        found, only = (getattr(each, "name", each) for each in (value, wanted))
        raise ConfigError(
            f"The model has model.{name}={found}; official and Hugging Face GLMs have {only}, and"
            " there is no other form of them.\n"
            "  Only runs with the options of the first GLMs can be exported.",
            key=f"model.{name}",
            value=found,
        )
    if padded_vocab_size != pad_vocabulary(padded_vocab_size):
        raise ConfigError(
            f"The word table has {padded_vocab_size} rows; official and Hugging Face GLMs have a"
            " multiple of 128.\n"
            f"  Pad it with rows of zeros to {pad_vocabulary(padded_vocab_size)}.",
            key="word_embeddings.weight",
            value=padded_vocab_size,
        )
