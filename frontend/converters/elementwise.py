"""Elementwise operators: type promotion first, then one operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from whet.frontend.context import Context, Number, Operand
from whet.ir.graph import Value
from whet.ir.types import DType

aten = torch.ops.aten


def _unary(name: str) -> Callable[..., Value]:
    """f(x) computed in the result's dtype (integers become floats where torch says so)."""

    def convert(c: Context, x: Value, *_: Any) -> Value:
        result: Value = getattr(c, name)(c.cast(x, c.dtype))
        return result

    return convert


def _predicate(name: str) -> Callable[..., Value]:
    """f(x) with a bool result, computed in x's dtype."""

    def convert(c: Context, x: Value, *_: Any) -> Value:
        result: Value = getattr(c, name)(x)
        return result

    return convert


def _binary(name: str) -> Callable[..., Value]:
    """f(x, y) computed in the result's dtype."""

    def convert(c: Context, x: Operand, y: Operand, *_: Any) -> Value:
        result: Value = getattr(c, name)(c.operand(x, c.dtype), c.operand(y, c.dtype))
        return result

    return convert


def _comparison(name: str) -> Callable[..., Value]:
    """f(x, y) with a bool result, computed in the promoted dtype of the operands."""

    def convert(c: Context, x: Operand, y: Operand, *_: Any) -> Value:
        result: Value = getattr(c, name)(*c.promote(x, y))
        return result

    return convert


def _logical(name: str) -> Callable[..., Value]:
    """f(x, y) on truth values."""

    def convert(c: Context, x: Value, y: Value, *_: Any) -> Value:
        result: Value = getattr(c, name)(c.cast(x, DType.BOOL), c.cast(y, DType.BOOL))
        return result

    return convert


def _scaled(name: str) -> Callable[..., Value]:
    """f(x, alpha · y): torch's add and sub."""

    def convert(c: Context, x: Operand, y: Operand, alpha: Operand = 1) -> Value:
        right = c.operand(y, c.dtype)
        if alpha != 1:
            right = c.mul(right, c.operand(alpha, c.dtype))
        if c.dtype is DType.BOOL:
            result: Value = c.logical_or(c.operand(x, c.dtype), right)
        else:
            result = getattr(c, name)(c.operand(x, c.dtype), right)
        return result

    return convert


def _rsub(c: Context, x: Value, y: Operand, alpha: Operand = 1) -> Value:
    left = c.cast(x, c.dtype)
    if alpha != 1:
        left = c.mul(left, c.operand(alpha, c.dtype))
    result: Value = c.sub(c.operand(y, c.dtype), left)
    return result


def _mul(c: Context, x: Operand, y: Operand) -> Value:
    name = "logical_and" if c.dtype is DType.BOOL else "mul"
    return _binary(name)(c, x, y)


def _bitwise(name: str) -> Callable[..., Value]:
    """On bools a logical operation, on integers bit by bit."""

    def convert(c: Context, x: Operand, y: Operand) -> Value:
        family = "logical" if c.dtype is DType.BOOL else "bitwise"
        return _binary(f"{family}_{name}")(c, x, y)

    return convert


def _bitwise_not(c: Context, x: Value) -> Value:
    result: Value = c.logical_not(x) if c.dtype is DType.BOOL else c.bitwise_not(x)
    return result


def _logical_not(c: Context, x: Value) -> Value:
    result: Value = c.logical_not(c.cast(x, DType.BOOL))
    return result


def _div_mode(c: Context, x: Operand, y: Operand, rounding_mode: str | None) -> Value:
    name = {None: "div", "floor": "floor_div", "trunc": "trunc_div"}[rounding_mode]
    return _binary(name)(c, x, y)


def _where(c: Context, condition: Value, x: Operand, y: Operand) -> Value:
    result: Value = c.where(c.cast(condition, DType.BOOL), c.operand(x, c.dtype), c.operand(y, c.dtype))
    return result


def _masked_fill(c: Context, x: Value, mask: Value, value: Operand) -> Value:
    return _where(c, mask, value, x)


def _clamp(c: Context, x: Value, minimum: Operand | None = None, maximum: Operand | None = None) -> Value:
    """Bounds that are numbers become attributes; tensors and dimensions become maximum and minimum."""
    x = c.cast(x, c.dtype)
    plain = (int, float, type(None))
    if isinstance(minimum, plain) and isinstance(maximum, plain):
        result: Value = c.clamp(x, minimum=_number(c, minimum), maximum=_number(c, maximum))
        return result
    if minimum is not None:
        x = c.maximum(x, c.operand(minimum, c.dtype))
    if maximum is not None:
        x = c.minimum(x, c.operand(maximum, c.dtype))
    return x


def _number(c: Context, value: Number | None) -> Number | None:
    if value is None:
        return None
    return float(value) if c.dtype.is_float else int(value)


def _rounding(name: str) -> Callable[..., Value]:
    """Integers are whole already."""

    def convert(c: Context, x: Value) -> Value:
        result: Value = getattr(c, name)(x) if x.type.dtype.is_float else x
        return result

    return convert


def _relu6(c: Context, x: Value) -> Value:
    return _clamp(c, x, 0, 6)


def _relu(c: Context, x: Value) -> Value:
    result: Value = c.relu(x)
    return result


def _gelu(c: Context, x: Value, approximate: str = "none") -> Value:
    result: Value = c.gelu(x, approximate=approximate)
    return result


def _leaky_relu(c: Context, x: Value, slope: float = 0.01) -> Value:
    result: Value = c.leaky_relu(x, slope=float(slope))
    return result


def _elu(c: Context, x: Value, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> Value:
    result: Value = c.elu(x, alpha=float(alpha), scale=float(scale), input_scale=float(input_scale))
    return result


def _softplus(c: Context, x: Value, beta: float = 1, threshold: float = 20) -> Value:
    result: Value = c.softplus(x, beta=float(beta), threshold=float(threshold))
    return result


def _to_dtype(c: Context, x: Value, *_: Any) -> Value:
    return c.cast(x, c.dtype)


_UNARY = [
    "neg",
    "abs",
    "sign",
    "exp",
    "exp2",
    "expm1",
    "log",
    "log2",
    "log10",
    "log1p",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "tanh",
    "asinh",
    "acosh",
    "atanh",
    "erf",
    "erfc",
    "sigmoid",
    "ceil",
    "floor",
    "round",
    "trunc",
    "silu",
    "mish",
    "hardswish",
    "hardsigmoid",
]
_UNARY_DIRECT = {name: _unary(name) for name in _UNARY}
_ROUNDINGS = ("ceil", "floor", "round", "trunc")
_PREDICATES = ("isnan", "isinf", "isfinite")
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")

CONVERTERS: dict[Any, Callable[..., Any]] = {
    **{getattr(aten, name).default: converter for name, converter in _UNARY_DIRECT.items()},
    **{
        getattr(aten, name).default: _predicate(name) for name in _PREDICATES if hasattr(getattr(aten, name), "default")
    },
    **{getattr(aten, name).Tensor: _comparison(name) for name in _COMPARISONS},
    **{getattr(aten, name).Scalar: _comparison(name) for name in _COMPARISONS},
    **{getattr(aten, name).default: _rounding(name) for name in _ROUNDINGS},
    aten.relu.default: _relu,
    aten.relu6.default: _relu6,
    aten.hardtanh.default: _clamp,
    aten.clamp.default: _clamp,
    aten.clamp.Tensor: _clamp,
    aten.clamp_min.default: _clamp,
    aten.clamp_max.default: lambda c, x, maximum: _clamp(c, x, None, maximum),
    aten.gelu.default: _gelu,
    aten.leaky_relu.default: _leaky_relu,
    aten.elu.default: _elu,
    aten.softplus.default: _softplus,
    aten.add.Tensor: _scaled("add"),
    aten.add.Scalar: _scaled("add"),
    aten.sub.Tensor: _scaled("sub"),
    aten.sub.Scalar: _scaled("sub"),
    aten.rsub.Tensor: _rsub,
    aten.rsub.Scalar: _rsub,
    aten.mul.Tensor: _mul,
    aten.mul.Scalar: _mul,
    aten.div.Tensor: _binary("div"),
    aten.div.Scalar: _binary("div"),
    aten.div.Tensor_mode: _div_mode,
    aten.div.Scalar_mode: _div_mode,
    aten.floor_divide.default: _binary("floor_div"),
    aten.floor_divide.Scalar: _binary("floor_div"),
    aten.remainder.Tensor: _binary("remainder"),
    aten.remainder.Scalar: _binary("remainder"),
    aten.fmod.Tensor: _binary("fmod"),
    aten.fmod.Scalar: _binary("fmod"),
    aten.pow.Tensor_Tensor: _binary("pow"),
    aten.pow.Scalar: _binary("pow"),
    aten.atan2.default: _binary("atan2"),
    aten.maximum.default: _binary("maximum"),
    aten.minimum.default: _binary("minimum"),
    aten.max.other: _binary("maximum"),
    aten.min.other: _binary("minimum"),
    aten.logical_and.default: _logical("logical_and"),
    aten.logical_or.default: _logical("logical_or"),
    aten.logical_xor.default: _logical("logical_xor"),
    aten.logical_not.default: _logical_not,
    aten.bitwise_not.default: _bitwise_not,
    aten.bitwise_and.Tensor: _bitwise("and"),
    aten.bitwise_and.Scalar: _bitwise("and"),
    aten.bitwise_or.Tensor: _bitwise("or"),
    aten.bitwise_or.Scalar: _bitwise("or"),
    aten.bitwise_xor.Tensor: _bitwise("xor"),
    aten.bitwise_xor.Scalar: _bitwise("xor"),
    aten.where.self: _where,
    aten.where.ScalarOther: _where,
    aten.where.ScalarSelf: _where,
    aten.where.Scalar: _where,
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
    aten._to_copy.default: _to_dtype,
    aten.to.dtype: _to_dtype,
    aten.to.dtype_layout: _to_dtype,
    aten.to.device: _to_dtype,
    aten.to.other: _to_dtype,
    aten.type_as.default: _to_dtype,
}
