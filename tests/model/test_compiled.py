"""Compiled layers against the same layers run operator by operator."""

import shutil

import pytest
import torch
import torch.distributed as dist
from torch._dynamo.utils import counters

from glm_dist.model.batch import StageBatch
from glm_dist.model.compiled import compile_layers
from glm_dist.model.main_gradient import main_gradient
from glm_dist.model.stage import GLMStage
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.train.task import Pretraining
from tests.ranks import run_ranks
from tests.train.grid import Case, build_engine, micro_batches_of, rows_of_step

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")


def losses_and_gradients(
    stage: GLMStage, batches: list[StageBatch]
) -> tuple[list[float], list[torch.Tensor]]:
    """Loss of each micro-batch and the sum of their gradients."""
    totals = [main_gradient(parameter) for parameter in stage.parameters()]
    for total in totals:
        total.zero_()
    losses = []
    for batch in batches:
        loss = Pretraining().loss(stage, stage(batch), batch).total
        loss.backward()
        losses.append(loss.item())
    return losses, [total.clone() for total in totals]


def compare(tensor_parallel_size: int, architecture: tuple[str, ...] = ()) -> int:
    """Compare this rank's compiled stage with itself before; how many graphs were compiled."""
    enable_cpu()
    case = Case(tp=tensor_parallel_size, micro_batch=2, architecture=architecture, trainable=("*",))
    engine = build_engine(case)
    (stage,) = engine.model.chunks
    for name, parameter in stage.named_parameters():
        if name.endswith("lora_b"):
            torch.nn.init.normal_(parameter, std=0.02)
    batches = [
        StageBatch.from_micro_batch(m, torch.device("cpu"))
        for m in micro_batches_of(rows_of_step(0), case, replica=0)[:3]
    ]
    names = [name for name, _ in stage.named_parameters()]
    expected = losses_and_gradients(stage, batches)

    compile_layers(stage)
    found = losses_and_gradients(stage, batches[:1])
    graphs = counters["stats"]["unique_graphs"]
    found = losses_and_gradients(stage, batches)

    assert [name for name, _ in stage.named_parameters()] == names
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    for a, b in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max() + 1e-3))
    assert counters["stats"]["unique_graphs"] == graphs, "other prefixes compiled again"
    dist.barrier()
    return graphs


def test_compiled_layers_equal_eager_ones_for_all_prefixes() -> None:
    (graphs,) = run_ranks(compare, 1, world_size=1)

    assert 0 < graphs < 10


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_compiled_updates_equal_eager_ones(size: int) -> None:
    run_ranks(compare, size, ("lora",), world_size=size)


@pytest.mark.slow
def test_compiled_layers_equal_eager_ones_when_cut() -> None:
    run_ranks(compare, 2, world_size=2)
