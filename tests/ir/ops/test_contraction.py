"""Contractions against torch, and their costs against a hand count."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.ir.samples import conv, rand, randn, transposed
from whet.ir import Builder, DType, Graph, TensorType
from whet.ir.definition import InferError
from whet.ir.dimensions import symbol
from whet.ir.ops import CATALOGUE

CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def run(op: str, *operands: Tensor | None, **attributes: Any) -> Tensor:
    definition = CATALOGUE[op]
    complete = definition.signature.with_defaults(attributes)
    types = [None if item is None else TensorType.of(item) for item in operands]
    (type,) = definition.result_types(types, complete)
    result: Tensor = definition.evaluate(*operands, **complete)
    assert tuple(result.shape) == type.shape
    return result


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stride, padding, dilation", [(1, 0, 1), (2, 1, 1), (1, 2, 2), (3, 1, 2)])
def test_conv_is_torchs_in_both_layouts(spatial: int, groups: int, stride: int, padding: int, dilation: int) -> None:
    x, weight, bias = randn(2, 4, *(9, 8, 7)[:spatial]), randn(8, 4 // groups, *(3, 2, 3)[:spatial]), randn(8)
    expected = CONVOLUTIONS[spatial - 1](x, weight, bias, stride, padding, dilation, groups)
    attributes = conv(
        spatial,
        stride=(stride,) * spatial,
        padding=((padding, padding),) * spatial,
        dilation=(dilation,) * spatial,
    )
    torch.testing.assert_close(run("conv", x, weight, bias, groups=groups, **attributes), expected)
    last = run("conv", x.movedim(1, -1), weight, bias, groups=groups, layout="channels_last", **attributes)
    torch.testing.assert_close(last.movedim(-1, 1), expected)


def test_conv_pads_each_side_by_its_own_amount() -> None:
    x, weight = randn(1, 2, 5, 6), randn(3, 2, 3, 3)
    expected = F.conv2d(F.pad(x, (0, 3, 2, 1)), weight)
    torch.testing.assert_close(run("conv", x, weight, None, **conv(2, padding=((2, 1), (0, 3)))), expected)


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("stride, padding, output_padding, dilation", [(1, 0, 0, 1), (2, 1, 1, 1), (3, 2, 2, 2)])
def test_conv_transpose_is_torchs_in_both_layouts(
    spatial: int, groups: int, stride: int, padding: int, output_padding: int, dilation: int
) -> None:
    x, weight, bias = randn(2, 4, *(5, 4, 3)[:spatial]), randn(4, 8 // groups, *(3, 3, 4)[:spatial]), randn(8)
    expected = TRANSPOSED[spatial - 1](x, weight, bias, stride, padding, output_padding, groups, dilation)
    named = {"stride": stride, "padding": padding, "output_padding": output_padding, "dilation": dilation}
    attributes = transposed(spatial, **{key: (value,) * spatial for key, value in named.items()})
    torch.testing.assert_close(run("conv_transpose", x, weight, bias, groups=groups, **attributes), expected)
    moved = x.movedim(1, -1)
    last = run("conv_transpose", moved, weight, bias, groups=groups, layout="channels_last", **attributes)
    torch.testing.assert_close(last.movedim(-1, 1), expected)


MASKS = {
    "none": None,
    "bool": torch.tensor([[1, 1, 0, 0, 1], [0, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 1, 1, 1, 1]]).bool(),
    "float": torch.tensor([[0.5, -1.0, -math.inf, 2.0, 0.0]] * 4, dtype=torch.float64),
    "blind": torch.tensor([[0] * 5, [1] * 5, [0] * 5, [0, 1, 0, 0, 0]]).bool(),
    "blind-float": torch.tensor([[-math.inf] * 5, [0.0] * 5, [1.0] * 5, [-math.inf] * 5], dtype=torch.float64),
}


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize("groups", [4, 2, 1])
def test_attention_is_torchs(mask: Tensor | None, scale: float | None, groups: int) -> None:
    query, key, value = randn(2, 4, 4, 6), randn(2, groups, 5, 6), randn(2, groups, 5, 3)
    expected = F.scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=True)
    torch.testing.assert_close(run("attention", query, key, value, mask, scale=scale), expected)


@pytest.mark.parametrize("length", [3, 5, 8])
def test_causal_attention_is_torchs_where_lengths_differ(length: int) -> None:
    query, key, value = randn(2, 3, length, 4), randn(2, 3, 5, 4), randn(2, 3, 5, 4)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    torch.testing.assert_close(run("attention", query, key, value, None, causal=True), expected)
    both = run("attention", query, key, value, torch.ones(5, dtype=torch.bool), causal=True)
    torch.testing.assert_close(both, expected)


def test_attention_of_a_blind_row_is_zero_and_has_a_finite_gradient() -> None:
    query, key, value = (randn(1, 1, 2, 3).requires_grad_() for _ in range(3))
    for mask in (torch.tensor([[0, 0], [1, 0]]).bool(), torch.tensor([[-math.inf] * 2, [0.0] * 2]).double()):
        result = run("attention", query, key, value, mask)
        assert result[0, 0, 0].tolist() == [0.0, 0.0, 0.0]
        for gradient in torch.autograd.grad(result.sum(), (query, key, value)):
            assert torch.isfinite(gradient).all()


def test_attention_of_halves_accumulates_in_f32() -> None:  # numerics: R5
    query, key, value = (randn(2, 2, 64, 32).half() for _ in range(3))
    expected = run("attention", query.double(), key.double(), value.double())
    result = run("attention", query, key, value)
    assert result.dtype is torch.float16
    assert (result.double() - expected).norm() / expected.norm() < 5e-4


@pytest.mark.parametrize(
    "equation, shapes",
    [
        ("bij,bjk->bik", [(2, 3, 4), (2, 4, 5)]),
        ("ab,cb,cd->da", [(2, 3), (4, 3), (4, 5)]),
        ("ii->i", [(3, 3)]),
    ],
)
def test_einsum_is_torchs(equation: str, shapes: list[tuple[int, ...]]) -> None:
    operands = [randn(*shape) for shape in shapes]
    torch.testing.assert_close(run("einsum", *operands, equation=equation), torch.einsum(equation, *operands))


BAD = [
    ("linear", [(2, 3), (4, 5)], {}, "features"),
    ("linear", [(2, 3), (4, 3), (3,)], {}, "bias"),
    ("matmul", [(2, 3), (4, 5)], {}, "inner dimensions"),
    ("matmul", [(3,), (3, 5)], {}, "two dimensions"),
    ("conv", [(1, 3, 5, 5), (4, 2, 3, 3)], conv(2), "channels"),
    ("conv", [(1, 4, 5, 5), (5, 2, 3, 3)], conv(2, groups=2), "divide"),
    ("conv", [(1, 3, 2, 2), (4, 3, 3, 3)], conv(2), "larger"),
    ("conv", [(1, 3, 5, 5), (4, 3, 3, 3)], conv(2, layout="NCHW"), "layout"),
    ("conv", [(1, 3, 5, 5), (4, 3, 3, 3)], conv(1), "entries"),
    ("conv_transpose", [(1, 3, 5), (4, 3, 3)], transposed(1), "channels"),
    ("conv_transpose", [(1, 3, 5), (3, 3, 3)], transposed(2), "entries"),
    ("conv_transpose", [(1, 3, 1), (3, 3, 3)], transposed(1, padding=(2,)), "nothing"),
    ("einsum", [(2, 3), (3, 4)], {"equation": "ij,jk"}, "explicit"),
    ("einsum", [(2, 3), (4, 4)], {"equation": "ij,jk->ik"}, "two sizes"),
    ("einsum", [(2, 3)], {"equation": "ij->ijk"}, "no operand"),
    ("einsum", [(2, 3)], {"equation": "...j->j"}, "letters"),
    ("attention", [(2, 4, 5, 6), (2, 3, 7, 6), (2, 3, 7, 6)], {}, "divide"),
    ("attention", [(2, 4, 5, 6), (2, 2, 7, 6), (2, 4, 7, 6)], {}, "heads"),
    ("attention", [(4, 5, 6), (4, 7, 6), (4, 8, 6)], {}, "length"),
    ("attention", [(4, 5, 6), (4, 7, 6), (4, 7, 6), (2, 5, 7)], {}, "broadcast"),
]


@pytest.mark.parametrize("op, shapes, attributes, message", BAD)
def test_operands_that_do_not_fit_are_refused(
    op: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any], message: str
) -> None:
    definition = CATALOGUE[op]
    types = [TensorType(shape, DType.F32) for shape in shapes]
    with pytest.raises(InferError, match=message):
        definition.result_types(types, definition.signature.with_defaults(attributes))


def flops(op: str, *shapes: tuple[Any, ...], **attributes: Any) -> Any:
    builder = Builder(Graph())
    operation = builder.emit(op, [builder.input("x", TensorType(shape, DType.F32)) for shape in shapes], attributes)
    return operation.definition.cost(operation)


def test_costs_are_what_a_hand_counts() -> None:
    # [2, 3, 8] by [5, 8]: 6 rows of 5 sums of 8 products
    assert flops("linear", (2, 3, 8), (5, 8)).flops == 2 * 6 * 5 * 8
    assert flops("linear", (2, 3, 8), (5, 8)).bytes == 4 * (48 + 40 + 30)
    # ResNet's first convolution: 112 x 112 x 64 sums of 7 x 7 x 3 products, 118 million multiply-adds
    resnet = conv(2, stride=(2, 2), padding=((3, 3), (3, 3)))
    assert flops("conv", (1, 3, 224, 224), (64, 3, 7, 7), **resnet).flops == 2 * 118_013_952
    depthwise = conv(2, groups=32, padding=((1, 1), (1, 1)))
    assert flops("conv", (1, 32, 10, 10), (32, 1, 3, 3), **depthwise).flops == 2 * 32 * 100 * 9
    # 2 heads, 3 queries, 5 keys of 4, values of 6: scores 2*3*5*4, sums 2*3*6*5
    assert flops("attention", (2, 3, 4), (2, 5, 4), (2, 5, 6)).flops == 2 * (2 * 3 * 5 * 4 + 2 * 3 * 6 * 5)
    assert flops("matmul", (7, 2, 3), (3, 4)).flops == 2 * 7 * 2 * 3 * 4
    # each of 2 x 3 x 5 inputs meets 4 outputs x 3 taps
    assert flops("conv_transpose", (2, 3, 5), (3, 4, 3), **transposed(1)).flops == 2 * 2 * 3 * 5 * 4 * 3
    batch = symbol("s0")
    assert flops("linear", (batch, 8), (5, 8)).flops == 80 * batch


def test_linear_is_torchs() -> None:
    x, weight, bias = rand(2, 3, 4), randn(5, 4), randn(5)
    torch.testing.assert_close(run("linear", x, weight, bias), F.linear(x, weight, bias))
