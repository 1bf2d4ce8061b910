"""Time of a GPU by its kernels: busy and idle, and for what.

A kernel's kind is read off its name, so the kinds are a guide: an addition of the optimizer that
runs as an elementwise kernel counts as pointwise.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

KINDS = (
    # The first pattern found in the name counts. Names of compiled kernels list what was fused.
    ("pointwise", r"^triton_(poi|per|red|for)_"),
    ("communication", r"nccl"),
    ("attention", r"flash|fmha|attention|attn|sdpa|^(forward|prepare|keys|queries)_kernel"),
    ("optimizer", r"multi_tensor_apply|adam"),
    ("products", r"gemm|triton_tem_|nvjet|cutlass|xmma|cublas|splitk|\bmm\b|addmm|matmul|gemv"),
    ("copies", r"memcpy|memset|copy|fillfunctor|fill_|catarray|index_select|gather|transpose"),
    (
        "pointwise",
        r"elementwise|triton_|layer_?norm|gammabeta|dropout|softmax|gelu|reduce|embedding",
    ),
)
OTHER = "other"
KIND_NAMES = (
    *("products", "attention", "pointwise", "optimizer", "copies", "communication"),
    OTHER,
)


@dataclass(frozen=True)
class Kernel:
    """One piece of work on the device, in nanoseconds."""

    name: str
    start: int
    stop: int

    @property
    def kind(self) -> str:
        return kind_of(self.name)


def kind_of(name: str) -> str:
    """Return what a kernel is for, judged by its name."""
    return next((kind for kind, found in KINDS if re.search(found, name, re.IGNORECASE)), OTHER)


def busy(kernels: Iterable[Kernel]) -> int:
    """Return the nanoseconds in which at least one kernel runs: the union of their intervals."""
    total, end = 0, 0
    for kernel in sorted(kernels, key=lambda each: each.start):
        begin = max(kernel.start, end)
        if kernel.stop > begin:
            total += kernel.stop - begin
            end = kernel.stop
    return total


def by_kind(kernels: Iterable[Kernel]) -> dict[str, int]:
    """Return the summed nanoseconds of each kind; kernels that overlap count twice."""
    sums = dict.fromkeys(KIND_NAMES, 0)
    for kernel in kernels:
        sums[kernel.kind] += kernel.stop - kernel.start
    return sums


def longest(kernels: Iterable[Kernel], count: int) -> list[dict[str, Any]]:
    """Return the names that take the most time, with kind, milliseconds and launches."""
    time: Counter[str] = Counter()
    launches: Counter[str] = Counter()
    for kernel in kernels:
        time[kernel.name] += kernel.stop - kernel.start
        launches[kernel.name] += 1
    return [
        {"name": name[:160], "kind": kind_of(name), "ms": spent / 1e6, "launches": launches[name]}
        for name, spent in time.most_common(count)
    ]


def recorded(work: Callable[[], object]) -> list[Kernel]:
    """Run a piece of work under torch's profiler; return what the device ran.

    On a CPU the operators take the place of kernels; they nest, so sums by kind are too large.
    """
    on_gpu = torch.cuda.is_available()
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiler:
        work()
        if on_gpu:
            torch.cuda.synchronize()
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    wanted = DeviceType.CUDA if on_gpu else DeviceType.CPU
    return [
        Kernel(event.name(), event.start_ns(), event.start_ns() + event.duration_ns())
        for event in results.events()
        if event.device_type() == wanted and not _is_annotation(event, on_gpu=on_gpu)
    ]


def _is_annotation(event: Any, *, on_gpu: bool) -> bool:
    """Return True for ranges that code marks; they cover kernels that are counted themselves."""
    if not on_gpu:
        return not event.name().startswith("aten::")
    return bool(getattr(event, "is_user_annotation", lambda: False)())


def device_figures(
    kernels: Sequence[Kernel], *, step_ms: float, layers: int, micro_batches: int
) -> dict[str, float]:
    """Return the figures of one step.

    Args:
        kernels: Of one step.
        step_ms: Time of a step without the profiler, which slows the host.
        layers: Of the model.
        micro_batches: Of a step.
    """
    busy_ms = busy(kernels) / 1e6
    figures = {
        "launches": len(kernels),
        "launches per micro-batch and layer": len(kernels) / (micro_batches * layers),
        "GPU busy, ms": busy_ms,
        "GPU idle, ms": max(step_ms - busy_ms, 0.0),
    }
    return figures | {f"{kind}, ms": spent / 1e6 for kind, spent in by_kind(kernels).items()}
