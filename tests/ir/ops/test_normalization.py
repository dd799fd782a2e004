"""Normalizations and reductions against torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.ir.ops.test_contraction import run
from tests.ir.samples import rand, randint, randn
from whet.ir import DType, TensorType
from whet.ir.definition import InferError
from whet.ir.ops import CATALOGUE


@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 5), (4, 6, 5, 3), (4, 6, 2, 3, 2)], ids=len)
@pytest.mark.parametrize("affine", [True, False])
def test_batch_and_group_norm_in_both_layouts(shape: tuple[int, ...], affine: bool) -> None:
    x, mean, variance = randn(*shape), randn(6), rand(6)
    weight, bias = (randn(6), randn(6)) if affine else (None, None)
    expected = F.batch_norm(x, mean, variance, weight, bias, eps=1e-3)
    result = run("batch_norm", x, mean, variance, weight, bias, epsilon=1e-3)
    torch.testing.assert_close(result, expected)
    last = x.movedim(1, -1)
    result = run("batch_norm", last, mean, variance, weight, bias, epsilon=1e-3, axis=len(shape) - 1)
    torch.testing.assert_close(result.movedim(-1, 1), expected)
    for groups in (1, 2, 3, 6):
        if len(shape) == 2 and groups == 6:
            continue  # single values: torch refuses them
        expected = F.group_norm(x, groups, weight, bias, 1e-3)
        torch.testing.assert_close(run("group_norm", x, weight, bias, groups=groups, epsilon=1e-3), expected)
        result = run("group_norm", last, weight, bias, groups=groups, epsilon=1e-3, layout="channels_last")
        torch.testing.assert_close(result.movedim(-1, 1), expected)


def test_instance_norm_is_a_group_norm_and_an_empty_batch_passes() -> None:
    x = randn(2, 3, 4, 5)
    torch.testing.assert_close(run("group_norm", x, None, None, groups=3), F.instance_norm(x))
    assert run("group_norm", x[:0], None, None, groups=3).shape == (0, 3, 4, 5)


def test_layer_and_rms_norm() -> None:
    x, weight, bias = randn(2, 3, 4, 5), randn(4, 5), randn(4, 5)
    result = run("layer_norm", x, weight, bias, rank=2, epsilon=1e-3)
    torch.testing.assert_close(result, F.layer_norm(x, (4, 5), weight, bias, 1e-3))
    torch.testing.assert_close(run("layer_norm", x, None, bias[0]), F.layer_norm(x, (5,), None, bias[0]))
    module = nn.RMSNorm(5, eps=1e-4, dtype=torch.float64)
    nn.init.normal_(module.weight)
    torch.testing.assert_close(run("rms_norm", x, module.weight, epsilon=1e-4), module(x))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)], ids=str)
def test_halves_are_rounded_once(dtype: torch.dtype, tolerance: float) -> None:  # numerics: R5
    x, weight, bias = randn(2, 8, 64).to(dtype), randn(8).to(dtype), randn(8).to(dtype)
    exact = F.group_norm(x.double(), 2, weight.double(), bias.double())
    result = run("group_norm", x, weight, bias, groups=2)
    assert result.dtype is dtype
    half_ulp = torch.finfo(dtype).eps / 2
    assert ((result.double() - exact).abs() <= half_ulp * exact.abs() * 1.01 + 1e-5).all()
    rows = randn(4, 4096).to(dtype)
    for op, attributes in (
        ("rms_norm", {}),
        ("layer_norm", {}),
        ("softmax", {"axis": 1}),
        ("mean", {"dims": (1,)}),
    ):
        exact = run(op, rows.double(), **attributes)
        error = (run(op, rows, **attributes).double() - exact).norm() / exact.norm()
        assert error < tolerance, op


def test_softmax_of_a_row_without_anything_is_nan() -> None:  # numerics: R8
    assert torch.isnan(run("softmax", torch.full((2,), -math.inf), axis=0)).all()


def test_reductions() -> None:
    x = randn(3, 4, 5)
    torch.testing.assert_close(run("prod", x, dims=(0, 2)), x.prod(2).prod(0))
    torch.testing.assert_close(run("var", x, dims=(0, 2), correction=0), x.var((0, 2), correction=0))
    assert torch.equal(run("amax", x, dims=(2, 0), keepdims=True), x.amax((2, 0), keepdim=True))
    assert torch.equal(run("sum", x, dims=()), x)
    assert run("sum", torch.tensor([100, 100], dtype=torch.int8), dims=(0,)).item() == -56  # numerics: I1
    flags = torch.tensor([[0, 3], [0, 0]], dtype=torch.uint8)
    assert run("any", flags, dims=(1,)).tolist() == [True, False]
    assert run("all", flags, dims=()).tolist() == [[False, True], [False, False]]


def test_the_first_of_equal_extremes_and_nan_win() -> None:  # numerics: R7
    nan = float("nan")
    assert run("argmax", torch.tensor([1.0, 3.0, 3.0]), dim=0).item() == 1
    assert run("argmin", torch.tensor([1, 0, 0]), dim=0).item() == 1
    assert run("argmax", torch.tensor([1.0, nan, 9.0, nan]), dim=0).item() == 1
    assert run("argmin", torch.tensor([1.0, nan, 9.0]), dim=0).item() == 1


def test_scans_keep_the_type() -> None:
    x = randint(-9, 9, (20,), torch.int8)
    assert run("cumsum", x, dim=0).tolist() == x.long().cumsum(0).to(torch.int8).tolist()


def test_integers_have_no_mean() -> None:
    for op, attributes in (("mean", {"dims": (0,)}), ("softmax", {"axis": 0})):
        definition = CATALOGUE[op]
        with pytest.raises(InferError, match="floating point"):
            definition.result_types([TensorType((3,), DType.I32)], definition.signature.with_defaults(attributes))
