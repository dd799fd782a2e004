"""Linear layers, matrix products and Einstein sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from whet.errors import CaptureError
from whet.frontend.context import Context, Number
from whet.ir.dimensions import Dim, same_dim
from whet.ir.graph import Value
from whet.ir.types import DType

aten = torch.ops.aten


def _linear(c: Context, x: Value, weight: Value, bias: Value | None = None) -> Value:
    """A weight of one dimension is a single row, whose dimension the result has not."""
    if weight.type.rank == 2:
        result: Value = c.linear(x, weight, bias)
        return result
    row = c.reshape(weight, shape=(1, *weight.type.shape))
    bias = None if bias is None else c.reshape(bias, shape=(1,))
    return c.reshape_to(c.linear(x, row, bias), c.shape)


def _matmul(c: Context, x: Value, y: Value) -> Value:
    """Vectors are matrices with one row or column, taken away again from the result."""
    left = c.reshape(x, shape=(1, x.type.shape[0])) if x.type.rank == 1 else x
    right = c.reshape(y, shape=(y.type.shape[0], 1)) if y.type.rank == 1 else y
    return c.reshape_to(c.matmul(left, right), c.shape)


def _product_into(c: Context, x: Value, y: Value, dtype: torch.dtype) -> Value:
    """mm and bmm whose factors are narrower than their result."""
    return _matmul(c, c.cast(x, c.dtype), c.cast(y, c.dtype))


def _add_scaled(c: Context, start: Value, product: Value, beta: Number, alpha: Number) -> Value:
    """beta · start + alpha · product. With beta 0 start does not count, not even its NaNs."""
    if alpha != 1:
        product = c.mul(product, c.operand(alpha, c.dtype))
    if beta == 0:
        return _broadcast(c, product)
    start = c.cast(start, c.dtype)
    if beta != 1:
        start = c.mul(start, c.operand(beta, c.dtype))
    return _broadcast(c, c.add(product, start))


def _broadcast(c: Context, x: Value) -> Value:
    result: Value = x if x.type.shape == c.shape else c.broadcast_to(x, shape=c.shape)
    return result


def _addmm(c: Context, start: Value, x: Value, y: Value, beta: Number = 1, alpha: Number = 1) -> Value:
    product: Value = c.matmul(x, y)
    return _add_scaled(c, start, product, beta, alpha)


def _addmv(c: Context, start: Value, matrix: Value, vector: Value, beta: Number = 1, alpha: Number = 1) -> Value:
    column = c.reshape(vector, shape=(*vector.type.shape, 1))
    product = c.reshape(c.matmul(matrix, column), shape=(matrix.type.shape[0],))
    return _add_scaled(c, start, product, beta, alpha)


def _addbmm(c: Context, start: Value, x: Value, y: Value, beta: Number = 1, alpha: Number = 1) -> Value:
    product: Value = c.einsum(x, y, equation="bij,bjk->ik")
    return _add_scaled(c, start, product, beta, alpha)


def _addr(c: Context, start: Value, x: Value, y: Value, beta: Number = 1, alpha: Number = 1) -> Value:
    """The outer product of two vectors."""
    product: Value = c.mul(*_column_and_row(c, x, y))
    return _add_scaled(c, start, product, beta, alpha)


def _outer(c: Context, x: Value, y: Value) -> Value:
    result: Value = c.mul(*_column_and_row(c, x, y))
    return result


def _column_and_row(c: Context, x: Value, y: Value) -> tuple[Value, Value]:
    column, row = c.cast(x, c.dtype), c.cast(y, c.dtype)
    return c.reshape(column, shape=(*x.type.shape, 1)), c.reshape(row, shape=(1, *y.type.shape))


def _bilinear(c: Context, x: Value, y: Value, weight: Value, bias: Value | None = None) -> Value:
    """result[..., o] = Σ_ij x[..., i] · weight[o, i, j] · y[..., j] + bias[o]."""
    lead = "abcdefgh"[: x.type.rank - 1]
    result: Value = c.einsum(x, weight, y, equation=f"{lead}i,oij,{lead}j->{lead}o")
    return result if bias is None else c.add(result, bias)


def _einsum(c: Context, equation: str, operands: Sequence[Value], path: Any = None) -> Value:
    terms, result = explicit_equation(equation, [operand.type.rank for operand in operands])
    sizes: dict[str, Dim] = {}
    for term, operand in zip(terms, operands, strict=True):
        for letter, size in zip(term, operand.type.shape, strict=True):
            if same_dim(sizes.setdefault(letter, size), 1):
                sizes[letter] = size
    fitted = [_without_ones(c, term, operand, sizes) for term, operand in zip(terms, operands, strict=True)]
    left = ",".join(term for term, _ in fitted)
    emitted: Value = c.einsum(*(c.cast(operand, c.dtype) for _, operand in fitted), equation=f"{left}->{result}")
    return emitted


def _grouped_mm(
    c: Context,
    x: Value,
    weight: Value,
    ends: Value | None,
    bias: Value | None = None,
    dtype: torch.dtype | None = None,
) -> Value:
    """Mixture of experts: rows ends[e - 1] ... ends[e] - 1 of x times weight[e], rows after the last end are zero.

    Every expert is applied to all rows and masked, which keeps all shapes fixed.
    """
    if ends is None or x.type.rank != 2 or weight.type.rank != 3:
        raise CaptureError(
            f"{c.target} at {c.builder.location} takes x {x.type} and weight {weight.type}: only rows of a "
            "matrix against a batch of weights are supported"
        )
    experts, rows = weight.type.shape[0], x.type.shape[0]
    products = c.matmul(c.reshape(x, shape=(1, *x.type.shape)), weight)
    row = c.reshape(c.iota(length=rows, dtype=DType.I64), shape=(1, rows, 1))
    ends = c.cast(ends, DType.I64)
    zero = c.full(shape=(1,), value=0, dtype=DType.I64)
    starts = c.concat(zero, c.slice(ends, starts=(0,), stops=(experts - 1,), steps=(1,)), axis=0)
    first, end = (c.reshape(edge, shape=(experts, 1, 1)) for edge in (starts, ends))
    mine = c.logical_and(c.ge(row, first), c.lt(row, end))
    result = c.sum(c.where(mine, products, c.builder.scalar(0.0, products.type.dtype)), dims=(0,))
    if bias is not None:
        result = c.add(result, bias)
    return c.cast(result, c.dtype)


def _without_ones(c: Context, term: str, operand: Value, sizes: dict[str, Dim]) -> tuple[str, Value]:
    """The operand without the dimensions of size 1 that stand for a longer one elsewhere."""
    pairs = list(zip(term, operand.type.shape, strict=True))
    kept = [(letter, size) for letter, size in pairs if same_dim(size, sizes[letter])]
    if len(kept) == len(pairs):
        return term, operand
    return "".join(letter for letter, _ in kept), c.reshape_to(operand, [size for _, size in kept])


def explicit_equation(equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Terms and result of an Einstein sum, with letters for every dimension that an ellipsis stands for."""
    left, arrow, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    hidden = [rank - len(term) + 3 if "..." in term else 0 for term, rank in zip(terms, ranks, strict=True)]
    free = [letter for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz" if letter not in equation]
    letters = "".join(free[: max(hidden, default=0)])
    if not arrow:
        plain = left.replace("...", "").replace(",", "")
        right = ("..." if "..." in left else "") + "".join(sorted(x for x in set(plain) if plain.count(x) == 1))
    expanded = [term.replace("...", letters[len(letters) - count :]) for term, count in zip(terms, hidden, strict=True)]
    return expanded, right.replace("...", letters)


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.linear.default: _linear,
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _addmm,
    aten.addbmm.default: _addbmm,
    aten.addmv.default: _addmv,
    aten.addr.default: _addr,
    aten.outer.default: _outer,
    aten.ger.default: _outer,
    aten.mm.default: _matmul,
    aten.mm.dtype: _product_into,
    aten.bmm.default: _matmul,
    aten.bmm.dtype: _product_into,
    aten.mv.default: _matmul,
    aten.dot.default: _matmul,
    aten.vdot.default: _matmul,
    aten.matmul.default: _matmul,
    aten.linalg_matmul.default: _matmul,
    aten.einsum.default: _einsum,
    aten.bilinear.default: _bilinear,
    aten._grouped_mm.default: _grouped_mm,
}
BY_NAME: dict[str, Callable[..., Any]] = {"transformers.grouped_mm_fallback.default": _grouped_mm}
