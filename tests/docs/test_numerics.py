"""The operations of the IR give the numbers that docs/numerics.md defines, bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from tests.docs.test_docs import ROOT, blocks
from whet.ir.ops.quantized import Dequantize, LinearInteger, Quantize, Requantize
from whet.ir.types import DType

CODES = [DType.U8, DType.I8, DType.I4]
EDGES = [0.0, -0.0, np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, 2**-126, 0.5, 1.5, 2.5, -0.5, -1.5]


@pytest.fixture(scope="module")
def contract() -> dict[str, Callable[..., Any]]:
    """The functions that the contract defines, by name."""
    namespace: dict[str, Any] = {}
    for _, code in blocks(ROOT / "docs" / "numerics.md"):
        exec(code, namespace)
    return namespace


def i32(value: int) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.int32)


def samples(scale: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Values over the whole range of codes, exact ties among them, and everything that is special."""
    random = np.random.default_rng(0).normal(0, 100, 4096)
    ties = np.arange(-300, 300) + 0.5
    with np.errstate(over="ignore"):
        scaled = np.concatenate([random, ties]).astype(np.float32) * np.float32(scale)
    return np.concatenate([scaled, np.array(EDGES, dtype=np.float32)])


# numerics: Q2, Q3
@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("scale", [1.0, 0.1, 0.0235294122248888, 3e-5, 2.0**-126, 2.0**126])
@pytest.mark.parametrize("zero_point", [0, 5, -3])
def test_quantize(contract: dict[str, Any], dtype: DType, scale: float, zero_point: int) -> None:
    if not dtype.integer_range[0] <= zero_point <= dtype.integer_range[1]:
        zero_point = 7
    x = samples(scale)
    expected = contract["quantize"](x, scale, zero_point, dtype.value)
    got = Quantize().evaluate(torch.from_numpy(x), torch.tensor(scale), i32(zero_point), dtype=dtype)
    np.testing.assert_array_equal(got.numpy(), expected)


# numerics: Q4
@pytest.mark.parametrize("zero_point", [0, 128, 255])
def test_dequantize(contract: dict[str, Any], zero_point: int) -> None:
    codes = np.arange(256, dtype=np.uint8)
    expected = contract["dequantize"](codes, 0.0137, zero_point)
    got = Dequantize().evaluate(torch.from_numpy(codes), torch.tensor(0.0137), i32(zero_point))
    np.testing.assert_array_equal(got.numpy(), expected)


# numerics: Q7
@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("multiplier", [1.0, 0.1, 0.00123, 1e-9])
def test_requantize(contract: dict[str, Any], dtype: DType, multiplier: float) -> None:
    random = np.random.default_rng(0).integers(-(2**31), 2**31, 4096)
    small = np.arange(-2000, 2000)
    acc = np.concatenate([random, small, [2**31 - 1, -(2**31), 2**24 + 1]]).astype(np.int32)
    expected = contract["requantize"](acc, multiplier, 3, dtype.value)
    got = Requantize().evaluate(torch.from_numpy(acc), torch.tensor(multiplier), i32(3), dtype=dtype)
    np.testing.assert_array_equal(got.numpy(), expected)


# numerics: Q5, Q6
def test_a_contraction_of_the_greatest_length_does_not_overflow(contract: dict[str, Any]) -> None:
    length = contract["longest"](255, 128)
    x = torch.full((1, length), 255, dtype=torch.uint8)
    weight = torch.full((1, length), -128, dtype=torch.int8)
    assert LinearInteger().evaluate(x, weight).item() == -255 * 128 * length


# numerics: Q5
def test_accumulators_wrap() -> None:
    x = torch.full((1, 65794), 255, dtype=torch.uint8)
    weight = torch.full((1, 65794), -128, dtype=torch.int8)
    assert LinearInteger().evaluate(x, weight).item() == -255 * 128 * 65794 + 2**32
