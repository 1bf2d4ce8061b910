"""Official checkpoints of the reference become runs and official checkpoints again."""

from pathlib import Path

import numpy as np
import pytest
import torch

import glm_dist
from glm_dist.convert.official import from_official
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.layout import Layout
from tests.convert.conversions import convert, module, same, weights
from tests.convert.official_files import shard, write_vocabulary
from tests.golden.reference import (
    REFERENCE,
    heads_of,
    official_stage,
    reference_files,
    stage_batch,
    tensors_under,
)
from tests.ranks import run_ranks

pytestmark = pytest.mark.golden


def rounded(file: Path) -> dict[str, torch.Tensor]:
    """Weights of a recorded model, rounded to fp16 as checkpoints hold them."""
    return {name: each.half() for name, each in tensors_under(dict(np.load(file)), "w/").items()}


def parts_of(checkpoint: Path) -> list[Path]:
    return sorted(checkpoint.rglob("mp_rank_*.pt"))


def recorded_model(checkpoint: Path) -> Path:
    """The recorded model of the same weights, compared by those that all parts have whole."""
    found = module(parts_of(checkpoint)[0])
    name = "transformer.position_embeddings.weight"
    for file in sorted(REFERENCE.glob("model/*.npz")):
        if torch.equal(found[name], rounded(file)[name]):
            return file
    pytest.skip(f"no recorded model has the weights of {checkpoint.name}")


def imported(checkpoint: Path, folder: Path) -> Path:
    """Import into ``folder/run``; return the model's file."""
    model = recorded_model(checkpoint)
    rows, hidden = rounded(model)["word_embeddings.weight"].shape
    tokenizer = write_vocabulary(folder, rows)
    heads = f"model.num_attention_heads={heads_of(model, hidden)}"
    convert(checkpoint, folder / "run", heads, f"tokenizer.path={tokenizer}")
    return model


def difference_and_text(run: Path, file: Path) -> tuple[float, str]:
    """Compare logits of the recorded rows, of the run and of the rounded weights; fill a blank."""
    enable_cpu()
    arrays = dict(np.load(file))
    inputs = tensors_under(arrays, "in/")
    state = {name: each.float() for name, each in rounded(file).items()}
    heads = heads_of(file, state["word_embeddings.weight"].shape[1])
    batch = stage_batch(
        tokens=inputs["tokens"],
        position_ids=inputs["position_ids"],
        prefix_length=inputs["attention_mask"],
        targets=inputs["targets"],
        loss_mask=inputs["loss_mask"],
    )
    loaded = glm_dist.load(run)
    expected = official_stage(state, num_attention_heads=heads, layout=Layout()).eval()
    with torch.no_grad():
        found = loaded.model.chunks[0].logits(batch)
        # The run knows which rows of the word table no token has.
        wanted = expected.logits(batch)[:, : found.shape[1]]
        text = loaded.complete("w10 [MASK] w11", max_tokens=4)
        return float((found - wanted).abs().max()), text


@pytest.mark.parametrize("checkpoint", reference_files("checkpoint/*"))
def test_imported_weights_are_the_recorded_ones_and_go_back(
    checkpoint: Path, tmp_path: Path
) -> None:
    model = imported(checkpoint, tmp_path)
    run, state = tmp_path / "run", rounded(model)
    heads = heads_of(model, state["word_embeddings.weight"].shape[1])

    assert same(weights(run), from_official(state, num_attention_heads=heads))
    for parts in [parts for parts in (1, 2, 4) if heads % parts == 0]:
        convert(run, tmp_path / f"{parts}", "--to", "official", "--model-parallel-size", parts)
        for rank, file in enumerate(parts_of(tmp_path / f"{parts}")):
            cut = {name: shard(name, each, rank, parts) for name, each in state.items()}
            assert same(module(file), cut)
            if parts == len(parts_of(checkpoint)):
                assert same(module(file), module(parts_of(checkpoint)[rank]))


@pytest.mark.parametrize("checkpoint", reference_files("checkpoint/*")[:1])
def test_an_imported_run_computes_the_logits_of_its_weights_and_writes(
    checkpoint: Path, tmp_path: Path
) -> None:
    model = imported(checkpoint, tmp_path)

    ((difference, text),) = run_ranks(difference_and_text, tmp_path / "run", model, world_size=1)

    assert difference <= 1e-5
    assert text.startswith("w10 [")
