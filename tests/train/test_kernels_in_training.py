"""Training steps on the attention kernels, in Triton's interpreter, and without them."""

from dataclasses import replace

import pytest

from glm_dist.model.attention import dispatch
from glm_dist.parallel.cpu import enable_cpu
from tests.ranks import run_ranks
from tests.train.grid import Case, Trace, build_engine, train_cases
from tests.train.test_layout_grid import TOLERANCE, differences

pytest.importorskip("triton", reason="Triton has no build for this machine")

PLAIN = Case(micro_batch=8, layers=2)
DROPPING = replace(PLAIN, dropout=0.2)


def train_on_kernels(cases: list[Case]) -> list[Trace]:
    """Train one step with the kernels on CPU tensors; in a process of its own."""
    dispatch.has_kernels = lambda *_, **__: True
    return train_cases(cases, 1)


def test_a_step_on_the_kernels_equals_torch_and_other_layouts() -> None:
    (torch_only,) = run_ranks(train_cases, [PLAIN], 1, world_size=1)[0]
    plain, dropping = run_ranks(train_on_kernels, [PLAIN, DROPPING], world_size=1)[0]
    (halves,) = run_ranks(
        train_on_kernels, [replace(DROPPING, tp=2, recompute="selective")], world_size=2
    )[0]

    assert max(differences(plain, torch_only)) <= TOLERANCE
    assert abs(plain.losses[0] - dropping.losses[0]) > 1e-3  # dropout is felt
    assert max(differences(halves, dropping)) <= TOLERANCE


def origins(case: Case) -> list[list[int]]:
    """Layer and first head of this rank's attention modules."""
    enable_cpu()
    modules = build_engine(case).model.modules()
    return [m.origin.tolist() for m in modules if isinstance(m, dispatch.PrefixAttention)]


def test_layers_and_heads_have_their_numbers_in_the_whole_model() -> None:
    # Four layers of four heads.
    slices = run_ranks(origins, Case(tp=2), world_size=2)
    stages = run_ranks(origins, Case(pp=2, vp=2), world_size=2)

    assert slices == [[[layer, head] for layer in range(4)] for head in (0, 2)]
    assert stages == [[[0, 0], [2, 0]], [[1, 0], [3, 0]]]
