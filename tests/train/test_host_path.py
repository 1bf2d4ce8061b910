"""What a step asks of the device: how many launches, and never an answer.

Counted on a CPU, on the path of a GPU: our attention kernels as operators, fused operations as one
launch each. Operators that only make views or allocate are no launches.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from glm_dist.config.schema import LossNormalization
from glm_dist.model import cross_entropy, fused
from glm_dist.model.attention import dispatch, operator
from glm_dist.model.batch import StageBatch
from glm_dist.model.fused import FusedPointwise
from glm_dist.model.pointwise import use_pointwise
from glm_dist.optim.state import Rates
from glm_dist.parallel.cpu import enable_cpu
from glm_dist.parallel.rng import seed_step
from glm_dist.train.step import train_step
from glm_dist.train.task import Task
from tests.ranks import run_ranks
from tests.train.grid import Case, build_engine, micro_batches_of, rows_of_case

pytest.importorskip("triton", reason="Triton has no build for this machine")

aten = torch.ops.aten
ANSWERS = {
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.masked_select,
    aten.nonzero,
    aten.unique_consecutive,
    aten._unique2,
}
"""Operators whose result the host needs before it can go on."""
ALLOCATIONS = {
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
    aten.detach,
    aten.lift_fresh,
}
KERNELS = {"prefix_attention": 1, "prefix_attention_backward": 3}
"""Launches of our own operators."""

MOST_PER_LAYER = {0.0: 40, 0.1: 44}
"""Launches of a layer in a micro-batch, forward and backward, by dropout; the measurements that led
to the fused operations saw 171 (docs/performance.md)."""
MOST_PER_MICRO_BATCH = {0.0: 60, 0.1: 68}
"""Those of embedding, head and loss."""
MOST_PER_STEP = 60
"""Those of the optimizer and the reports, for a model of any depth but for a few a parameter."""


class Launches(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self._is_fused = False

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        packet = func.overloadpacket
        if packet in ANSWERS:
            self.answers[str(packet)] += 1
        if not (self._is_fused or packet in ALLOCATIONS or _is_view(func)):
            name = str(packet)
            self.counts[name] += KERNELS.get(name.split(".")[-1], 1)
        return func(*args, **(kwargs or {}))

    @contextmanager
    def as_one(self, name: str) -> Iterator[None]:
        """Count everything inside as one launch."""
        self.counts[name] += 1
        self._is_fused = True
        try:
            yield
        finally:
            self._is_fused = False


def _is_view(func: Any) -> bool:
    returned = [result.alias_info for result in func._schema.returns]
    return bool(returned) and all(info is not None and not info.is_write for info in returned)


class Prepared:
    """A task whose batches are there: what the host does for them alone is not counted."""

    def __init__(self, task: Task) -> None:
        self._task = task

    def batch(self, micro_batch: StageBatch, device: torch.device) -> StageBatch:
        return micro_batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)


def unattended(query: torch.Tensor, *_: object) -> tuple[torch.Tensor, torch.Tensor]:
    """Zeros in place of attention: the interpreter takes minutes, and nobody looks at them."""
    s, b, a, d = query.shape
    return torch.zeros(s, b, a, d), torch.zeros(b, a, s)


def unattended_backward(*_: object, gradients: tuple[torch.Tensor, ...], **__: object) -> None:
    for gradient in gradients:
        gradient.zero_()


def count(case: Case) -> tuple[Counter[str], Counter[str]]:
    """Launches and answers of one training step, after one that is not counted."""
    enable_cpu()
    dispatch.has_kernels = lambda *_, **__: True
    fused.FEW_ROWS = 0
    mode = Launches()

    def one_launch(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            with mode.as_one(function.__name__):
                return function(*arguments)

        return run

    fused.compiled = cross_entropy.compiled = one_launch
    operator.attend, operator.attend_backward = unattended, unattended_backward
    engine = build_engine(case)
    use_pointwise(engine.model, FusedPointwise())
    batches = [
        engine.task.batch(each, torch.device("cpu")).planned()
        for each in micro_batches_of(rows_of_case(0, case), case, 0)
    ]
    engine.task = Prepared(engine.task)
    for step in range(2):
        seed_step(1, step, coordinates=engine.groups.coordinates)
        with mode if step else torch.enable_grad():
            train_step(
                engine,
                batches,
                rates=Rates(1e-3, 1e-4),
                normalize_by=LossNormalization.global_tokens,
                device=torch.device("cpu"),
            )
    return mode.counts, mode.answers


def count_all(cases: list[Case]) -> list[tuple[Counter[str], Counter[str]]]:
    return [count(case) for case in cases]


@pytest.mark.parametrize("dropout", MOST_PER_LAYER)
def test_launches_are_few_and_none_asks_for_an_answer(dropout: float) -> None:
    sizes = [(layers, micro_batch) for layers in (2, 3) for micro_batch in (4, 8)]
    cases = [Case(layers=n, micro_batch=b, zero=1, dropout=dropout) for n, b in sizes]

    ((*found,),) = run_ranks(count_all, cases, world_size=1)

    launches = {size: sum(counts.values()) for size, (counts, _) in zip(sizes, found, strict=True)}
    # 16 rows: 4 micro-batches of 4, or 2 of 8. Differences of differences separate the parts.
    more = {layers: launches[layers, 4] - launches[layers, 8] for layers in (2, 3)}
    per_layer = (more[3] - more[2]) / 2
    per_micro_batch = more[2] / 2 - 2 * per_layer
    per_step = launches[2, 8] - more[2]
    detail = "\n".join(f"{number} {name}" for name, number in found[0][0].most_common())
    assert per_layer <= MOST_PER_LAYER[dropout], detail
    assert per_micro_batch <= MOST_PER_MICRO_BATCH[dropout], detail
    assert per_step <= MOST_PER_STEP, detail
    # Where a random stream is forked, megatron-core compares the state of the host's generator.
    of_host = {"aten._local_scalar_dense"} if dropout > 0.0 else set()
    for (_, micro_batch), (_, answers) in zip(sizes, found, strict=True):
        assert {*answers} == of_host
        assert answers.total() == (16 // micro_batch if dropout > 0.0 else 0)
