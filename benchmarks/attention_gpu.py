"""Attention kernels of a GPU: ours against cuDNN and FlashAttention 2, at the sizes of real models.

Rates count the pairs that GLM's mask allows, 4 d operations each forward and 10 d backward, for all
contestants: who computes forbidden pairs has a lower rate. "no mask" computes another function, the
whole square; it shows what the chip can do. ``--tune`` tries tiles for ``blocks.py``.

Rule for another library's kernel in training: it joins if it computes GLM's mask with dropout and
is at least 10 % faster, forward and backward together, than our kernels after tuning.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.harness import Report
from glm_dist.model.attention.blocks import Blocks, shared_bytes
from glm_dist.model.attention.launch import Dropped, attend, attend_backward, blocks_of
from glm_dist.model.attention.plan import plan_attention


@dataclass(frozen=True)
class Shape:
    """Rows, heads, positions and head size of a model's micro-batch on one GPU."""

    name: str
    b: int
    a: int
    s: int
    d: int

    def prefixes(self, share: float) -> list[int]:
        """Prefixes near a share of the row, slightly different as in real micro-batches."""
        return [int(share * self.s) + i % 9 - 4 for i in range(self.b)]

    def operations(self, share: float) -> float:
        """Operations of the forward pass on the allowed pairs."""
        pairs = 0
        for prefix in self.prefixes(share):
            rest = self.s - prefix
            pairs += prefix * self.s + rest * (rest + 1) // 2
        return 4.0 * self.d * self.a * pairs


SHAPES = (
    Shape("2B", 8, 32, 1024, 64),
    Shape("Large", 64, 16, 512, 64),
    Shape("410M", 32, 16, 1024, 64),
    Shape("Base", 64, 12, 512, 64),
    Shape("130B, tp 1", 1, 96, 2048, 128),
)
TOY = (Shape("toy", 1, 1, 48, 16),)
SHARES = (0.82, 0.25)
DROPOUTS = (0.0, 0.1)
REPEATS = 20
CANDIDATES = {
    "forward": (
        *(Blocks(128, 64, 4, 3), Blocks(128, 64, 4, 4), Blocks(128, 64, 8, 3)),
        *(Blocks(128, 128, 8, 3), Blocks(128, 128, 8, 2), Blocks(64, 64, 4, 3)),
        *(Blocks(64, 128, 4, 3), Blocks(128, 32, 4, 4)),
    ),
    "keys": (
        *(Blocks(64, 128, 8, 3), Blocks(64, 128, 8, 2), Blocks(32, 128, 8, 3)),
        *(Blocks(64, 64, 4, 3), Blocks(64, 64, 4, 2), Blocks(32, 64, 4, 3)),
        *(Blocks(128, 128, 8, 2), Blocks(32, 128, 4, 3)),
    ),
    "queries": (
        *(Blocks(128, 64, 8, 3), Blocks(128, 64, 8, 2), Blocks(128, 32, 8, 3)),
        *(Blocks(64, 64, 4, 3), Blocks(64, 64, 4, 2), Blocks(64, 128, 4, 2)),
        *(Blocks(128, 128, 8, 2), Blocks(128, 32, 4, 3)),
    ),
}
"""Tiles worth trying, the present ones first."""


@dataclass
class Problem:
    """Tensors of one measurement, as the fused projection lays them out."""

    shape: Shape
    share: float
    dropout: float
    device: torch.device
    inputs: Sequence[torch.Tensor] = field(init=False)
    """Query, key and value [s, b, a, d]."""

    def __post_init__(self) -> None:
        s, b, a, d = self.shape.s, self.shape.b, self.shape.a, self.shape.d
        dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        torch.manual_seed(0)
        self.inputs = torch.randn(s, b, a, 3 * d, device=self.device, dtype=dtype).chunk(3, dim=3)
        self.grad = torch.randn(s, b, a, d, device=self.device, dtype=dtype)
        self.fused = torch.empty(s, b, a, 3 * d, device=self.device, dtype=dtype)
        prefixes = self.shape.prefixes(self.share)
        self.table = plan_attention(prefixes, row_length=s).to(self.device).table
        self.dropped = None
        if self.dropout:
            words = torch.randint(-(2**31), 2**31, (s * b + 2,), device=self.device).int() | 1
            origin = torch.zeros(2, dtype=torch.int32, device=self.device)
            self.dropped = Dropped(self.dropout, words[-2:], words[:-2].view(b, s), origin)

    def bias(self) -> torch.Tensor:
        """Build the mask to add to scores [b, 1, s, s]."""
        position = torch.arange(self.shape.s, device=self.device)
        limits = torch.tensor(self.shape.prefixes(self.share), device=self.device)
        allowed = (position[None, :] <= position[:, None]) | (position < limits[:, None, None])
        bias = torch.zeros(allowed.shape, device=self.device, dtype=self.grad.dtype)
        return bias.masked_fill(~allowed, float("-inf"))[:, None]


Work = Callable[[], object]


def ours(problem: Problem, tiles: dict[str, Blocks]) -> tuple[Work, Work]:
    """Return forward and backward of our kernels, with tiles of the table or others."""
    inputs, table, dropped = problem.inputs, problem.table, problem.dropped
    blocks = {name: tiles.get(name) or blocks_of(name, inputs[0]) for name in CANDIDATES}

    def forward() -> tuple[torch.Tensor, torch.Tensor]:
        return attend(*inputs, table, dropped, blocks=blocks["forward"])

    out, log_sum = forward()

    def backward() -> None:
        attend_backward(
            *(problem.grad, *inputs, out, log_sum, table, problem.fused.chunk(3, dim=3), dropped),
            keys_blocks=blocks["keys"],
            queries_blocks=blocks["queries"],
        )

    return forward, backward


def torchs(
    problem: Problem, backend: SDPBackend | None, bias: torch.Tensor | None
) -> tuple[Work, Work]:
    """Return forward and backward of one of torch's kernels on views [b, a, s, d]."""
    views = [x.detach().permute(1, 2, 0, 3).requires_grad_() for x in problem.inputs]
    grad = problem.grad.permute(1, 2, 0, 3)

    def only() -> AbstractContextManager[None]:
        return nullcontext() if backend is None else sdpa_kernel(backend)

    def forward() -> torch.Tensor:
        with only():
            return scaled_dot_product_attention(*views, attn_mask=bias, dropout_p=problem.dropout)

    out = forward()
    return forward, lambda: torch.autograd.grad(out, views, grad, retain_graph=True)


def contestants(
    problem: Problem, tuned: dict[str, Blocks]
) -> dict[str, Callable[[], tuple[Work, Work]]]:
    """Return what is measured on a problem: name -> maker of forward and backward."""
    ways = {"ours": lambda: ours(problem, {})}
    if tuned:
        ways["ours, tuned"] = lambda: ours(problem, tuned)
    if problem.device.type == "cpu":
        return ways | {"torch, bias": lambda: torchs(problem, None, problem.bias())}
    cudnn, flash = SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION
    return ways | {
        "cuDNN, bias": lambda: torchs(problem, cudnn, problem.bias()),
        "cuDNN, no mask": lambda: torchs(problem, cudnn, None),
        "FlashAttention 2, no mask": lambda: torchs(problem, flash, None),
    }


def milliseconds(work: Work, device: torch.device) -> float:
    """Measure a call on the device: a replayed graph, so that the host's time does not count."""
    if device.type == "cpu":
        started = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - started)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(REPEATS):
        graph.replay()
    stop.record()
    torch.cuda.synchronize()
    return start.elapsed_time(stop) / REPEATS


def measure(problem: Problem, tuned: dict[str, Blocks]) -> list[dict[str, Any]]:
    """Measure all contestants; one that a GPU or version lacks leaves a row that says so."""
    shape, operations = problem.shape, problem.shape.operations(problem.share)
    rows = []
    for name, make in contestants(problem, tuned).items():
        row: dict[str, Any] = {
            "shape": f"{shape.name}: {shape.b} x {shape.a} x {shape.s} x {shape.d}",
            "prefix": f"{problem.share:.0%}",
            "dropout": problem.dropout,
            "what": name,
        }
        try:
            forward, backward = (milliseconds(work, problem.device) for work in make())
        except RuntimeError as error:
            row["note"] = str(error).splitlines()[0][:80]
        else:
            row["forward, ms"], row["backward, ms"] = forward, backward
            row["both, ms"] = forward + backward
            row["forward, TFLOP/s"] = operations / forward / 1e9
            row["backward, TFLOP/s"] = 2.5 * operations / backward / 1e9
        rows.append(row)
    return rows


def tune(problem: Problem, shared_memory: int) -> dict[str, Blocks]:
    """Find the fastest tiles of each kernel; print every trial.

    Args:
        problem: What to compute.
        shared_memory: Bytes that one block of threads may have.
    """
    best: dict[str, Blocks] = {}
    d, itemsize = problem.shape.d, problem.grad.element_size()
    for kernel, candidates in CANDIDATES.items():
        trials = {}
        for blocks in candidates if problem.device.type == "cuda" else candidates[:1]:
            if shared_bytes(kernel, blocks, d, itemsize) > shared_memory:
                continue
            forward, backward = ours(problem, {kernel: blocks})
            work = forward if kernel == "forward" else backward
            trials[blocks] = milliseconds(work, problem.device)
            print(f"{problem.shape.name} {kernel} {blocks}: {trials[blocks]:.3f} ms", flush=True)
        best[kernel] = min(trials, key=lambda blocks: trials[blocks])
        print(f'    ("{kernel}", {itemsize}, {d}): {best[kernel]},', flush=True)
    return best


def report(
    machine: dict[str, Any], *, device: torch.device, tunes: bool, only: Sequence[str]
) -> Report:
    """Measure every shape, prefix and dropout, the first shapes without ``only``'s others.

    Args:
        machine: Description for the table's head.
        device: A GPU; a CPU runs a toy, in Triton's interpreter.
        tunes: Try tiles first, and measure the best ones too.
        only: Names of the shapes; () for all.
    """
    table = Report("attention", "Prefix attention, kernels", machine)
    shapes = SHAPES if device.type == "cuda" else TOY
    memory = 2**30
    if device.type == "cuda":
        from triton.runtime import driver

        memory = driver.active.utils.get_device_properties(device.index or 0)["max_shared_mem"]
    for shape in shapes:
        if only and shape.name not in only:
            continue
        tuned = tune(Problem(shape, SHARES[0], 0.0, device), memory) if tunes else {}
        for share in SHARES:
            for dropout in DROPOUTS:
                table.rows += measure(Problem(shape, share, dropout, device), tuned)
    table.notes.append(
        "Device time by replayed graphs; rates count the pairs of GLM's mask. No mask: another "
        "function, the whole square."
    )
    return table
