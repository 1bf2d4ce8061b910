"""Classification heads in conversions: theirs to ours and back, and where there is no such head."""

from pathlib import Path

import pytest
import torch

from glm_dist.config.load import load_config_file
from tests.convert.conversions import HEADS_TYPED, convert, error_of, module, same, weights
from tests.convert.official_files import HIDDEN, make_state, shard, write_parts, write_vocabulary
from tests.messages import Says

STATE = make_state()
CLASSES = 3
HEAD = {
    "pool_layer.weight": torch.arange(HIDDEN * HIDDEN).view(HIDDEN, HIDDEN).half(),
    "pool_layer.bias": torch.arange(HIDDEN).half(),
    "multichoice_head.weight": torch.arange(CLASSES * HIDDEN).view(CLASSES, HIDDEN).half(),
    "multichoice_head.bias": torch.arange(CLASSES).half(),
}
OURS = {
    "classifier.pool.weight": HEAD["pool_layer.weight"],
    "classifier.pool.bias": HEAD["pool_layer.bias"],
    "classifier.output.weight": HEAD["multichoice_head.weight"],
    "classifier.output.bias": HEAD["multichoice_head.bias"],
}


def of_classifier(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Entries of a classifier's file: a prefix before all names but the head's."""
    return {f"model.{name}": tensor for name, tensor in state.items()} | HEAD


def test_a_classification_head_goes_there_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], says: Says
) -> None:
    write_parts(tmp_path / "glm" / "7", of_classifier(STATE))
    tokenizer, run = write_vocabulary(tmp_path), tmp_path / "run"
    typed = (HEADS_TYPED, f"tokenizer.path={tokenizer}")

    convert(tmp_path / "glm", run, *typed)
    says(capsys.readouterr().out)
    found = weights(run)
    assert same({name: found[name] for name in OURS}, OURS)
    assert load_config_file(run / "config.yaml").model.num_classes == CLASSES

    convert(run, tmp_path / "back", "--to", "official", "--model-parallel-size", 2)
    for rank, file in enumerate(sorted((tmp_path / "back" / "7").iterdir())):
        cut = {name: shard(name, tensor, rank, 2) for name, tensor in STATE.items()}
        assert same(module(file), of_classifier(cut))

    # Not dropped without a word where it has no form, nor where another one was typed.
    says(error_of(capsys, run, tmp_path / "hf", "--to", "huggingface"))
    assert not (tmp_path / "hf").exists()
    says(error_of(capsys, tmp_path / "glm", tmp_path / "other", *typed, "model.num_classes=2"))


def test_a_head_is_not_invented(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], says: Says
) -> None:
    write_parts(tmp_path / "glm" / "7", STATE)
    typed = (HEADS_TYPED, f"tokenizer.path={write_vocabulary(tmp_path)}", "model.num_classes=2")
    says(error_of(capsys, tmp_path / "glm", tmp_path / "run", *typed))
