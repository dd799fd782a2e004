"""Whole functions that TVM once refused or computed wrong; each case is named after the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import whet
from whet.errors import InputError

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 2e-3}


@dataclass(frozen=True)
class Case:
    """A function and what it is called with."""

    name: str
    function: Callable[..., Any]
    inputs: tuple[Tensor, ...]


class Function(nn.Module):
    """A function as a model."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def _floats(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _integers(*shape: int, low: int = -5, high: int = 6) -> Tensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(sum(shape)))


def _mask(*shape: int) -> Tensor:
    return _integers(*shape) > 0


def _outer_mask(x: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    return torch.where(rows & columns, x, -x)


def _compared(x: Tensor, y: Tensor) -> Tensor:
    return torch.where((x > 0) | (x == y), x, y).to(torch.float32) + ((x > 1) ^ (y < 2))


def _softplus_of_product(weight: Tensor, x: Tensor, bias: Tensor) -> Tensor:
    return F.softplus(weight @ x + bias)


CASES = (
    Case(
        "a bool that a vector loop binds", _outer_mask, (_floats(2, 1, 24, 24), _mask(1, 1, 24, 1), _mask(2, 1, 1, 24))
    ),
    Case("comparisons that a vector loop binds", _compared, (_floats(3, 16), _floats(1, 16))),
    Case(
        "a name bound where not all its uses are",
        _softplus_of_product,
        (_floats(128, 4), _floats(2, 4, 24), _floats(128, 1)),
    ),
    Case(
        "an exponential of one number",
        lambda x, y: torch.log(torch.exp(x - y)).add(y).to(torch.int64),
        (_floats(), _floats()),
    ),
    Case(
        "no vector form beside bound names",
        lambda x, y: F.mish(torch.atan2(x, y)),
        (_floats(2, 3, 16), _floats(2, 1, 16)),
    ),
    Case(
        "a comparison that simplifies away",
        lambda x: torch.where((x > x) | (x == x), x * 2, x).atan(),
        (_floats(2, 16),),
    ),
    Case("a scan of nothing", lambda x: torch.cumprod(x, 0), (_floats(0),)),
    Case("an empty input that is read", lambda x, y: torch.cat([x, y], 1).sum(1), (_floats(3, 0), _floats(3, 2))),
    Case("the mean of nothing", lambda x: x[:, :0].mean(1), (_floats(3, 4),)),
    Case("the variance of one", lambda x: x.var(1), (_floats(3, 1),)),
    Case("a quotient by the number zero", lambda x: (x / 0.0, torch.floor_divide(x, -0.0)), (_floats(3, 5),)),
    Case("powers of integers without dimensions", torch.pow, (torch.tensor(3), torch.tensor(4))),
    Case("a linear layer of a vector", F.linear, (_floats(7), _floats(5, 7), _floats(5))),
    Case("a bool as bfloat16", lambda x: ((x > 0) | (x < -3)).to(torch.bfloat16) + (x > 1), (_integers(3, 16),)),
    Case("float16 as bfloat16", lambda x: x.to(torch.bfloat16) + 1, (_floats(3, 16).half(),)),
    Case(
        "attention of operands with other ranks",
        F.scaled_dot_product_attention,
        (_floats(4, 3, 8), _floats(2, 4, 6, 8), _floats(2, 4, 6, 8)),
    ),
    Case(
        "statistics of a layer norm",
        lambda x: torch.native_layer_norm(x, [2, 5], None, None, 1e-5),
        (_floats(3, 2, 5),),
    ),
    Case(
        "statistics of a group norm",
        lambda x: torch.native_group_norm(x, None, None, 2, 4, 6, 2, 1e-5),
        (_floats(2, 4, 6),),
    ),
)


@pytest.mark.filterwarnings("ignore:var\\(\\). degrees of freedom")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_compiled_code_computes_what_eager_does(case: Case) -> None:
    model = Function(case.function)
    compiled = whet.optimize(model, target="x86", example_inputs=case.inputs)

    actual, expected = compiled(*case.inputs), model(*case.inputs)

    pairs = zip(actual, expected, strict=True) if isinstance(expected, tuple) else [(actual, expected)]
    for got, want in pairs:
        tolerance = TOLERANCES.get(want.dtype, 0)
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize(
    ("function", "dimension", "sizes", "wrong", "why"),
    [
        (
            lambda x: x.view(x.shape[0] // 4, 4, -1).sum(1),
            4 * torch.export.Dim("n", max=16),
            (8, 20),
            10,
            r"no size makes 4\*n equal to 10",
        ),
        (
            lambda x: x.flatten(0, 1) + 1,
            torch.export.Dim("n", min=2, max=64) + 5,
            (9, 30),
            4,
            "n = -1 is not allowed",
        ),
    ],
    ids=["a multiple", "a sum"],
)
def test_symbols_that_no_argument_has_alone(
    function: Callable[[Tensor], Tensor], dimension: Any, sizes: tuple[int, int], wrong: int, why: str
) -> None:
    """Relax binds no variable by a dimension that is an expression of it."""
    model = Function(function)
    compiled = whet.optimize(
        model, target="x86", example_inputs=(_floats(sizes[0], 3, 2),), dynamic_shapes=(({0: dimension},),)
    )
    for size in sizes:
        x = _floats(size, 3, 2)
        torch.testing.assert_close(compiled(x), model(x))
    with pytest.raises(InputError, match=why):
        compiled(_floats(wrong, 3, 2))
