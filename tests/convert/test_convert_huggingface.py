"""``glm-dist convert`` between runs, official checkpoints and Hugging Face folders."""

from pathlib import Path

import pytest
import torch

from glm_dist.config.load import load_config_file
from glm_dist.config.schema import TokenizerKind
from glm_dist.convert.huggingface import read_huggingface
from glm_dist.convert.official import from_official
from tests.convert.conversions import HEADS_TYPED, convert, error_of, module, same, weights
from tests.convert.folders import build, vocabulary
from tests.convert.official_files import HEADS, make_state, write_parts, write_vocabulary
from tests.messages import Says

STATE = make_state()


@pytest.mark.parametrize("form", ["bin_with_extras", "safetensors_shards"])
def test_a_folder_needs_nothing_typed_and_goes_back(
    tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str], says: Says
) -> None:
    folder = build(tmp_path / "hub", STATE, form, heads=HEADS)
    write_vocabulary(folder)

    convert(folder, tmp_path / "run")
    says(capsys.readouterr().out)
    convert(tmp_path / "run", tmp_path / "back", "--to", "huggingface")
    convert(tmp_path / "run", tmp_path / "official", "--to", "official")

    config = load_config_file(tmp_path / "run" / "config.yaml")
    assert config.tokenizer.kind is TokenizerKind.bert
    assert same(weights(tmp_path / "run"), from_official(STATE, num_attention_heads=HEADS))
    back = read_huggingface(tmp_path / "back")
    assert same(dict(back.tensors), STATE)
    assert back.tokenizer is not None
    (file,) = (tmp_path / "official").rglob("mp_rank_*.pt")
    assert same(module(file), STATE)


def test_a_tokenizer_that_is_typed_takes_the_place_of_the_folder_s(tmp_path: Path) -> None:
    folder = build(tmp_path / "it's a, hub", STATE, "bin_file", heads=HEADS)
    write_vocabulary(folder)
    other = vocabulary(tmp_path / "words", TokenizerKind.bert).path

    convert(folder, tmp_path / "a")
    convert(folder, tmp_path / "b", "tokenizer=bert", f"tokenizer.path={other}")

    sizes = [load_config_file(tmp_path / run / "config.yaml").tokenizer.vocab_size for run in "ab"]
    assert sizes == [120, 42]  # 118 and 40 pieces, sop and eop


def test_official_weights_are_exported_with_and_without_a_tokenizer(tmp_path: Path) -> None:
    glm, tokenizer = write_parts(tmp_path / "glm", STATE, parts=2), write_vocabulary(tmp_path)

    convert(glm, tmp_path / "a", "--to", "huggingface", HEADS_TYPED)
    convert(glm, tmp_path / "b", "--to=huggingface", HEADS_TYPED, f"tokenizer.path={tokenizer}")

    for name in "ab":
        exported = read_huggingface(tmp_path / name)
        assert same(dict(exported.tensors), STATE)
        assert (exported.tokenizer is not None) == (name == "b")


def test_the_shared_mask_of_the_chinese_model_gets_its_row(tmp_path: Path) -> None:
    glm = write_parts(tmp_path / "glm", STATE)
    path = vocabulary(tmp_path / "words", TokenizerKind.chinese_sentencepiece).path
    typed = ("tokenizer=chinese_unfixed", f"tokenizer.path={path}", HEADS_TYPED)

    convert(glm, tmp_path / "a", "--to", "huggingface", *typed)

    table = read_huggingface(tmp_path / "a").tensors["word_embeddings.weight"]
    changed = (table != STATE["word_embeddings.weight"]).any(1).nonzero().flatten().tolist()
    assert len(changed) == 1
    assert any(torch.equal(table[changed[0]], row) for row in STATE["word_embeddings.weight"])


@pytest.mark.parametrize("typed", ["task=causal_lm", "sentinels=true"])
def test_a_run_with_other_inputs_than_the_exported_code_s_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], says: Says, typed: str
) -> None:
    folder = build(tmp_path / "hub", STATE, "bin_file", heads=HEADS)
    (folder / "vocab.txt").write_bytes(
        Path(vocabulary(tmp_path / "words", TokenizerKind.bert).path).read_bytes()
    )
    more = ["tokenizer.sentinel_pairs=43"] if typed.startswith("sentinels") else []
    # 40 pieces, sop and eop; 43 pairs fill the table of 128 rows
    convert(folder, tmp_path / "run", f"corruption.{typed}", *more)

    says(error_of(capsys, tmp_path / "run", tmp_path / "out", "--to", "huggingface"))

    assert not (tmp_path / "out").exists()


def test_damaged_folders_are_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], says: Says
) -> None:
    folder = build(tmp_path / "hub", STATE, "bin_file", heads=HEADS)

    says(error_of(capsys, folder, tmp_path / "run"))
    says(
        error_of(
            capsys,
            folder,
            tmp_path / "run",
            "model.num_layers=3",
            f"tokenizer.path={write_vocabulary(tmp_path)}",
        )
    )
    (folder / "pytorch_model.bin").unlink()
    says(error_of(capsys, folder, tmp_path / "run"))
    assert not (tmp_path / "run").exists()
