"""The flat optimizer on a GPU: sums in the products, and updates that wait for nothing."""

import torch

from glm_dist.model.linear import _Product
from glm_dist.optim.state import Rates
from tests.gpu.device import DEVICE
from tests.ranks import run_ranks
from tests.train.grid import (
    Case,
    build_engine,
    micro_batches_of,
    rank_device,
    rows_of_step,
    run_steps,
)

CASES = [
    Case(micro_batch=4),
    Case(micro_batch=4, zero=1, dtype="bf16"),
    Case(micro_batch=4, zero=1, dtype="fp16"),
]


def update(cases: list[Case]) -> list[bool]:
    """Queue an update under torch's guard against waits; whether it was applied, case by case."""
    answers = []
    for case in cases:
        engine = build_engine(case)
        run_steps(engine, case, [0])  # first use may wait
        device = rank_device()
        batches = micro_batches_of(rows_of_step(1), case, replica=0)
        tasks = [engine.task.batch(each, device) for each in batches]
        scale = torch.full((), 0.01, device=device)
        engine.forward_backward(tasks, loss_scales=[scale] * len(tasks))
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("error")
        try:
            step = engine.zero.step(Rates(1e-3, 2e-3))
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")
        answers.append(not step.settle().is_skipped)
    return answers


def test_an_update_does_not_wait_for_the_gpu() -> None:
    assert run_ranks(update, CASES, world_size=1, device=DEVICE)[0] == [True] * len(CASES)


def test_sums_of_micro_batches_are_not_rounded_to_16_bits() -> None:
    torch.manual_seed(0)
    weight, bias = (
        torch.nn.Parameter(torch.randn(*shape, device=DEVICE, dtype=torch.bfloat16))
        for shape in ((256, 512), (256,))
    )
    for parameter in (weight, bias):
        parameter.main_grad = torch.zeros_like(parameter, dtype=torch.float32)
    exact_weight = torch.zeros(256, 512, device=DEVICE, dtype=torch.float64)
    exact_bias = torch.zeros(256, device=DEVICE, dtype=torch.float64)

    for _ in range(4):
        rows = torch.randn(8, 4, 512, device=DEVICE, dtype=torch.bfloat16)
        gradient = torch.randn(8, 4, 256, device=DEVICE, dtype=torch.bfloat16)
        _Product.apply(rows, weight, bias, False, False, None).backward(gradient)
        flat = gradient.flatten(0, 1).double()
        exact_weight += flat.t() @ rows.flatten(0, 1).double()
        exact_bias += flat.sum(dim=0)

    # A sum of 128 products in fp32 is off by some 1e-7; one that is rounded to bf16, by 1e-3.
    for parameter, exact in ((weight, exact_weight), (bias, exact_bias)):
        assert parameter.grad is None
        assert float((parameter.main_grad - exact).norm() / exact.norm()) < 1e-5
