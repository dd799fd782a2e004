"""Elementwise operators: type promotion, integers, truth values, special numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.frontend.operators import Function, check, integers, operations, randn

X, Y = randn(2, 3), randn(2, 3, seed=1)
POSITIVE = X.abs() + 0.1
UNIT = torch.linspace(-0.9, 0.9, 7)
INTEGERS, OTHERS = integers(2, 3), integers(2, 3, seed=1)
NONZERO = torch.where(OTHERS == 0, 3, OTHERS)
TRUTH, OTHER_TRUTH = INTEGERS > 0, OTHERS > 0
SPECIAL = torch.tensor([-math.inf, -1.5, -0.0, 0.0, 2.5, math.inf, math.nan])
COLUMN = SPECIAL[:, None]

UNARY = [
    "abs acos asin asinh atan ceil cos cosh deg2rad erf erfc exp exp2 expm1 floor frac isfinite isinf isnan",
    "isneginf isposinf logical_not nan_to_num neg positive angle rad2deg reciprocal relu round sgn sigmoid sign",
    "signbit sin sinc sinh square tan tanh trunc",
]
POSITIVE_UNARY = "log log10 log1p log2 rsqrt sqrt logit"
BINARY = [
    "add sub mul div atan2 copysign fmax",
    "fmin maximum minimum hypot logaddexp logaddexp2 xlogy",
]
COMPARISONS = "eq ne lt le gt ge isclose"
ACTIVATIONS = {
    "celu": lambda x: F.celu(x, 1.5),
    "elu": lambda x: F.elu(x, 0.7),
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "glu": lambda x: F.glu(x[:, :2], 1),
    "hardshrink": F.hardshrink,
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "hardtanh": F.hardtanh,
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "logsigmoid": F.logsigmoid,
    "mish": F.mish,
    "prelu": lambda x: F.prelu(x, torch.tensor([0.1, 0.2, 0.3])),
    "relu6": F.relu6,
    "rrelu": lambda x: F.rrelu(x, training=False),
    "selu": F.selu,
    "silu": F.silu,
    "softplus": lambda x: F.softplus(x, 2.0, 1.0),
    "softshrink": F.softshrink,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "threshold": lambda x: F.threshold(x, 0.1, -3.0),
}


def _all_of(names: str, package: object = torch) -> Function:
    """Every function of the names on the first inputs, then on the next: one export serves them all."""
    functions = [getattr(package, name) for name in names.split()]

    def call(*inputs: Tensor) -> list[Tensor]:
        return [function(*inputs) for function in functions]

    return call


@pytest.mark.parametrize("names", UNARY)
def test_unary(names: str) -> None:
    """Finite and special numbers alike."""
    check(lambda x, y: [*_all_of(names)(x), *_all_of(names)(y)], UNIT, SPECIAL)


def test_unary_of_positive_numbers() -> None:
    check(_all_of(POSITIVE_UNARY), POSITIVE * 0.3)
    check(torch.special.entr, SPECIAL)


@pytest.mark.parametrize("names", BINARY)
def test_binary(names: str) -> None:
    """Every pair of special numbers too."""
    check(lambda x, y, z, w: [*_all_of(names)(x, y), *_all_of(names)(z, w)], X, Y, COLUMN, SPECIAL)


def test_comparison() -> None:
    call = _all_of(COMPARISONS)
    check(lambda x, y, z, w, i, j: [*call(x, y), *call(z, w), *call(i, j)], X, Y, COLUMN, SPECIAL, INTEGERS, OTHERS)


def test_activations() -> None:
    check(lambda x: [function(x) for function in ACTIVATIONS.values()], X * 3)


FORMULAS: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    "addcmul": (lambda x, y, z: torch.addcmul(x, y, z, value=0.5), (X, Y, POSITIVE)),
    "addcmul_integers": (lambda x, y: torch.addcmul(x, x, y, value=2), (INTEGERS, OTHERS)),
    "addcdiv": (lambda x, y, z: torch.addcdiv(x, y, z, value=2), (X, Y, POSITIVE)),
    "lerp": (lambda x, y, w: [x.lerp(y, 0.3), x.lerp(y, 0.8), x.lerp(y, w)], (X, Y, POSITIVE)),
    "clamp": (lambda x: [x.clamp(-0.5, 0.5), x.clamp(min=0), x.clamp(max=0.1), x.clip(1, 0)], (X,)),
    "clamp_tensors": (
        lambda x, y, z: [x.clamp(y, z), x.clamp_min(y), x.clamp_max(z)],
        (X, -POSITIVE, POSITIVE),
    ),
    "clamp_integers": (lambda x: [x.clamp(-2, 3), x.clamp(min=-1.5)], (INTEGERS,)),
    "add_alpha": (lambda x, y: [x.add(y, alpha=2), x.sub(y, alpha=3), torch.rsub(x, y, alpha=2)], (X, Y)),
    "pow": (lambda x, y: [x**2, x**3, x**0.5, x**-0.5, x**-1, x**y, 2**x, x**1.7], (POSITIVE, Y)),
    "pow_integers": (lambda x: [x**2, x**3, x**5], (INTEGERS,)),
    "floor_division": (
        lambda i, j, x, y: [
            i // j,
            i % j,
            torch.fmod(i, j),
            torch.div(i, j, rounding_mode="trunc"),
            x // y,
            x % y,
        ],
        (INTEGERS, NONZERO, X, Y),
    ),
    "division_by_numbers": (lambda i: [i // 3, i // -3, i % 3, i % -3, i / 2], (INTEGERS,)),
    "true_division": (lambda i, j: [i / j, i.div(2), i.div(j, rounding_mode="floor")], (INTEGERS, NONZERO)),
    "shifts": (
        lambda i, s: [i << s, i >> s, i << 2, i >> 1, 1 << s],
        (INTEGERS, integers(2, 3, low=0, high=5)),
    ),
    "bits": (lambda i, j: [i & j, i | j, i ^ j, ~i, i & 3], (INTEGERS, OTHERS)),
    "truth": (lambda p, q: [p & q, p | q, p ^ q, ~p, p + q, p * q, p == q, p < q], (TRUTH, OTHER_TRUTH)),
    "logical": (
        lambda i, x: [torch.logical_and(i, x), torch.logical_or(i, x), torch.logical_xor(i, x)],
        (INTEGERS, X),
    ),
    "where": (
        lambda p, x, y: [torch.where(p, x, y), torch.where(p, x, 0.0), torch.where(p, 1, y)],
        (TRUTH, X, Y),
    ),
    "masked_fill": (
        lambda x, p, v: [x.masked_fill(p, -1e9), x.masked_fill(p, v)],
        (X, TRUTH, torch.tensor(3.0)),
    ),
    "heaviside": (torch.heaviside, (SPECIAL, torch.tensor(0.5))),
    "nan_to_num": (
        lambda x: [torch.nan_to_num(x, 1.0, 2.0, -2.0), torch.nan_to_num(x, posinf=9.0)],
        (SPECIAL,),
    ),
    "round_decimals": (lambda x: [x.round(decimals=2), (x * 1000).round(decimals=-2)], (X,)),
    "logit": (lambda x: [torch.logit(x), torch.logit(x, 0.1)], (POSITIVE * 0.3,)),
    "ldexp": (torch.ldexp, (X, INTEGERS)),
    "float_power": (lambda x: torch.float_power(x, 2), (X,)),
    "casts": (
        lambda x, p: [
            (x * 9).to(torch.int64),
            (x * 9).to(torch.int8),
            x.bool(),
            p.float(),
            p.long(),
            x.double(),
        ],
        (X, TRUTH),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name: str) -> None:
    function, inputs = FORMULAS[name]
    check(function, *inputs)


PROMOTIONS: dict[str, tuple[Tensor, Tensor]] = {
    "integer and float": (INTEGERS, X),
    "bool and integer": (TRUTH, INTEGERS),
    "float and double scalar": (X, torch.tensor(2.0, dtype=torch.float64)),
    "integer and float scalar": (INTEGERS, torch.tensor(2.5)),
    "narrow and wide integer": (INTEGERS.to(torch.int8), OTHERS.to(torch.int32)),
    "unsigned and signed": (INTEGERS.abs().to(torch.uint8), OTHERS.to(torch.int8)),
    "half and float": (X.half(), Y),
    "bfloat16 and integer": (X.bfloat16(), INTEGERS),
    "scalars": (torch.tensor(3), torch.tensor(0.5)),
}


@pytest.mark.parametrize("name", PROMOTIONS)
def test_promotion(name: str) -> None:
    """Operands of two dtypes, in both orders, in arithmetic, comparison and choice."""
    check(
        lambda x, y: [x + y, y * 2 + x, x * y, x < y, torch.maximum(x, y), torch.where(x > y, x, y)],
        *PROMOTIONS[name],
    )


def test_promotion_with_numbers() -> None:
    """A Python number changes the kind of a tensor, not its width."""
    check(lambda i, x: [i + 1.5, i * 2, x.half() + 2, i.to(torch.int8) + 100, i > 1.5, i < True], INTEGERS, X)


def test_scalars_and_empty_tensors() -> None:
    empty = torch.empty(0, 3)
    check(lambda x, y, z: [x + y, x.exp(), y * x, z + x, z.exp(), z > 0], torch.tensor(2.0), X, empty)


def test_operands_that_are_not_contiguous() -> None:
    check(lambda x, y: [x + y.t(), x.t().exp(), x[:, ::2] * 2], randn(3, 4).t(), randn(3, 4, seed=2))


def test_dropout_is_nothing() -> None:
    graph = check(lambda x: F.dropout(x, 0.5, training=False), X)
    assert operations(graph) == []


def test_small_powers_are_products() -> None:
    assert operations(check(lambda x: x**2, X)) == ["mul"]
