"""Hugging Face folders: read in every form, written whole or not at all, refused with a reason."""

import json
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from glm_dist.config.schema import Activation, Dtype, PositionEncoding, Residual, TokenizerKind
from glm_dist.convert.huggingface import read_huggingface, write_huggingface
from glm_dist.data.tokenizer.tokenizer import open_tokenizer
from glm_dist.errors import CheckpointError, ConfigError, DataError
from glm_dist.files import FileError
from tests.convert.folders import (
    FORMS,
    bert_vocabulary,
    build,
    config_json,
    model_of,
    random_state,
    vocabulary,
)
from tests.messages import Says

STATE = random_state(rows=128)
MODEL = model_of(STATE, 4)
QKV = "transformer.layers.1.attention.query_key_value.weight"


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("has_index", [True, False])
def test_every_form_is_read_bit_for_bit(tmp_path: Path, form: str, has_index: bool) -> None:
    folder = build(tmp_path, STATE, form)
    if not has_index:
        for index in folder.glob("*.index.json"):
            index.unlink()

    source = read_huggingface(folder)

    assert dict(source.tensors).keys() == STATE.keys()
    assert all(torch.equal(source.tensors[name], STATE[name]) for name in STATE)
    heads = {"dense.weight", "dense.bias", "out_proj.weight", "out_proj.bias"}
    assert set(source.ignored) == (heads if form == "bin_with_extras" else set())
    assert source.model == MODEL
    assert (source.padded_vocab_size, source.tokenizer) == (128, None)


def test_an_old_file_of_torch_is_read(tmp_path: Path) -> None:
    folder = build(tmp_path, STATE, "bin_file")
    file = folder / "pytorch_model.bin"
    torch.save(STATE, file, _use_new_zipfile_serialization=False)

    source = read_huggingface(folder)

    assert torch.equal(source.tensors[QKV], STATE[QKV])


class _Attack:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


def _cut_file(name: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) * 2 // 3])

    return damage


def _set(**values: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | values
        config = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def _attack(folder: Path) -> None:
    torch.save({**STATE, "extra": _Attack()}, folder / "pytorch_model.bin")


def _attack_in_old_file(folder: Path) -> None:
    file = folder / "pytorch_model.bin"
    torch.save({**STATE, "extra": _Attack()}, file, _use_new_zipfile_serialization=False)


def _lose_a_tensor(folder: Path) -> None:
    torch.save({k: v for k, v in STATE.items() if k != QKV}, folder / "pytorch_model.bin")


def _turn_a_tensor(folder: Path) -> None:
    torch.save({**STATE, QKV: STATE[QKV].t()}, folder / "pytorch_model.bin")


def _integers(folder: Path) -> None:
    torch.save({**STATE, QKV: STATE[QKV].to(torch.int8)}, folder / "pytorch_model.bin")


def _integers_in_safetensors(folder: Path) -> None:
    state = {**STATE, QKV: STATE[QKV].to(torch.int8)}
    save_file(
        {name: tensor.contiguous() for name, tensor in state.items()}, folder / "model.safetensors"
    )


def _both_spellings(folder: Path) -> None:
    torch.save({**STATE, f"glm.{QKV}": STATE[QKV]}, folder / "pytorch_model.bin")


def _lie_about_the_header(folder: Path) -> None:
    header = struct.pack("<Q", 2**60)
    (folder / "model.safetensors").write_bytes(header + b"{}")


def _lose_a_shard(folder: Path) -> None:
    (folder / "model-00002-of-00002.safetensors").unlink()


def _lose_a_shard_and_the_index(folder: Path) -> None:
    _lose_a_shard(folder)
    (folder / "model.safetensors.index.json").unlink()


def _leave_the_folder(folder: Path) -> None:
    index = {"weight_map": {name: "../model-00001-of-00002.safetensors" for name in STATE}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _index_lies(folder: Path) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["glm.more"] = "model-00001-of-00002.safetensors"
    file.write_text(json.dumps(index))


def _no_weights(folder: Path) -> None:
    (folder / "pytorch_model.bin").unlink()


def _no_json(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def _list_instead_of_names(folder: Path) -> None:
    torch.save(list(STATE.values()), folder / "pytorch_model.bin")


DAMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "attack": ("bin_file", _attack),
    "attack in an old file": ("bin_file", _attack_in_old_file),
    "tensor missing": ("bin_file", _lose_a_tensor),
    "tensor turned": ("bin_file", _turn_a_tensor),
    "integers": ("bin_file", _integers),
    "integers in safetensors": ("safetensors_file", _integers_in_safetensors),
    "both spellings": ("bin_file", _both_spellings),
    "no weights": ("bin_file", _no_weights),
    "no JSON": ("bin_file", _no_json),
    "list": ("bin_file", _list_instead_of_names),
    "bin truncated": ("bin_file", _cut_file("pytorch_model.bin")),
    "fewer layers": ("bin_file", _set(num_layers=1)),
    "more rows": ("bin_file", _set(vocab_size=256)),
    "odd heads": ("bin_file", _set(num_attention_heads=3)),
    "no positions": ("bin_file", _set(max_sequence_length=None)),
    "one position": ("bin_file", _set(block_position_encoding=False)),
    "exact GELU": ("bin_file", _set(hidden_act="gelu")),
    "ChatGLM": ("bin_file", _set(model_type="chatglm")),
    "GLM-4": ("bin_file", _set(num_layers=None, num_key_value_heads=2)),
    "safetensors truncated": ("safetensors_file", _cut_file("model.safetensors")),
    "header of 2^60 bytes": ("safetensors_file", _lie_about_the_header),
    "shard missing": ("safetensors_shards", _lose_a_shard),
    "shard and index missing": ("safetensors_shards", _lose_a_shard_and_the_index),
    "index leaves the folder": ("safetensors_shards", _leave_the_folder),
    "index lies": ("safetensors_shards", _index_lies),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_folder_is_one_error_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: Says, case: str
) -> None:
    form, damage = DAMAGES[case]
    monkeypatch.chdir(tmp_path)
    folder = build(tmp_path / "model", STATE, form)
    damage(folder)

    with pytest.raises(CheckpointError) as error:
        read_huggingface(folder)

    says(error.value)
    assert not (tmp_path / "executed").exists()


def test_what_is_written_is_read_back_from_shards_of_the_size_asked_for(tmp_path: Path) -> None:
    spec = vocabulary(tmp_path / "words", TokenizerKind.bert)
    bound = 6000

    files = write_huggingface(
        tmp_path / "out",
        {**STATE, "pool_layer.weight": torch.ones(3)},
        model=MODEL,
        tokenizer=spec,
        dtype=Dtype.fp32,
        max_shard_bytes=bound,
    )

    shards = [file for file in files if file.suffix == ".safetensors"]
    assert len(shards) > 2
    for shard in shards:
        content = load_file(shard)
        size = sum(tensor.nbytes for tensor in content.values())
        assert size <= bound or len(content) == 1
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(4 * tensor.numel() for tensor in STATE.values())
    source = read_huggingface(tmp_path / "out")
    assert all(torch.equal(source.tensors[name], STATE[name]) for name in STATE)
    assert (source.model, source.ignored) == (MODEL, ())
    assert source.config["hidden_act"] == "gelu_pytorch_tanh"
    assert not list(tmp_path.glob(".out*"))


def test_weights_are_stored_in_half_precision_unless_they_do_not_fit(
    tmp_path: Path, says: Says
) -> None:
    write_huggingface(tmp_path / "out", STATE, model=MODEL, tokenizer=None)
    stored = read_huggingface(tmp_path / "out").tensors[QKV]
    assert torch.equal(stored, STATE[QKV].half())

    with pytest.raises(CheckpointError) as error:
        write_huggingface(
            tmp_path / "b", {**STATE, QKV: 1e6 * STATE[QKV]}, model=MODEL, tokenizer=None
        )

    says(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize(
    "options",
    [
        {"position_encoding": PositionEncoding.rotary_2d},
        {"residual": Residual.deep_norm},
        {"activation": Activation.geglu},
        {"ffn_hidden_size": 40},
    ],
    ids=lambda options: next(iter(options)),
)
def test_a_model_without_such_a_form_is_refused_by_its_key(
    tmp_path: Path, says: Says, options: dict[str, object]
) -> None:
    with pytest.raises(ConfigError) as error:
        write_huggingface(tmp_path / "out", STATE, model=replace(MODEL, **options), tokenizer=None)

    assert error.value.key == f"model.{next(iter(options))}"
    says(error.value)
    assert not list(tmp_path.iterdir())


def test_an_export_replaces_nothing_and_needs_every_weight(tmp_path: Path, says: Says) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").touch()
    with pytest.raises(FileError) as error:
        write_huggingface(tmp_path / "out", STATE, model=MODEL, tokenizer=None)
    says(error.value)
    some = {name: tensor for name, tensor in STATE.items() if name != QKV}
    with pytest.raises(CheckpointError) as missing:
        write_huggingface(tmp_path / "b", some, model=MODEL, tokenizer=None)
    says(missing.value)
    large = bert_vocabulary(tmp_path, count=130)
    with pytest.raises(DataError) as room:
        write_huggingface(tmp_path / "b", STATE, model=MODEL, tokenizer=large)
    says(room.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "vocab.txt"]


@pytest.mark.parametrize("task_masks", [True, False])
@pytest.mark.parametrize("kind", TokenizerKind, ids=lambda kind: kind.value)
def test_the_tokenizer_comes_back(tmp_path: Path, kind: TokenizerKind, task_masks: bool) -> None:
    state = random_state(rows=384)
    spec = replace(vocabulary(tmp_path / "words", kind), task_masks=task_masks)

    write_huggingface(tmp_path / "out", state, model=model_of(state, 4), tokenizer=spec)

    found = read_huggingface(tmp_path / "out").tokenizer
    assert found is not None
    assert found.spec.kind is kind
    assert open_tokenizer(found.spec).special == open_tokenizer(spec).special
    assert {file.parent for file in found.files} == {tmp_path / "out"}


@pytest.mark.parametrize("hint", ["class", "added tokens", "vocabulary"])
@pytest.mark.parametrize("kind", [TokenizerKind.gpt2, TokenizerKind.roberta], ids=lambda k: k.value)
def test_gpt2_and_roberta_are_told_apart(tmp_path: Path, kind: TokenizerKind, hint: str) -> None:
    state = random_state(rows=384)
    folder = build(tmp_path / "model", state, "bin_file")
    special = open_tokenizer(vocabulary(folder, kind)).special
    is_gpt2 = kind is TokenizerKind.gpt2
    if hint == "class":
        name = "GLMGPT2Tokenizer" if is_gpt2 else "GLMRobertaTokenizer"
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": name}))
    if hint == "added tokens":
        added = {"<|startofpiece|>": special.sop, "<|endofpiece|>": special.eop}
        masks = {"[gMASK]": special.gmask, "[sMASK]": special.smask}
        added |= {"[CLS]": special.cls, **masks} if is_gpt2 else {}
        (folder / "added_tokens.json").write_text(json.dumps(added))

    found = read_huggingface(folder).tokenizer

    assert found is not None
    assert found.spec.kind is kind
    assert found.spec.task_masks == is_gpt2


def test_a_vocabulary_of_other_weights_is_refused(tmp_path: Path, says: Says) -> None:
    folder = build(tmp_path / "model", STATE, "bin_file")
    bert_vocabulary(folder, count=40)
    (folder / "added_tokens.json").write_text('{"<|startofpiece|>": 30522}')
    with pytest.raises(DataError) as error:
        read_huggingface(folder)
    says(error.value)
    (folder / "added_tokens.json").unlink()
    bert_vocabulary(folder, count=127)
    with pytest.raises(DataError) as room:
        read_huggingface(folder)
    says(room.value)


def test_the_shared_mask_of_the_chinese_10b_gets_an_id_and_its_row(tmp_path: Path) -> None:
    kind = TokenizerKind.chinese_sentencepiece
    spec = replace(vocabulary(tmp_path / "words", kind), fixed_task_masks=False)
    shared = open_tokenizer(spec).special
    assert shared.gmask == shared.eop == 22 + 7

    write_huggingface(tmp_path / "out", STATE, model=MODEL, tokenizer=spec, dtype=Dtype.fp32)

    source = read_huggingface(tmp_path / "out")
    table, ours = (t["word_embeddings.weight"] for t in (source.tensors, STATE))
    assert torch.equal(table[22 + 9], ours[22 + 7])
    others = [row for row in range(128) if row != 22 + 9]
    assert torch.equal(table[others], ours[others])
    assert source.config["bad_words_id"] == [22 + 9]
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation["bad_words_ids"] == [[22 + 9]]
    assert source.tokenizer is not None
    assert open_tokenizer(source.tokenizer.spec).special.gmask == 22 + 9


def test_a_config_of_transformers_5_is_read(tmp_path: Path) -> None:
    folder = build(tmp_path, STATE, "safetensors_file")
    config = config_json(STATE, 4)
    config["num_hidden_layers"] = config.pop("num_layers")
    config["dtype"] = config.pop("torch_dtype")
    (folder / "config.json").write_text(json.dumps(config))

    assert read_huggingface(folder).model == MODEL
