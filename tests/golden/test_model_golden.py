"""Logits, loss and gradients of official models, in every layout that cuts them."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from glm_dist.convert.official import from_official
from glm_dist.generate.cache import cached_attention
from glm_dist.model.batch import StageBatch
from glm_dist.model.parameters import local_slice
from glm_dist.model.stage import GLMStage
from glm_dist.parallel.layout import Layout
from glm_dist.parallel.schedule import Result, run_schedule
from glm_dist.train.task import Pretraining
from tests.golden.reference import (
    heads_of,
    official_stage,
    reference_files,
    stage_batch,
    tensors_under,
    with_padded_vocabulary,
)
from tests.ranks import run_ranks

pytestmark = pytest.mark.golden

LAYOUTS = {1: [Layout()], 2: [Layout(2, 1), Layout(1, 2)], 4: [Layout(2, 2)]}


def batch_of(inputs: dict[str, torch.Tensor], loss_mask: torch.Tensor) -> StageBatch:
    """The file's batch, with targets where a mask says."""
    return stage_batch(
        tokens=inputs["tokens"],
        position_ids=inputs["position_ids"],
        prefix_length=inputs["attention_mask"],
        targets=inputs["targets"],
        loss_mask=loss_mask,
    )


def pipeline_logits(stage: GLMStage, batch: StageBatch) -> torch.Tensor | None:
    """Logits on the last stage; hidden states travel by plain send and receive."""
    groups = stage.groups
    if not groups.is_first_stage:
        b, s = batch.tokens.shape
        hidden = torch.empty(s, b, stage.config.hidden_size)
        dist.recv(hidden, group=groups.pipeline, group_src=groups.coordinates.pipeline - 1)
        stage.set_input_tensor([hidden])
    if groups.is_last_stage:
        return stage.logits(batch)
    hidden = stage(batch).contiguous()
    dist.send(hidden, group=groups.pipeline, group_dst=groups.coordinates.pipeline + 1)
    return None


def finish(stage: GLMStage, hidden: torch.Tensor, batch: StageBatch) -> Result:
    """Summed loss, and its value."""
    loss = Pretraining().loss(stage, hidden, batch).total
    return Result(loss, loss.detach())


def check_model(file: Path, layouts: list[Layout]) -> None:
    """Compare this rank's part with the file, layout after layout."""
    arrays = dict(np.load(file))
    state = tensors_under(arrays, "w/")
    inputs = tensors_under(arrays, "in/")
    heads = heads_of(file, state["word_embeddings.weight"].shape[1])
    gradients = from_official(
        with_padded_vocabulary(tensors_under(arrays, "g/")), num_attention_heads=heads
    )
    batch = batch_of(inputs, inputs["loss_mask"])
    b, s = batch.tokens.shape
    num_targets = batch.target_ids.numel()
    for layout in layouts:
        stage = official_stage(state, num_attention_heads=heads, layout=layout)
        losses = run_schedule(
            [stage],
            [batch],
            finish=finish,
            loss_scales=[torch.tensor(1.0 / num_targets)],
            row_length=s,
            micro_batch_size=b,
            groups=stage.groups,
        )
        if layout.pipeline_parallel_size > 1 and stage.tied_weight is not None:
            dist.all_reduce(stage.tied_weight.grad, group=stage.groups.embedding)
        for loss in losses:
            assert float(loss) / num_targets == pytest.approx(float(arrays["loss"]), abs=1e-6)
        for shard in stage.shards():
            expected = local_slice(shard, gradients[shard.name])
            error = float((shard.parameter.grad - expected).abs().max())
            assert error <= 1e-5, f"{layout}: gradient of {shard.name} is off by {error}"
        with torch.no_grad():
            everywhere = batch_of(inputs, torch.ones_like(inputs["loss_mask"]))
            logits = pipeline_logits(stage, everywhere)
        if logits is not None:
            found = logits.view(s, b, -1).transpose(0, 1).numpy()  # [s * b, v] -> [b, s, v]
            np.testing.assert_allclose(
                found, arrays["logits"], atol=1e-5, rtol=0, err_msg=str(layout)
            )


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("file", reference_files("model/*.npz"))
def test_logits_loss_and_gradients_equal_the_official_model(file: Path, world_size: int) -> None:
    run_ranks(check_model, file, LAYOUTS[world_size], world_size=world_size)


def check_incremental(file: Path) -> float:
    """Largest error of Part B of row 0 fed token by token after its context."""
    arrays = dict(np.load(file))
    state = tensors_under(arrays, "w/")
    heads = heads_of(file, state["word_embeddings.weight"].shape[1])
    stage = official_stage(state, num_attention_heads=heads, layout=Layout()).eval()
    inputs = {name: tensor[:1] for name, tensor in tensors_under(arrays, "in/").items()}
    prefix, length = int(inputs["attention_mask"][0]), inputs["tokens"].shape[1]

    def logits_after(part: slice, *, prefix_length: int) -> np.ndarray:
        tokens = inputs["tokens"][:, part]
        last = torch.zeros_like(tokens)
        last[:, -1] = 1
        batch = stage_batch(
            tokens=tokens,
            position_ids=inputs["position_ids"][:, :, part],
            prefix_length=torch.tensor([prefix_length]),
            targets=tokens,
            loss_mask=last,
        )
        return stage.logits(batch)[0].numpy()

    with torch.no_grad(), cached_attention(stage):
        logits_after(slice(0, prefix), prefix_length=prefix)
        found = [logits_after(slice(i, i + 1), prefix_length=0) for i in range(prefix, length)]
    expected = arrays["incremental_logits"]
    return float(np.abs(np.stack(found)[: len(expected)] - expected).max())


@pytest.mark.parametrize("file", reference_files("model/*.npz"))
def test_decoding_token_by_token_equals_the_official_memory(file: Path) -> None:
    if "incremental_logits" not in np.load(file).files:
        pytest.skip(f"{file.name} has no incremental_logits")
    assert run_ranks(check_incremental, file, world_size=1)[0] <= 1e-5
