"""Clauses of docs/numerics.md that speak of compiled code: one module for each, through the whole of TVM."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import whet
from tests.backends.tvm.one_op import graph_of, run
from tests.ir.samples import Sample


class Mixed(nn.Module):
    """Every kind of sum that R3 leaves the order of: convolution, linear, softmax, normalization, mean."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 24, 3, padding=1)
        self.norm = nn.LayerNorm(24)
        self.query, self.value = nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.norm(self.conv(x).flatten(2).transpose(1, 2))
        weights = torch.softmax(self.query(rows) @ rows.transpose(1, 2), dim=2)
        return (weights @ self.value(rows)).mean(1)


# numerics: R3
def test_a_bundle_gives_the_same_bits_every_time(tmp_path: Path) -> None:
    x = torch.randn(2, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    compiled = whet.optimize(Mixed().eval(), target="x86", example_inputs=(x,))
    compiled.save(tmp_path / "mixed.whet")
    first = compiled(x)
    loaded = [whet.load(tmp_path / "mixed.whet") for _ in range(2)]
    for again in (compiled, *loaded):
        for _ in range(5):
            assert torch.equal(torch.as_tensor(again(x)), first)


_X = torch.cat([torch.linspace(-80, 80, 4001), torch.randn(2000) * 1e-3, torch.tensor([0.0, 88.0, -87.0])])
_POSITIVE = torch.cat([torch.logspace(-30, 30, 3001), torch.linspace(0.5, 2, 1001)])
_INSIDE = torch.linspace(-0.999, 0.999, 2001)
_TURNS = torch.cat([torch.linspace(-(2**13), 2**13, 4001), torch.linspace(-10, 10, 2001)])
TRANSCENDENTAL: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "exp": (torch.exp, _X),
    "expm1": (torch.expm1, _X),
    "log": (torch.log, _POSITIVE),
    "log2": (torch.log2, _POSITIVE),
    "log10": (torch.log10, _POSITIVE),
    "log1p": (torch.log1p, _POSITIVE),
    "tanh": (torch.tanh, _X),
    "sigmoid": (torch.sigmoid, _X),
    "silu": (torch.nn.functional.silu, _X),
    "erf": (torch.erf, _X),
    "sin": (torch.sin, _TURNS),
    "cos": (torch.cos, _TURNS),
    "asin": (torch.asin, _INSIDE),
    "acos": (torch.acos, _INSIDE),
    "atan": (torch.atan, _X),
    "sinh": (torch.sinh, _X),
    "cosh": (torch.cosh, _X),
    "asinh": (torch.asinh, _X),
    "atanh": (torch.atanh, _INSIDE),
    "gelu": (torch.nn.functional.gelu, _X),
    "softplus": (torch.nn.functional.softplus, _X),
    "log_sigmoid": (torch.nn.functional.logsigmoid, _X),
    "mish": (torch.nn.functional.mish, _X),
    "elu": (torch.nn.functional.elu, _X),
}


@pytest.fixture(scope="module")
def transcendental() -> dict[str, Tensor]:
    """What compiled code makes of the samples of each function."""
    outputs, _ = run(*graph_of([Sample(name, (x,)) for name, (_, x) in TRANSCENDENTAL.items()]))
    return dict(zip(TRANSCENDENTAL, outputs, strict=True))


# numerics: R6
@pytest.mark.parametrize("name", TRANSCENDENTAL)
def test_transcendental_functions_are_this_near(name: str, transcendental: dict[str, Tensor]) -> None:
    function, x = TRANSCENDENTAL[name]
    exact = function(x.double())
    finite = exact.abs() < torch.finfo(torch.float32).max
    error = (transcendental[name].double() - exact).abs() / exact.abs().clamp_min(1)
    worst = error[finite].argmax()
    assert float(error[finite].max()) <= 2**-20, f"{name}({x[finite][worst]})"


# numerics: R6
def test_powers_are_this_near() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(4000, generator=generator) * 20 + 0.01
    y = torch.rand(4000, generator=generator) * 12 - 6
    (out,), _ = run(*graph_of([Sample("pow", (x, y))]))
    exact = x.double() ** y.double()
    assert float(((out.double() - exact).abs() / exact.clamp_min(1)).max()) <= 2**-16


DIVISIONS: dict[str, Callable[[int, int], int]] = {
    "floor_div": lambda x, y: x // y,
    "remainder": lambda x, y: x % y,
    "trunc_div": lambda x, y: abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1),
    "fmod": lambda x, y: abs(x) % abs(y) * (-1 if x < 0 else 1),
}
_DIVIDED = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def _operands(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Every pair of small numbers and numbers at both ends of the type; no divisor of 0, no quotient beyond the end."""
    limits = torch.iinfo(dtype)
    near = [*range(max(limits.min, -9), 10), limits.min, limits.min + 1, limits.max - 1, limits.max]
    values = list(dict.fromkeys(near))
    pairs = [(x, y) for x in values for y in values if y and not (limits.min < 0 and x == limits.min and y == -1)]
    left, right = zip(*pairs, strict=True)
    return torch.tensor(left, dtype=dtype), torch.tensor(right, dtype=dtype)


@pytest.fixture(scope="module")
def divisions() -> dict[tuple[str, torch.dtype], Tensor]:
    """What compiled code makes of each division of each type."""
    cases = [(name, dtype) for name in DIVISIONS for dtype in _DIVIDED]
    outputs, _ = run(*graph_of([Sample(name, _operands(dtype)) for name, dtype in cases]))
    return dict(zip(cases, outputs, strict=True))


# numerics: I2
@pytest.mark.parametrize("dtype", _DIVIDED, ids=str)
@pytest.mark.parametrize("name", DIVISIONS)
def test_integer_division(name: str, dtype: torch.dtype, divisions: dict[tuple[str, torch.dtype], Tensor]) -> None:
    pairs = zip(*(item.tolist() for item in _operands(dtype)), strict=True)
    assert divisions[name, dtype].tolist() == [DIVISIONS[name](x, y) for x, y in pairs]


class Quotients(nn.Module):
    """True divisions of integers of each type."""

    def forward(self, *operands: Tensor) -> tuple[Tensor, ...]:
        return tuple(x / y for x, y in zip(operands[::2], operands[1::2], strict=True))


# numerics: I2
def test_true_division_of_integers_is_one_of_f32() -> None:
    operands = [item for dtype in _DIVIDED for item in _operands(dtype)]
    compiled = whet.optimize(Quotients().eval(), target="x86", example_inputs=tuple(operands))
    for out, x, y in zip(compiled(*operands), operands[::2], operands[1::2], strict=True):
        assert torch.equal(out, x.float() / y.float())
