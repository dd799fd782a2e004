"""Quantized operations against loops over Python's integers and NumPy's float32 (docs/numerics.md, section
Q).
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.ir.ops.test_contraction import run
from tests.ir.samples import conv, randint
from whet.ir import DType, TensorType
from whet.ir.definition import InferError
from whet.ir.ops import CATALOGUE

TYPES = (DType.I8, DType.U8, DType.I4)


def zero(value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.int32)


@pytest.mark.parametrize("dtype", TYPES, ids=lambda item: item.value)
def test_quantize_rounds_saturates_and_maps_nan_to_zero(dtype: DType) -> None:  # numerics: Q2, Q3
    low, high = dtype.integer_range
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, 1e30, -1e30, float("inf"), -float("inf"), float("nan"), 3e38])
    result = run("quantize", x, torch.tensor(1.0), zero(2), dtype=dtype)
    clipped = [min(max(value + 2, low), high) for value in (0, 2, 2, 0, -2)]
    assert result.tolist() == [*clipped, high, low, high, low, 2, high]
    tiny = run("quantize", x[-1:], torch.tensor(0.1), zero(0), dtype=dtype)  # the product overflows
    assert tiny.tolist() == [high]


def test_quantize_multiplies_by_the_rounded_reciprocal() -> None:  # numerics: Q2
    x, scale = torch.randn(100_000) * 4, torch.tensor(0.03)
    expected = np.clip(np.rint(x.numpy() * (np.float32(1) / np.float32(0.03))) + 3, 0, 255)
    assert np.array_equal(run("quantize", x, scale, zero(3), dtype=DType.U8).numpy(), expected)


def test_codes_survive_the_round_trip_along_an_axis() -> None:  # numerics: Q4
    codes = torch.arange(-128, 128).to(torch.int8).expand(3, 256).contiguous()
    scales, points = torch.tensor([0.1, 0.003, 7.0]), torch.tensor([5, -7, 0], dtype=torch.int32)
    real = run("dequantize", codes, scales, points, axis=0)
    assert real.dtype is torch.float32
    assert torch.equal(run("quantize", real, scales, points, dtype=DType.I8, axis=0), codes)


def test_requantize_is_float32_arithmetic() -> None:  # numerics: Q7
    accumulator = randint(-(2**31), 2**31, (4, 5000), torch.int32)
    accumulator[0, :8] = torch.tensor([2**31 - 1, -(2**31), 5, 15, 25, -5, 2**24 + 1, 0])
    multiplier = torch.tensor([0.1, 1e-7, 3e-8, 1.0])
    result = run("requantize", accumulator, multiplier, zero(-3), dtype=DType.I8, axis=0)
    scaled = accumulator.numpy().astype(np.float32) * multiplier.numpy()[:, None]
    expected = np.clip(np.rint(scaled).astype(np.float64) - 3, -128, 127)
    assert np.array_equal(result.numpy(), expected)


def loops_conv(x: Tensor, w: Tensor, bias: Tensor, stride: int, padding: Any, groups: int, point: int) -> list[Any]:
    (n, _, height, width), (out, inner, kh, kw) = x.shape, w.shape
    (top, bottom), (left, right) = padding
    rows, columns = (height + top + bottom - kh) // stride + 1, (width + left + right - kw) // stride + 1
    xs, ws = x.tolist(), w.tolist()
    result = np.zeros((n, out, rows, columns), dtype=np.int64)
    for b, o, r, c in itertools.product(range(n), range(out), range(rows), range(columns)):
        total = int(bias[o])
        for i, u, v in itertools.product(range(inner), range(kh), range(kw)):
            row, column = r * stride + u - top, c * stride + v - left
            if 0 <= row < height and 0 <= column < width:
                total += (xs[b][o // (out // groups) * inner + i][row][column] - point) * ws[o][i][u][v]
        result[b, o, r, c] = total
    return result.tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("groups", [1, 2, 4])
def test_conv_integer_is_exact(signed: bool, groups: int) -> None:  # numerics: Q5, Q9
    dtype, point = (torch.int8, -128) if signed else (torch.uint8, 255)
    info = torch.iinfo(dtype)
    x, w = (
        randint(info.min, info.max + 1, (2, 4, 5, 4), dtype),
        randint(-128, 128, (4, 4 // groups, 3, 2), torch.int8),
    )
    bias, padding = randint(-(10**6), 10**6, (4,), torch.int32), ((1, 2), (0, 1))
    attributes = conv(2, stride=(2, 2), padding=padding, groups=groups, x_zero_point=point)
    result = run("conv_integer", x, w, bias, **attributes)
    assert result.tolist() == loops_conv(x, w, bias, 2, padding, groups, point)
    last = run("conv_integer", x.movedim(1, -1), w, bias, layout="channels_last", **attributes)
    assert torch.equal(last.movedim(-1, 1), result)


def test_long_sums_of_extremes_are_exact_and_wrap() -> None:  # numerics: Q5
    x, w = torch.full((1, 65793), 255, dtype=torch.uint8), torch.full((2, 65793), -128, dtype=torch.int8)
    w[1, 0] = -127
    sums = [-128 * 255 * 65793, -128 * 255 * 65793 + 255]
    assert run("linear_integer", x, w, None).tolist() == [sums]
    beyond = run("linear_integer", x, w, torch.tensor([-(2**31), 0], dtype=torch.int32))
    assert beyond.tolist() == [
        [(sums[0] - 2**31) % 2**32 - (2**32 if (sums[0] - 2**31) % 2**32 >= 2**31 else 0), sums[1]]
    ]


def test_matmul_integer_takes_both_zero_points() -> None:
    x, y = randint(0, 256, (2, 3, 6), torch.uint8), randint(-128, 128, (6, 4), torch.int8)
    expected = (x.long() - 17) @ (y.long() + 9)
    result = run("matmul_integer", x, y, x_zero_point=17, y_zero_point=-9)
    assert torch.equal(result, expected.to(torch.int32))


BAD = [
    ("quantize", [DType.F32, DType.F32, DType.I32], {"dtype": DType.I32}, "i8, u8 or i4"),
    ("quantize", [DType.I8, DType.F32, DType.I32], {"dtype": DType.I8}, "floats"),
    ("quantize", [DType.F32, DType.F32, DType.F32], {"dtype": DType.I8}, "zero_point"),
    ("quantize", [DType.F32, DType.F32, DType.I32], {"dtype": DType.I8, "axis": 2}, "outside"),
    ("requantize", [DType.I8, DType.F32, DType.I32], {"dtype": DType.I8}, "i32"),
    ("dequantize", [DType.I64, DType.F32], {}, "i8, u8, i4 or i32"),
]


@pytest.mark.parametrize("op, dtypes, attributes, message", BAD)
def test_operands_that_do_not_fit_are_refused(
    op: str, dtypes: list[DType], attributes: dict[str, Any], message: str
) -> None:
    definition = CATALOGUE[op]
    types = [TensorType((2, 3) if slot == 0 else (), dtype) for slot, dtype in enumerate(dtypes)]
    with pytest.raises(InferError, match=message):
        definition.result_types(types, definition.signature.with_defaults(attributes))


def test_float_operands_of_integer_contractions_are_refused() -> None:
    types = [TensorType((2, 3), DType.F32), TensorType((2, 3), DType.I8)]
    with pytest.raises(InferError, match="8-bit"):
        CATALOGUE["linear_integer"].result_types(types, {})
