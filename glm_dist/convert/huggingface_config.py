"""config.json of a Hugging Face GLM folder, and our sizes."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from glm_dist.config.schema import Dtype, ModelConfig
from glm_dist.convert.weight_files import read_json
from glm_dist.errors import CheckpointError

CONFIG_FILE = "config.json"
PREFIX = "glm."
"""Begins every name in what transformers saves; the files on the Hub have none."""
TANH_GELU = "gelu_pytorch_tanh"
TANH_GELUS = (TANH_GELU, "gelu_new", "gelu_fast", "gelu_python_tanh")
"""Names of one function in transformers, apart from rounding."""
REMOTE_CODE = {
    "AutoConfig": "configuration_glm.GLMConfig",
    "AutoModel": "modeling_glm.GLMModel",
    "AutoModelForSeq2SeqLM": "modeling_glm.GLMForConditionalGeneration",
    "AutoModelForMultipleChoice": "modeling_glm.GLMForMultipleChoice",
}
TORCH_NAMES = {Dtype.fp16: "float16", Dtype.bf16: "bfloat16", Dtype.fp32: "float32"}


class Sizes(NamedTuple):
    """Sizes of the weights, by config.json."""

    model: ModelConfig
    padded_vocab_size: int
    """Rows of the word table, V."""


def read_config(folder: Path) -> dict[str, object]:
    """Read config.json.

    Raises:
        CheckpointError: It is missing, or is no JSON object.
    """
    return read_json(folder / CONFIG_FILE)


def sizes_of(config: Mapping[str, object], file: Path) -> Sizes:
    """Translate config.json.

    The code on the Hub computes the exact GELU, the official code that trained the weights its tanh
    approximation, which is also ours; so a file without ``hidden_act`` means the latter.

    Args:
        config: Its content.
        file: For messages.

    Raises:
        CheckpointError: It belongs to another model, or a key is missing or of no use.
        ConfigError: A size is beyond what our models allow.
    """
    if config.get("model_type", "glm") != "glm":
        raise _unusable(file, "model_type", config["model_type"], "glm")
    if "num_layers" not in config and "num_key_value_heads" in config:
        raise CheckpointError(
            f"{file} describes a GLM-4, another model of the name: it has num_key_value_heads and"
            " no max_sequence_length.\n"
            "  Only GLMs with blank infilling (arXiv 2103.10360) can be converted.",
            key="num_key_value_heads",
            value=config["num_key_value_heads"],
        )
    for key, needed in (("block_position_encoding", True), ("relative_encoding", False)):
        if config.get(key, needed) is not needed:
            raise _unusable(file, key, config[key], str(needed).lower())
    if config.get("hidden_act", TANH_GELU) not in TANH_GELUS:
        raise _unusable(file, "hidden_act", config["hidden_act"], TANH_GELU)
    layers = "num_layers" if "num_layers" in config else "num_hidden_layers"
    h = _integer(config, "hidden_size", file)
    heads = _integer(config, "num_attention_heads", file)
    if h % heads:
        raise _unusable(file, "num_attention_heads", heads, f"a divisor of hidden_size={h}")
    model = ModelConfig(
        num_layers=_integer(config, layers, file),
        hidden_size=h,
        num_attention_heads=heads,
        max_position_embeddings=_integer(config, "max_sequence_length", file),
        hidden_dropout=_number(config, "output_dropout_prob", 0.1, file),
        attention_dropout=_number(config, "attention_dropout_prob", 0.1, file),
        layernorm_epsilon=_number(config, "layernorm_epsilon", 1e-5, file),
        init_std=_number(config, "initializer_range", 0.02, file),
    )
    return Sizes(model, _integer(config, "vocab_size", file))


def config_of(
    model: ModelConfig, padded_vocab_size: int, *, dtype: Dtype, bad_token: int | None
) -> dict[str, object]:
    """Build config.json: the keys of the Hub, the activation, and where the code is.

    Args:
        model: Sizes.
        padded_vocab_size: Rows of the word table.
        dtype: Of the stored weights.
        bad_token: Id that is never generated, under the name that the Hub's file has for it.
    """
    config: dict[str, object] = {
        "architectures": ["GLMForConditionalGeneration"],
        "attention_dropout_prob": model.attention_dropout,
        "attention_scale": 1.0,
        "auto_map": REMOTE_CODE,
        "block_position_encoding": True,
        "checkpoint_activations": False,
        "checkpoint_num_layers": 1,
        "embedding_dropout_prob": model.hidden_dropout,
        "hidden_act": TANH_GELU,
        "hidden_size": model.hidden_size,
        "initializer_range": model.init_std,
        "layernorm_epsilon": model.layernorm_epsilon,
        "max_sequence_length": model.max_position_embeddings,
        "model_type": "glm",
        "num_attention_heads": model.num_attention_heads,
        "num_layers": model.num_layers,
        "output_dropout_prob": model.hidden_dropout,
        "output_predict": True,
        "parallel_output": True,
        "pool_token": "cls",
        "relative_encoding": False,
        "spell_func": "lstm",
        "spell_length": None,
        "torch_dtype": TORCH_NAMES[dtype],
        "vocab_size": padded_vocab_size,
    }
    if bad_token is not None:
        config["bad_words_id"] = [bad_token]
    return config


def _integer(config: Mapping[str, object], key: str, file: Path) -> int:
    value = config.get(key)
    if type(value) is not int or value < 1:
        raise _unusable(file, key, value, "a positive integer")
    return value


def _number(config: Mapping[str, object], key: str, default: float, file: Path) -> float:
    value = config.get(key, default)
    if type(value) not in (int, float):
        raise _unusable(file, key, value, "a number")
    return float(value)  # type: ignore[arg-type]


def _unusable(file: Path, key: str, value: object, needed: str) -> CheckpointError:
    found = "has no " + key if value is None else f"says {key}={value}"
    return CheckpointError(
        f"{file} {found}; it must be {needed}.\n"
        "  Name the folder of a GLM with blank infilling (arXiv 2103.10360), or correct the file.",
        key=key,
        value=value,
        fix=f"{key}={needed}",
    )
