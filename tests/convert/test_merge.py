"""A run with updates of low rank computes the same before and after they are merged."""

from pathlib import Path

import numpy as np
import pytest
import torch

import glm_dist
from glm_dist.checkpoint.load import choose_checkpoint
from glm_dist.config.load import load_config_file
from glm_dist.convert.huggingface import read_huggingface
from glm_dist.convert.official_reader import read_official
from glm_dist.convert.plain_model import plain_logits, random_rows
from glm_dist.convert.run_source import weights_of
from glm_dist.generate.load import TrainedModel
from glm_dist.model.batch import StageBatch
from glm_dist.parallel.cpu import enable_cpu
from tests.convert.conversions import convert, error_of, weights
from tests.messages import Says
from tests.ranks import run_ranks
from tests.train.jobs import make_files, with_python

LORA = [
    "model.lora_rank=4",
    "model.lora_targets=[linear_qkv,linear_proj,linear_fc1,linear_fc2]",
    "model.prompt_tokens=2",
    "model.prompt_encoder=mlp",
]


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A job whose updates grow as large as the weights."""
    folder = tmp_path_factory.mktemp("merge")
    return [
        *make_files(folder),
        "parallel=single",
        "run.steps=2",
        "evaluation.interval=0",
        "optimizer.learning_rate=0.05",
    ]


@pytest.fixture(scope="module")
def run(overrides: list[str]) -> Path:
    """A trained run with updates and a prompt."""
    done = with_python([*overrides, *LORA, "run.name=lora"])
    assert done.returncode == 0, done.stderr
    (folder,) = (text for text in overrides if text.startswith("paths.runs="))
    return Path(folder.removeprefix("paths.runs=")) / "lora"


@pytest.fixture(scope="module")
def merged(run: Path) -> Path:
    """The same run, merged."""
    target = run.with_name("merged")
    convert(run, target, "--to", "ours")
    return target


def logits_of(model: TrainedModel, vocab_size: int) -> torch.Tensor:
    """Logits [b, s, v] of random rows."""
    (stage,) = model.model.chunks
    positions = model.config.model.max_position_embeddings
    rows = random_rows(vocab_size=vocab_size, max_position=positions)
    b, s = rows.tokens.shape
    batch = StageBatch(
        tokens=rows.tokens,
        positions=rows.positions,
        block_positions=rows.block_positions,
        prefix_length=rows.prefix_length,
        target_index=torch.arange(s * b),
        target_ids=torch.zeros(s * b, dtype=torch.int64),
    )
    with torch.no_grad():
        return stage.logits(batch).view(s, b, -1).transpose(0, 1)


def loaded(folders: list[Path]) -> list[tuple[np.ndarray, list[str]]]:
    """Logits of several runs, and a text that each continues with its prompt in two places."""
    enable_cpu()
    found = []
    for folder in folders:
        model = glm_dist.load(folder)
        texts = [
            model.complete(text, max_tokens=6) for text in ("w1 {*} w2 [MASK]", "w1 w2 {*} [MASK]")
        ]
        logits = logits_of(model, model.config.padded_vocab_size)
        found.append((logits.numpy(), texts))
    return found


@pytest.fixture(scope="module")
def both(run: Path, merged: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the run and of the merged run, which also write the same."""
    (unmerged, texts), (plain, same_texts) = run_ranks(loaded, [run, merged], world_size=1)[0]
    assert texts == same_texts
    return torch.from_numpy(unmerged), torch.from_numpy(plain)


def test_a_merged_run_has_the_logits_of_its_updates(
    both: tuple[torch.Tensor, torch.Tensor], run: Path, merged: Path
) -> None:
    unmerged, plain = both
    config = load_config_file(run / "config.yaml")
    factored = weights_of(choose_checkpoint(run / "checkpoints", None), config)
    name = "decoder.layers.1.self_attention.linear_proj"
    update = config.model.lora_scale * factored[f"{name}.lora_b"] @ factored[f"{name}.lora_a"]

    assert (plain - unmerged).abs().max() <= 1e-5
    assert update.abs().max() > 0.1 * factored[f"{name}.weight"].abs().max()
    assert not [each for each in weights(merged) if "lora" in each]
    assert "embedding.prompt.mlp.0.weight" in weights(merged)


@pytest.mark.parametrize("kind", ["official", "huggingface"])
def test_an_export_has_the_logits_of_the_updates(
    kind: str,
    both: tuple[torch.Tensor, torch.Tensor],
    run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / kind
    convert(run, target, "--to", kind, "--dtype", "fp32")
    read = read_official if kind == "official" else read_huggingface
    model = load_config_file(run / "config.yaml").model
    tensors = read(target).tensors

    found = plain_logits(
        tensors.__getitem__,
        random_rows(
            vocab_size=len(tensors["word_embeddings.weight"]),
            max_position=model.max_position_embeddings,
        ),
        num_layers=model.num_layers,
        heads=model.num_attention_heads,
        epsilon=model.layernorm_epsilon,
        by_head=False,
    )

    assert (found[..., : both[0].shape[-1]] - both[0]).abs().max() <= 1e-5
    account = capsys.readouterr().out
    assert "weights are W + 4 B A, of rank 4" in account
    assert "embedding.prompt.table.weight" in account  # among what is left out


def test_training_goes_on_from_a_merged_run(overrides: list[str], merged: Path) -> None:
    done = with_python([*overrides, "run.name=more", f"run.init_from={merged}", "run.steps=1"])

    assert done.returncode == 0, done.stderr


def test_a_run_without_updates_is_no_source_of_a_merged_one(
    merged: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], says: Says
) -> None:
    says(error_of(capsys, merged, tmp_path / "again", "--to", "ours"))
