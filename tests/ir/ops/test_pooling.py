"""Pooling against torch: every mix of kernel, stride, padding, dilation, ceil mode and layout."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.ir.ops.test_contraction import run
from tests.ir.samples import randint, randn
from whet.ir.dimensions import substitute, symbol
from whet.ir.ops.contraction import window_size
from whet.ir.ops.pooling import windows

MAXIMUM: tuple[Any, ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
AVERAGE: tuple[Any, ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
WINDOWS = [
    (size, kernel, stride, padding)
    for size, kernel, stride, padding in itertools.product((5, 6, 7), (2, 3), (1, 2, 3, 4), (0, 1))
]


def check_both_layouts(op: str, x: Tensor, expected: Tensor, **attributes: Any) -> None:
    torch.testing.assert_close(run(op, x, **attributes), expected)
    last = run(op, x.movedim(1, -1), layout="channels_last", **attributes)
    torch.testing.assert_close(last.movedim(-1, 1), expected)


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("size, kernel, stride, padding", WINDOWS)
def test_max_pool_is_torchs(size: int, kernel: int, stride: int, padding: int, ceil: bool) -> None:
    for dilation in (1, 2):
        if dilation * (kernel - 1) + 1 > size + 2 * padding:
            continue
        x = randn(2, 3, size, 8)
        expected = F.max_pool2d(x, (kernel, 2), (stride, 3), (padding, 1), (dilation, 1), ceil)
        check_both_layouts(
            "max_pool", x, expected, kernel=(kernel, 2), stride=(stride, 3),
            padding=((padding, padding), (1, 1)), dilation=(dilation, 1), ceil=ceil,
        )  # fmt: skip


@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("count_padding", [False, True])
@pytest.mark.parametrize("size, kernel, stride, padding", WINDOWS)
def test_avg_pool_is_torchs(size: int, kernel: int, stride: int, padding: int, ceil: bool, count_padding: bool) -> None:
    x = randn(2, 3, size, 8)
    for divisor in (None, 3):
        expected = F.avg_pool2d(x, (kernel, 2), (stride, 3), (padding, 1), ceil, count_padding, divisor)
        check_both_layouts(
            "avg_pool", x, expected, kernel=(kernel, 2), stride=(stride, 3),
            padding=((padding, padding), (1, 1)), ceil=ceil, count_padding=count_padding, divisor=divisor,
        )  # fmt: skip


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_pooling_in_each_number_of_dimensions(spatial: int) -> None:
    x, kernel, stride = randn(2, 3, *(8, 7, 6)[:spatial]), (3, 2, 3)[:spatial], (2, 1, 3)[:spatial]
    window = {"kernel": kernel, "stride": stride, "padding": ((1, 1),) * spatial}
    ones = (1,) * spatial
    check_both_layouts("max_pool", x, MAXIMUM[spatial - 1](x, kernel, stride, 1), dilation=ones, **window)
    check_both_layouts("avg_pool", x, AVERAGE[spatial - 1](x, kernel, stride, 1), **window)
    size = (3, 4, 2)[:spatial]
    adaptive: tuple[Any, ...] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
    check_both_layouts("adaptive_avg_pool", x, adaptive[spatial - 1](x, size), size=size)


def test_windows_hold_their_taps_in_row_major_order() -> None:
    x = torch.arange(2 * 3 * 4 * 5, dtype=torch.float64).reshape(1, 1, 6, 4, 5)
    taps = windows(x, (2, 3, 2), (1, 1, 2), ((0, 0),) * 3, (1, 1, 1), False, 0.0)
    assert taps.shape == (1, 1, 5, 2, 2, 12)
    assert taps[0, 0, 4, 1, 1].tolist() == x[0, 0, 4:6, 1:4, 2:4].flatten().tolist()


def test_max_pool_of_integers_pads_with_their_least_value() -> None:  # numerics: Q9
    x = randint(-128, 128, (1, 2, 5, 5), torch.int8)
    expected = F.max_pool2d(x.double(), 3, 2, 1).to(torch.int8)
    window = {"kernel": (3, 3), "stride": (2, 2), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
    assert torch.equal(run("max_pool", x, **window), expected)


@pytest.mark.parametrize("ceil", [False, True])
def test_a_symbolic_size_counts_windows_as_a_static_one(ceil: bool) -> None:
    for kernel, stride, low, high, dilation in itertools.product((2, 3), (1, 2, 3), (0, 1), (0, 1), (1, 2)):
        symbolic = window_size(symbol("s0"), kernel, stride, (low, high), dilation, ceil)
        for size in range(5, 12):
            static = window_size(size, kernel, stride, (low, high), dilation, ceil)
            assert substitute(symbolic, {"s0": size}) == static
