"""Hugging Face folders as they are found in the wild, and vocabularies of a few words."""

import importlib
import json
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import torch
from safetensors.torch import save_file
from tokenizers import models, pre_tokenizers, processors

from glm_dist.config.schema import ModelConfig, TokenizerKind
from glm_dist.data.tokenizer.tokenizer import TokenizerSpec

State = Mapping[str, torch.Tensor]


@cache
def _code_folder() -> "tempfile.TemporaryDirectory[str]":
    """Folder of code that transformers has imported: one for the whole process, as the imports."""
    return tempfile.TemporaryDirectory(prefix="transformers-modules-")


def load_transformers() -> Any:
    """The library, which copies code of models to a temporary folder; skips where it is not."""
    reason = "transformers is not installed (pip install 'glm-dist[hf]')"
    library: Any = pytest.importorskip("transformers", reason=reason)
    dynamic: Any = importlib.import_module("transformers.dynamic_module_utils")
    dynamic.HF_MODULES_CACHE = _code_folder().name
    return library


def random_state(
    *, rows: int, num_layers: int = 2, hidden_size: int = 16, positions: int = 24, std: float = 0.2
) -> dict[str, torch.Tensor]:
    """Weights by official name, large enough for answers that vary."""
    generator = torch.Generator().manual_seed(1)
    h = hidden_size
    shapes: dict[str, tuple[int, ...]] = {
        "word_embeddings.weight": (rows, h),
        "transformer.position_embeddings.weight": (positions + 1, h),
        "transformer.block_position_embeddings.weight": (positions + 1, h),
        "transformer.final_layernorm.weight": (h,),
        "transformer.final_layernorm.bias": (h,),
    }
    for n in range(num_layers):
        for name, shape in (
            ("input_layernorm", (h,)),
            ("attention.query_key_value", (3 * h, h)),
            ("attention.dense", (h, h)),
            ("post_attention_layernorm", (h,)),
            ("mlp.dense_h_to_4h", (4 * h, h)),
            ("mlp.dense_4h_to_h", (h, 4 * h)),
        ):
            shapes[f"transformer.layers.{n}.{name}.weight"] = shape
            shapes[f"transformer.layers.{n}.{name}.bias"] = shape[:1]
    return {
        name: std * torch.randn(shape, generator=generator) + name.endswith("norm.weight")
        for name, shape in shapes.items()
    }


def model_of(state: State, num_attention_heads: int) -> ModelConfig:
    """Our sizes of official weights."""
    config = config_json(state, num_attention_heads)
    return ModelConfig(
        num_layers=config["num_layers"],
        hidden_size=config["hidden_size"],
        num_attention_heads=num_attention_heads,
        max_position_embeddings=config["max_sequence_length"],
        hidden_dropout=0.1,
        attention_dropout=0.1,
        layernorm_epsilon=1e-5,
        init_std=0.02,
    )


def config_json(state: State, num_attention_heads: int) -> dict[str, Any]:
    """config.json as on the Hub."""
    rows, hidden_size = state["word_embeddings.weight"].shape
    return {
        "model_type": "glm",
        "num_layers": len([name for name in state if name.endswith("input_layernorm.weight")]),
        "hidden_size": hidden_size,
        "num_attention_heads": num_attention_heads,
        "vocab_size": rows,
        "max_sequence_length": len(state["transformer.position_embeddings.weight"]) - 1,
        "block_position_encoding": True,
        "relative_encoding": False,
        "attention_scale": 1.0,
        "torch_dtype": "float16",
        "auto_map": {"AutoConfig": "configuration_glm.GLMConfig"},
    }


def _shards(folder: Path, state: State, stem: str, end: str) -> None:
    names = list(state)
    halves = {
        f"{stem}-0000{n}-of-00002.{end}": names[n - 1 :: 2]  # neighbours lie apart
        for n in (1, 2)
    }
    for file, chosen in halves.items():
        part = {name: state[name].contiguous() for name in chosen}
        save_file(part, folder / file) if end == "safetensors" else torch.save(part, folder / file)
    weight_map = {name: file for file, chosen in halves.items() for name in chosen}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}.{end}.index.json").write_text(json.dumps(index))


def _prefixed(state: State) -> dict[str, torch.Tensor]:
    return {f"glm.{name}": tensor.contiguous() for name, tensor in state.items()}


def bin_file(folder: Path, state: State) -> None:
    """The Hub's own form."""
    torch.save(dict(state), folder / "pytorch_model.bin")


def bin_shards(folder: Path, state: State) -> None:
    """Two shards with an index."""
    _shards(folder, state, "pytorch_model", "bin")


def safetensors_file(folder: Path, state: State) -> None:
    """What save_pretrained writes."""
    save_file(_prefixed(state), folder / "model.safetensors", metadata={"format": "pt"})


def safetensors_shards(folder: Path, state: State) -> None:
    """The same in two shards with an index."""
    _shards(folder, _prefixed(state), "model", "safetensors")


def bin_with_extras(folder: Path, state: State) -> None:
    """glm-2b's file has heads of other tasks in it."""
    h = state["word_embeddings.weight"].shape[1]
    heads = {f"dense.{k}": torch.ones(h) for k in ("weight", "bias")}
    heads |= {f"out_proj.{k}": torch.ones(h) for k in ("weight", "bias")}
    bin_file(folder, {**state, **heads})


FORMS: dict[str, Callable[[Path, State], None]] = {
    each.__name__: each
    for each in (bin_file, bin_shards, safetensors_file, safetensors_shards, bin_with_extras)
}


def build(folder: Path, state: State, form: str, *, heads: int = 4) -> Path:
    """Make a folder without a tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_json(state, heads)))
    FORMS[form](folder, state)
    return folder


WORDS = "the cat sat on a mat and saw another one in red".split()


def bert_vocabulary(folder: Path, *, count: int = 40) -> TokenizerSpec:
    """WordPiece with words and letters, ``count`` pieces."""
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", ",", "?", *WORDS, "##s", "##ed"]
    pieces += [f"w{number}" for number in range(count - len(pieces))]
    (folder / "vocab.txt").write_text("\n".join(pieces[:count]) + "\n")
    return TokenizerSpec(TokenizerKind.bert, str(folder / "vocab.txt"))


def byte_level_vocabulary(folder: Path, kind: TokenizerKind) -> TokenizerSpec:
    """Byte-level BPE with a few merges and the special tokens of its kind."""
    pieces = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġa", "at", "Ġc", "Ġcat"]
    if kind is TokenizerKind.roberta:
        pieces = ["<s>", "<pad>", "</s>", "<unk>", *pieces, "<mask>"]
    else:
        pieces.append("<|endoftext|>")
    (folder / "vocab.json").write_text(json.dumps({p: n for n, p in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\nĠ a\na t\nĠ c\nĠc at\n")
    return TokenizerSpec(kind, str(folder))


def sentencepiece_vocabulary(folder: Path, kind: TokenizerKind) -> TokenizerSpec:
    """A trained model of a few dozen pieces."""
    (folder / "text").write_text((" ".join(WORDS) + "。\n") * 30)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"),
        model_prefix=str(folder / "cog-pretrain"),
        vocab_size=22,
        minloglevel=2,
    )
    (folder / "text").unlink()
    return TokenizerSpec(kind, str(folder / "cog-pretrain.model"))


def json_vocabulary(folder: Path) -> TokenizerSpec:
    """A tokenizer.json that matches its control tokens in text, and adds some by itself."""
    pieces = {p: n for n, p in enumerate(["<s>", "</s>", "<unk>", "<mask>", *"abcdehimnorstuw ."])}
    merges = [("t", "h"), ("th", "e"), ("<", "s")]
    pieces |= {"th": len(pieces), "the": len(pieces) + 1, "<": len(pieces) + 2}
    tokenizer = tokenizers.Tokenizer(
        models.BPE({**pieces, "<s": len(pieces)}, merges, unk_token="<unk>")
    )
    tokenizer.add_special_tokens(["<s>", "</s>", "<mask>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return TokenizerSpec(TokenizerKind.huggingface, str(folder / "tokenizer.json"))


def vocabulary(folder: Path, kind: TokenizerKind) -> TokenizerSpec:
    """A small vocabulary of a kind."""
    folder.mkdir(exist_ok=True)
    match kind:
        case TokenizerKind.bert:
            return bert_vocabulary(folder)
        case TokenizerKind.gpt2 | TokenizerKind.roberta:
            return byte_level_vocabulary(folder, kind)
        case TokenizerKind.huggingface:
            return json_vocabulary(folder)
        case _:
            return sentencepiece_vocabulary(folder, kind)
