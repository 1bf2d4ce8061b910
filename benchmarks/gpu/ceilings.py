"""Ceilings of a GPU: its best matrix products, and copies in its memory.

The products of the model's own layers, at their own shapes and alone, are the time below which no
step of that model can go.
"""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.harness import timed
from glm_dist.config.architecture import ModelConfig
from glm_dist.model.main_gradient import add_product

LARGE = ((8192, 8192, 8192), (16384, 8192, 4096), (8192, 4096, 16384))
TOY = ((64, 64, 64),)
COPY_BYTES = 2**31
ROUNDS = 5


def best_seconds(work: Callable[[], object], repeat: int = 20) -> float:
    """Return the least seconds of a call over some rounds of several calls each."""
    work()
    work()
    return min(timed(lambda: [work() for _ in range(repeat)]) for _ in range(ROUNDS)) / repeat


def product_rate(shape: tuple[int, int, int], device: torch.device) -> float:
    """Return TFLOP/s of a bf16 product [m, k] x [k, n] on random numbers."""
    m, n, k = shape
    left = torch.randn(m, k, device=device, dtype=torch.bfloat16)
    right = torch.randn(n, k, device=device, dtype=torch.bfloat16)
    return 2 * m * n * k / best_seconds(lambda: left @ right.t()) / 1e12


def layer_products(
    model: ModelConfig, tokens: int, device: torch.device
) -> dict[str, tuple[float, int]]:
    """Time the nine or twelve products of a layer's forward and backward.

    Args:
        model: Architecture.
        tokens: Positions of a micro-batch.
        device: Device of the operands.

    Returns:
        Pass -> seconds and operations. Weight gradients are added to fp32 sums, as in training.
    """
    h, wide = model.hidden_size, model.mlp_size
    sums = {"forward": 0.0, "inputs": 0.0, "weights": 0.0}
    operations = 0
    for inputs, outputs in ((h, 3 * h), (h, h), (h, wide), (wide, h)):
        x = torch.randn(tokens, inputs, device=device, dtype=torch.bfloat16)
        weight = torch.randn(outputs, inputs, device=device, dtype=torch.bfloat16)
        grad = torch.randn(tokens, outputs, device=device, dtype=torch.bfloat16)
        main = torch.zeros(outputs, inputs, device=device)
        works: dict[str, Callable[[], object]] = {
            "forward": lambda x=x, weight=weight: x @ weight.t(),
            "inputs": lambda grad=grad, weight=weight: grad @ weight,
            "weights": lambda main=main, grad=grad, x=x: add_product(main, grad.t(), x),
        }
        for name, work in works.items():
            sums[name] += best_seconds(work)
        operations += 2 * tokens * inputs * outputs
    return {name: (seconds, operations) for name, seconds in sums.items()}


def copy_rate(device: torch.device, num_bytes: int = COPY_BYTES) -> float:
    """Return GB/s of a copy within the device's memory, bytes read and written."""
    source = torch.empty(num_bytes // 2, device=device, dtype=torch.bfloat16).normal_()
    target = torch.empty_like(source)
    return 2 * num_bytes / best_seconds(lambda: target.copy_(source)) / 1e9


def ceilings(
    model: ModelConfig, *, tokens: int, micro_batches: int, device: torch.device
) -> dict[str, Any]:
    """Measure the ceilings for a model.

    Args:
        model: Architecture.
        tokens: Positions of a micro-batch.
        micro_batches: Of a step.
        device: CPUs measure toy shapes.
    """
    on_gpu = device.type == "cuda"
    rates = {shape: product_rate(shape, device) for shape in (LARGE if on_gpu else TOY)}
    passes = layer_products(model, tokens, device)
    seconds = sum(spent for spent, _ in passes.values())
    operations = sum(done for _, done in passes.values())
    figures: dict[str, Any] = {
        "best product, TFLOP/s": max(rates.values()),
        "at m x n x k": " x ".join(map(str, max(rates, key=lambda shape: rates[shape]))),
        "layer products, TFLOP/s": operations / seconds / 1e12,
    }
    for name, (spent, done) in passes.items():
        figures[f"of {name}, TFLOP/s"] = done / spent / 1e12
    figures["layer products of a step, ms"] = 1e3 * seconds * model.num_layers * micro_batches
    figures["copy, GB/s"] = copy_rate(device, COPY_BYTES if on_gpu else 2**20)
    return figures
