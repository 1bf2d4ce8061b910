"""Fused operations against the same definitions in fp64, run eagerly and compiled for the CPU."""

import shutil
from functools import partial

import pytest
import torch
from torch._dynamo.utils import counters

from glm_dist.model.fused import FusedPointwise
from glm_dist.model.fused_bodies import compiled
from glm_dist.model.main_gradient import ARRIVED, MAIN_GRADIENT
from tests.model.operations import (
    DTYPES,
    OPERATIONS,
    check_dropout,
    check_operation,
    inputs_of,
    results,
)

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")

COMPILED = {"gelu", "add_and_norm"}
"""Always compiled in tests; the others only in slow ones."""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_fused_operation_equals_its_definition(name: str, dtype: torch.dtype) -> None:
    with torch.compiler.set_stance("force_eager"):
        check_operation(name, dtype)


@needs_compiler
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param(
            name,
            dtype,
            marks=() if name in COMPILED and dtype is torch.bfloat16 else pytest.mark.slow,
        )
        for name in OPERATIONS
        for dtype in DTYPES
    ],
)
def test_a_compiled_operation_equals_its_definition(name: str, dtype: torch.dtype) -> None:
    check_operation(name, dtype)


def test_dropout_repeats_and_drops_as_many_as_it_should() -> None:
    with torch.compiler.set_stance("force_eager"):
        check_dropout()


@needs_compiler
def test_compiled_dropout_drops_the_same_numbers() -> None:
    with torch.compiler.set_stance("force_eager"):
        expected = check_dropout()

    assert torch.equal(check_dropout(), expected)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "sum_and_drop"])
def test_gradients_go_to_main_gradients_and_not_to_autograd(name: str) -> None:
    operation, fused = OPERATIONS[name], FusedPointwise()
    inputs = inputs_of(operation, torch.bfloat16)
    arrivals = []
    with torch.compiler.set_stance("force_eager"):
        expected = results(operation, fused, inputs)[-len(inputs) :]
        parameters = [x for x, shape in zip(inputs, operation.shapes, strict=True) if shape in "fg"]
        for parameter in parameters:
            setattr(parameter, MAIN_GRADIENT, torch.ones(parameter.shape))
            setattr(parameter, ARRIVED, lambda p=parameter: arrivals.append(p))
        outputs = operation.call(fused, *inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        generator = torch.Generator().manual_seed(6)
        weights = [torch.randn(x.shape, generator=generator).to(x) for x in outputs]
        torch.autograd.backward(outputs, weights)

    assert {id(p) for p in arrivals} == {id(p) for p in parameters}
    for x, gradient in zip(inputs, expected, strict=True):
        if any(x is parameter for parameter in parameters):
            assert x.grad is None
            found = getattr(x, MAIN_GRADIENT) - 1.0
            assert not torch.equal(found, found.bfloat16().float()), "rounded to 16 bits on its way"
            torch.testing.assert_close(found.bfloat16(), gradient, rtol=1e-2, atol=1e-6)
        else:
            assert torch.equal(x.grad, gradient)


def test_frozen_parameters_get_no_gradient() -> None:
    operation = OPERATIONS["add_and_norm"]
    inputs = inputs_of(operation, torch.float32)
    with torch.compiler.set_stance("force_eager"):
        expected = results(operation, FusedPointwise(), inputs)
        for frozen in (1, 3, 4):
            inputs[frozen].requires_grad_(False)
        found = operation.call(FusedPointwise(), *inputs)
        torch.autograd.backward(found, [torch.ones_like(x) for x in found])

    assert torch.equal(found[1], expected[1])
    assert [x.grad is not None for x in inputs] == [True, False, True, False, False]


@needs_compiler
def test_other_shapes_are_compiled_once_for_all() -> None:
    torch.compiler.reset()
    counters.clear()
    graphs = []
    for sizes in ((5, 3, 24), (6, 4, 24), (9, 2, 24), (7, 5, 24)):
        x, bias = inputs_of(OPERATIONS["gelu"], torch.float32, sizes=sizes)
        FusedPointwise().gelu(x, bias)
        graphs.append(counters["stats"]["unique_graphs"])

    assert graphs == [1, 2, 2, 2]


def test_forms_of_an_operation_stay_few_and_more_than_torch_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.compiler.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    compiled.cache_clear()
    monkeypatch.setattr("glm_dist.model.fused.FEW_ROWS", 0)
    pointwise = FusedPointwise()

    def run(sizes: tuple[int, int, int], dropout: float, *, learns: bool, frozen: bool) -> None:
        u, b, r, w, n = inputs_of(OPERATIONS["add_and_norm"], torch.float32, sizes=sizes)
        for x in (u, r):
            x.requires_grad_(learns)
        for x in (b, w, n):
            x.requires_grad_(not frozen)
        pointwise.add_and_norm(u, b, r, (w, n), eps=1e-5, alpha=1.0, dropout=dropout)

    forms = []
    for frozen in (False, True):
        for sizes in ((5, 3, 24), (6, 4, 24), (9, 1, 24), (7, 1, 24), (2, 3, 24)):
            for dropout in (0.5, 0.0):
                for learns in (True, False):
                    run(sizes, dropout, learns=learns, frozen=frozen)
        forms.append(counters["stats"]["unique_graphs"])
    compiled.cache_clear()

    # The first shape, all others, and those with one row; each with and without dropout.
    assert forms[0] == 3 * 2
    assert 8 < forms[1] <= 2 * forms[0]


def test_few_rows_without_gradients_are_not_compiled() -> None:
    x, bias = inputs_of(OPERATIONS["gelu"], torch.float32)
    counters.clear()
    with torch.no_grad():
        FusedPointwise().gelu(x, bias)

    assert counters["stats"]["unique_graphs"] == 0
