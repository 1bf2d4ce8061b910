"""Visibility in the whole model: gradients of outputs with respect to inputs, on built rows."""

from datetime import timedelta
from pathlib import Path

import torch

from glm_dist.config.schema import Dtype, ModelConfig
from glm_dist.data.micro_batch import MicroBatch
from glm_dist.data.row_source import open_row_source
from glm_dist.data.rows import Row
from glm_dist.model.batch import StageBatch
from glm_dist.model.stage import GLMStage
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.groups import build_groups
from glm_dist.parallel.layout import Layout
from tests.data.corpora import VOCAB_SIZE, make_config, make_documents, write_corpus
from tests.ranks import run_ranks

ROW_LENGTH = 48
SHARES = {"span": (1.0, 0.0, 0.0), "sentence": (0.0, 1.0, 0.0), "document": (0.0, 0.0, 1.0)}


def influence(stage: GLMStage, row: Row) -> torch.Tensor:
    """Entry [i, j]: largest gradient of output i with respect to what stands at input j."""
    batch = StageBatch.from_micro_batch(MicroBatch.stack([row]), torch.device("cpu"))
    inputs: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, arguments: object, embedded: torch.Tensor) -> torch.Tensor:
        inputs.append(embedded.detach().requires_grad_())
        return inputs[0]

    assert stage.embedding is not None
    handle = stage.embedding.register_forward_hook(keep)
    hidden = stage(batch)[:, 0]  # [s, h]
    handle.remove()
    # A random direction: the sum over h of a layer norm's output is constant.
    weight = torch.randn(hidden.size(1), dtype=hidden.dtype)
    return torch.stack(
        [
            torch.autograd.grad(each, inputs[0], retain_graph=True)[0][:, 0].abs().amax(1)
            for each in hidden @ weight
        ]
    )


def check(rows: list[Row]) -> None:
    """Compare influence with what GLM allows: all of A, and of B what is not later."""
    enable_cpu()
    torch.manual_seed(0)
    stage = GLMStage(
        ModelConfig(
            num_layers=3,
            hidden_size=32,
            num_attention_heads=4,
            max_position_embeddings=1024,
            hidden_dropout=0.0,
            attention_dropout=0.0,
            layernorm_epsilon=1e-5,
            init_std=0.02,
        ),
        vocab_size=VOCAB_SIZE,
        padded_vocab_size=1024,
        dtype=Dtype.fp32,
        groups=build_groups(Layout(), timedelta(seconds=60)),
        device=torch.device("cpu"),
    )
    for parameter in stage.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    for row in rows:
        length = row.num_real_tokens
        position = torch.arange(length)
        allowed = (position[None, :] <= position[:, None]) | (position[None, :] < row.prefix_length)
        found = influence(stage, row)[:length, :length] > 0

        assert (found == allowed).all(), row.objective


def test_part_a_sees_itself_only_and_part_b_nothing_later(tmp_path: Path) -> None:
    prefix = write_corpus(tmp_path, "text", make_documents(60, mean_length=100))
    rows = []
    for shares in SHARES.values():
        config = make_config(tmp_path, {"text": prefix}, row_length=ROW_LENGTH, shares=shares)
        source = open_row_source(config)
        rows += [source.row(index) for index in range(4)]

    assert {row.objective for row in rows} == set(SHARES)
    run_ranks(check, rows, world_size=1)
