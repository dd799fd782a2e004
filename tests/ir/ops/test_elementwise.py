"""Elementwise operations: the integer clauses of the numerics contract, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.ir.ops.test_contraction import run
from tests.ir.samples import randint, randn
from whet.ir import DType, TensorType
from whet.ir.definition import InferError
from whet.ir.ops import CATALOGUE

INTEGERS = {torch.int8: 8, torch.uint8: 8, torch.int16: 16, torch.int32: 32}


def wrap(values: list[int], dtype: torch.dtype) -> list[int]:
    modulus = 1 << INTEGERS[dtype]
    low = 0 if dtype is torch.uint8 else -modulus // 2
    return [(value - low) % modulus + low for value in values]


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("op, function", [("add", int.__add__), ("sub", int.__sub__), ("mul", int.__mul__)])
def test_integer_arithmetic_wraps(dtype: torch.dtype, op: str, function: Any) -> None:  # numerics: I1
    info = torch.iinfo(dtype)
    x, y = (randint(info.min, info.max + 1, (500,), dtype) for _ in range(2))
    expected = wrap([function(a, b) for a, b in zip(x.tolist(), y.tolist(), strict=True)], dtype)
    assert run(op, x, y).tolist() == expected


def test_integer_division_rounds_as_its_name_says() -> None:  # numerics: I2
    x, y = torch.tensor([7, -7, 7, -7]), torch.tensor([2, 2, -2, -2])
    assert run("floor_div", x, y).tolist() == [3, -4, -4, 3]
    assert run("trunc_div", x, y).tolist() == [3, -3, -3, 3]
    assert run("remainder", x, y).tolist() == [1, 1, -1, -1]
    assert run("fmod", x, y).tolist() == [1, -1, 1, -1]


def test_shifts_beyond_the_width() -> None:  # numerics: I4
    amounts = torch.tensor([0, 1, 7, 8, 100, -1], dtype=torch.int8)
    x = torch.full((6,), -128, dtype=torch.int8)
    assert run("right_shift", x, amounts).tolist() == [-128, -64, -1, -1, -1, -1]
    assert run("left_shift", torch.ones(6, dtype=torch.int8), amounts).tolist() == [1, 2, -128, 0, 0, 0]
    unsigned = torch.tensor([0, 1, 7, 8, 100], dtype=torch.uint8)
    assert run("right_shift", torch.full((5,), 255, dtype=torch.uint8), unsigned).tolist() == [
        255,
        127,
        1,
        0,
        0,
    ]


def test_casts() -> None:  # numerics: I5, I7
    assert run("cast", torch.tensor([1.9, -1.9, 0.5]), dtype=DType.I32).tolist() == [1, -1, 0]
    assert run("cast", torch.tensor([300, -1, 128]), dtype=DType.I8).tolist() == [44, -1, -128]
    assert run("cast", torch.tensor([7, 8, -8, -9, 127, 16]), dtype=DType.I4).tolist() == [
        7,
        -8,
        -8,
        7,
        -1,
        0,
    ]
    assert run("cast", torch.tensor([0.0, 0.1, -2.0]), dtype=DType.BOOL).tolist() == [False, True, True]


def test_round_goes_to_even() -> None:  # numerics: R1
    assert run("round", torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5])).tolist() == [0, 2, 2, 0, -2]


@pytest.mark.parametrize(
    "op", ["relu", "gelu", "silu", "sigmoid", "hardswish", "leaky_relu", "elu", "softplus", "mish"]
)
def test_nan_passes_through_activations(op: str) -> None:  # numerics: R7
    assert torch.isnan(run(op, torch.tensor([float("nan")])))


def test_nan_passes_through_extremes() -> None:  # numerics: R7
    nan, one = torch.tensor([float("nan")]), torch.ones(1)
    for result in (
        run("maximum", nan, one),
        run("minimum", one, nan),
        run("clamp", nan, minimum=0.0, maximum=1.0),
    ):
        assert torch.isnan(result)
    assert not run("eq", nan, nan).item()
    assert run("ne", nan, nan).item()


def test_a_bound_of_none_does_not_bind() -> None:
    x = randn(5)
    assert torch.equal(run("clamp", x), x)
    assert run("clamp", x, maximum=-9.0).tolist() == [-9.0] * 5


BAD = [
    ("exp", [DType.I32], {}, "floating point"),
    ("div", [DType.I32, DType.I32], {}, "floating point"),
    ("add", [DType.I32, DType.F32], {}, "one dtype"),
    ("where", [DType.F32, DType.F32, DType.F32], {}, "bool"),
    ("where", [DType.BOOL, DType.F32, DType.F16], {}, "one dtype"),
    ("clamp", [DType.U8], {"minimum": 0.5}, "bound"),
    ("clamp", [DType.U8], {"minimum": -1}, "bound"),
    ("gelu", [DType.F32], {"approximate": "fast"}, "approximate"),
]


@pytest.mark.parametrize("op, dtypes, attributes, message", BAD)
def test_operands_that_do_not_fit_are_refused(
    op: str, dtypes: list[DType], attributes: dict[str, Any], message: str
) -> None:
    definition = CATALOGUE[op]
    with pytest.raises(InferError, match=message):
        types = [TensorType((2,), dtype) for dtype in dtypes]
        definition.result_types(types, definition.signature.with_defaults(attributes))


def test_shapes_that_do_not_broadcast_are_refused() -> None:
    with pytest.raises(InferError, match="do not broadcast: 2 against 3"):
        CATALOGUE["add"].result_types([TensorType((2,), DType.F32), TensorType((4, 3), DType.F32)], {})
