"""Linear layers, matrix products, convolutions and attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from whet.errors import CaptureError
from whet.frontend.context import Context
from whet.ir.graph import Value

aten = torch.ops.aten


def _linear(c: Context, x: Value, weight: Value, bias: Value | None = None) -> Value:
    result: Value = c.linear(x, weight, bias)
    return result


def _addmm(c: Context, bias: Value, x: Value, y: Value, beta: float = 1, alpha: float = 1) -> Value:
    product: Value = c.matmul(x, y)
    if alpha != 1:
        product = c.mul(product, float(alpha) if c.dtype.is_float else alpha)
    if beta != 1:
        bias = c.mul(bias, float(beta) if c.dtype.is_float else beta)
    result: Value = c.add(product, bias)
    return result


def _matmul(c: Context, x: Value, y: Value) -> Value:
    """Vectors are matrices with one row or column, taken away again from the result."""
    left = c.reshape(x, shape=(1, x.type.shape[0])) if x.type.rank == 1 else x
    right = c.reshape(y, shape=(y.type.shape[0], 1)) if y.type.rank == 1 else y
    return c.reshape_to(c.matmul(left, right), c.shape)


def _einsum(c: Context, equation: str, operands: Sequence[Value], path: Any = None) -> Value:
    result: Value = c.einsum(*operands, equation=_explicit(equation, operands))
    return result


def _explicit(equation: str, operands: Sequence[Value]) -> str:
    """The equation with its result written, and with letters for every dimension that an ellipsis stands for."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    free = [chr(code) for code in range(ord("A"), ord("Z") + 1) if chr(code) not in equation]
    longest = max(
        (operand.type.rank - len(term) + 3 for term, operand in zip(terms, operands, strict=True) if "..." in term),
        default=0,
    )
    letters = "".join(free[:longest])
    if not arrow:
        plain = left.replace("...", "").replace(",", "")
        right = ("..." if "..." in left else "") + "".join(sorted(x for x in set(plain) if plain.count(x) == 1))
    expanded = []
    for term, operand in zip(terms, operands, strict=True):
        hidden = operand.type.rank - len(term) + 3 if "..." in term else 0
        expanded.append(term.replace("...", letters[longest - hidden :]))
    return ",".join(expanded) + "->" + right.replace("...", letters)


def _pairs(values: Sequence[int] | int, spatial: int) -> tuple[tuple[int, int], ...]:
    return tuple((value, value) for value in spread(values, spatial))


def spread(values: Sequence[int] | int, spatial: int) -> tuple[int, ...]:
    """One number for each spatial dimension; a single number stands for all."""
    items = [values] if isinstance(values, int) else list(values)
    return tuple(int(item) for item in (items * spatial if len(items) == 1 else items))


def _with_batch(c: Context, x: Value, rank: int, compute: Callable[[Value], Value]) -> Value:
    """Run `compute` on a batch of one where the call had no batch dimension."""
    if x.type.rank == rank:
        return compute(x)
    return c.reshape_to(compute(c.reshape(x, shape=(1, *x.type.shape))), c.shape)


def _conv(
    c: Context,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
) -> Value:
    spatial = weight.type.rank - 2
    dilation = spread(dilation, spatial)
    pairs = _same_padding(weight, dilation) if padding == "same" else _pairs(0, spatial)
    if not isinstance(padding, str):
        pairs = _pairs(padding, spatial)

    def compute(batch: Value) -> Value:
        result: Value = c.conv(
            batch, weight, bias, stride=spread(stride, spatial), padding=pairs, dilation=dilation, groups=groups
        )
        return result

    return _with_batch(c, x, weight.type.rank, compute)


def _same_padding(weight: Value, dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    totals = [step * (int(size) - 1) for size, step in zip(weight.type.shape[2:], dilation, strict=True)]
    return tuple((total // 2, total - total // 2) for total in totals)


def _conv_transpose(
    c: Context,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> Value:
    spatial = weight.type.rank - 2

    def compute(batch: Value) -> Value:
        result: Value = c.conv_transpose(
            batch,
            weight,
            bias,
            stride=spread(stride, spatial),
            padding=spread(padding, spatial),
            output_padding=spread(output_padding, spatial),
            dilation=spread(dilation, spatial),
            groups=groups,
        )
        return result

    return _with_batch(c, x, weight.type.rank, compute)


def _convolution(
    c: Context,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Value:
    if transposed:
        return _conv_transpose(c, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _conv(c, x, weight, bias, stride, padding, dilation, groups)


def _attention(
    c: Context,
    query: Value,
    key: Value,
    value: Value,
    mask: Value | None = None,
    dropout: float = 0.0,
    causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    if dropout:
        raise CaptureError(f"scaled_dot_product_attention with dropout {dropout}: call model.eval() first")
    if mask is not None and mask.type.dtype.is_float:
        mask = c.cast(mask, query.type.dtype)
    result: Value = c.attention(query, key, value, mask, causal=causal, scale=None if scale is None else float(scale))
    return result


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _addmm,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.matmul.default: _matmul,
    aten.einsum.default: _einsum,
    aten.conv1d.default: _conv,
    aten.conv2d.default: _conv,
    aten.conv3d.default: _conv,
    aten.conv1d.padding: _conv,
    aten.conv2d.padding: _conv,
    aten.conv3d.padding: _conv,
    aten.conv_transpose1d.default: _conv_transpose,
    aten.conv_transpose2d.input: _conv_transpose,
    aten.conv_transpose3d.input: _conv_transpose,
    aten.convolution.default: _convolution,
    aten.scaled_dot_product_attention.default: _attention,
}
