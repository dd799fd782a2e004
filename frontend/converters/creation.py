"""Operators that make tensors from numbers and shapes: full, ranges, identity matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch

from whet.frontend.context import Context, Operand
from whet.frontend.converters.common import aligned, iota, static
from whet.ir.graph import Value
from whet.ir.types import DType

aten = torch.ops.aten


def fill(c: Context, value: Operand) -> Value:
    """A tensor of the result's type, filled with a number, a dimension or the element of a tensor."""
    if isinstance(value, Value):
        spread: Value = c.broadcast_to(c.reshape_to(c.cast(value, c.dtype), ()), shape=c.shape)
        return spread
    result: Value = c.full(shape=c.shape, value=_as(c.dtype, value), dtype=c.dtype)
    return result


def _as(dtype: DType, value: Any) -> Any:
    if isinstance(value, sympy.Expr):
        return value
    if dtype is DType.BOOL:
        return bool(value)
    return float(value) if dtype.is_float else int(value)


def _constant_fill(value: float) -> Callable[..., Value]:
    """zeros, ones and empty of every kind; what torch leaves unset is zero here."""

    def convert(c: Context, *_: Any) -> Value:
        return fill(c, value)

    return convert


def _full(c: Context, _shape: Any, value: Operand, *_: Any) -> Value:
    return fill(c, value)


def _new_full(c: Context, _x: Value, _shape: Any, value: Operand, *_: Any) -> Value:
    return fill(c, value)


def _scalar_tensor(c: Context, value: Operand, *_: Any) -> Value:
    return c.operand(value, c.dtype)


def _arange(c: Context, end: Any, *_: Any) -> Value:
    return _range(c, 0, 1)


def _arange_start(c: Context, start: Any, end: Any, *_: Any) -> Value:
    return _range(c, start, 1)


def _arange_step(c: Context, start: Any, end: Any, step: Any = 1, *_: Any) -> Value:
    return _range(c, start, step)


def _range(c: Context, start: Any, step: Any) -> Value:
    """The result's type says how many elements."""
    start, step = _as(c.dtype, start), _as(c.dtype, step)
    result: Value = c.iota(length=c.shape[0], start=start, step=step, dtype=c.dtype)
    return result


def _eye(c: Context, *_: Any) -> Value:
    rows, columns = (aligned(c, iota(c, size), dim, 2) for dim, size in enumerate(c.shape))
    return c.cast(c.eq(rows, columns), c.dtype)


def _linspace(c: Context, start: Operand, end: Operand, steps: int, *_: Any) -> Value:
    return _spaced(c, start, end, c.dtype)


def _logspace(c: Context, start: Operand, end: Operand, steps: int, base: float = 10.0, *_: Any) -> Value:
    """Powers of the base with evenly spaced exponents."""
    low, high = _known(start), _known(end)
    if low is not None and high is not None:
        count = static(c, c.shape[0], "the number of steps")
        return c.builder.constant(torch.logspace(low, high, count, float(base), dtype=c.dtype.torch))
    wide = c.dtype if c.dtype.is_float else DType.F64
    exponents = _spaced(c, start, end, wide)
    return c.cast(c.pow(c.operand(float(base), wide), exponents), c.dtype)


def _spaced(c: Context, start: Operand, end: Operand, dtype: DType) -> Value:
    """Evenly from start to end; between numbers a constant, exactly torch's."""
    count = static(c, c.shape[0], "the number of steps")
    low, high = _known(start), _known(end)
    if low is not None and high is not None:
        return c.builder.constant(torch.linspace(low, high, count, dtype=dtype.torch))
    wide = dtype if dtype.is_float else DType.F64
    first, last = (c.reshape_to(c.operand(item, wide), ()) for item in (start, end))
    # counted from the nearer end, so that both are met exactly
    step = c.div(c.sub(last, first), float(max(count - 1, 1)))
    index = iota(c, count, wide)
    forward = c.add(c.mul(index, step), first)
    backward = c.sub(last, c.mul(c.sub(float(count - 1), index), step))
    near = c.lt(index, count / 2 if count > 1 else 1.0)
    return c.cast(c.where(near, forward, backward), dtype)


def _known(item: Operand) -> float | None:
    """The number, where it is one at compile time."""
    if isinstance(item, Value):
        return None if item.constant is None else item.constant.item()
    return item if isinstance(item, (int, float)) else None


def _triangle_indices(function: Callable[..., torch.Tensor]) -> Callable[..., Value]:
    def convert(c: Context, rows: int, columns: int, offset: int = 0, *_: Any) -> Value:
        return c.builder.constant(function(rows, columns, offset, dtype=c.dtype.torch))

    return convert


def _fill(c: Context, _x: Value, value: Operand) -> Value:
    return fill(c, value)


def _copy(c: Context, _x: Value, source: Value, *_: Any) -> Value:
    result: Value = c.broadcast_to(c.cast(source, c.dtype), shape=c.shape)
    return result


def _complete(name: str, overloads: Sequence[str]) -> list[Any]:
    return [getattr(getattr(aten, name), overload) for overload in overloads]


_ZEROS = [
    *_complete("zeros", ["default"]),
    *_complete("zeros_like", ["default"]),
    *_complete("new_zeros", ["default"]),
    *_complete("zero", ["default"]),
    *_complete("empty", ["memory_format"]),
    *_complete("empty_like", ["default"]),
    *_complete("empty_strided", ["default"]),
    *_complete("empty_permuted", ["default"]),
    *_complete("new_empty", ["default"]),
    *_complete("new_empty_strided", ["default"]),
]
_ONES = [
    *_complete("ones", ["default"]),
    *_complete("ones_like", ["default"]),
    *_complete("new_ones", ["default"]),
]

CONVERTERS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys(_ZEROS, _constant_fill(0)),
    **dict.fromkeys(_ONES, _constant_fill(1)),
    aten.full.default: _full,
    aten.full_like.default: _full,
    aten.new_full.default: _new_full,
    aten.fill.Scalar: _fill,
    aten.fill.Tensor: _fill,
    aten.copy.default: _copy,
    aten.scalar_tensor.default: _scalar_tensor,
    aten.arange.default: _arange,
    aten.arange.start: _arange_start,
    aten.arange.start_step: _arange_step,
    aten.eye.default: _eye,
    aten.eye.m: _eye,
    aten.linspace.default: _linspace,
    aten.linspace.Tensor_Tensor: _linspace,
    aten.linspace.Tensor_Scalar: _linspace,
    aten.linspace.Scalar_Tensor: _linspace,
    aten.logspace.default: _logspace,
    aten.logspace.Tensor_Tensor: _logspace,
    aten.logspace.Tensor_Scalar: _logspace,
    aten.logspace.Scalar_Tensor: _logspace,
    aten.tril_indices.default: _triangle_indices(torch.tril_indices),
    aten.triu_indices.default: _triangle_indices(torch.triu_indices),
}
