"""Elementwise operators that are a formula over simpler operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from whet.frontend.context import Context, Operand
from whet.frontend.converters.common import unsupported
from whet.ir.graph import Value
from whet.ir.types import DType

aten = torch.ops.aten


def _zero(c: Context, x: Value) -> Value:
    return c.operand(0, x.type.dtype)


def _log_sigmoid(c: Context, x: Value) -> Value:
    result: Value = c.log_sigmoid(x)
    return result


def _log_sigmoid_forward(c: Context, x: Value) -> tuple[Value, None]:
    """The second result is a buffer of the gradient."""
    return _log_sigmoid(c, x), None


def _square(c: Context, x: Value) -> Value:
    x = c.cast(x, c.dtype)
    result: Value = c.mul(x, x)
    return result


def _power(c: Context, x: Value, exponent: Operand) -> Value:
    """Small exponents as products and roots, as torch computes them."""
    x = c.cast(x, c.dtype)
    special: dict[Any, Callable[[Value], Value]] = {
        2: lambda v: c.mul(v, v),
        3: lambda v: c.mul(c.mul(v, v), v),
    }
    if c.dtype.is_float:
        special |= {0.5: c.sqrt, -0.5: c.rsqrt, -1: c.reciprocal}
    if isinstance(exponent, (int, float)) and exponent in special:
        return special[exponent](x)
    result: Value = c.pow(x, c.operand(exponent, c.dtype))
    return result


def _addcmul(c: Context, x: Value, first: Value, second: Value, value: Operand = 1) -> Value:
    """x + value · first · second."""
    product = c.mul(c.cast(first, c.dtype), c.cast(second, c.dtype))
    return _add_scaled(c, x, product, value)


def _addcdiv(c: Context, x: Value, first: Value, second: Value, value: Operand = 1) -> Value:
    """x + value · first / second."""
    quotient = c.div(c.cast(first, c.dtype), c.cast(second, c.dtype))
    return _add_scaled(c, x, quotient, value)


def _add_scaled(c: Context, x: Value, term: Value, value: Operand) -> Value:
    if value != 1:
        term = c.mul(term, c.operand(value, c.dtype))
    result: Value = c.add(c.cast(x, c.dtype), term)
    return result


def _lerp(c: Context, start: Value, end: Value, weight: Operand) -> Value:
    """start + weight · (end - start), computed from the nearer end, so that weight 1 gives `end` itself."""
    span = c.sub(end, start)
    if isinstance(weight, (int, float)):
        near = c.add(start, c.mul(span, float(weight)))
        far = c.sub(end, c.mul(span, 1.0 - weight))
        nearer: Value = near if abs(weight) < 0.5 else far
        return nearer
    weight = c.operand(weight, c.dtype)
    near = c.add(start, c.mul(span, weight))
    far = c.sub(end, c.mul(span, c.sub(c.operand(1, c.dtype), weight)))
    result: Value = c.where(c.lt(c.abs(weight), 0.5), near, far)
    return result


def _nan_to_num(
    c: Context, x: Value, nan: float | None = None, above: float | None = None, below: float | None = None
) -> Value:
    if not x.type.dtype.is_float:
        return x
    limits = torch.finfo(x.type.dtype.torch)
    infinity = c.operand(math.inf, x.type.dtype)
    x = c.where(c.isnan(x), c.operand(0.0 if nan is None else nan, x.type.dtype), x)
    greatest = c.operand(limits.max if above is None else above, x.type.dtype)
    least = c.operand(limits.min if below is None else below, x.type.dtype)
    result: Value = c.where(c.eq(x, infinity), greatest, c.where(c.eq(x, c.neg(infinity)), least, x))
    return result


def _hypot(c: Context, x: Value, y: Value) -> Value:
    """sqrt(x² + y²), with the greater factored out, so that no square overflows."""
    x, y = c.abs(c.cast(x, c.dtype)), c.abs(c.cast(y, c.dtype))
    greater, lesser = c.maximum(x, y), c.minimum(x, y)
    ratio = c.div(lesser, c.where(c.eq(greater, _zero(c, greater)), c.operand(1, c.dtype), greater))
    length = c.mul(greater, c.sqrt(c.add(c.mul(ratio, ratio), 1.0)))
    # an infinite side makes the length infinite, even where the other is no number
    result: Value = c.where(c.logical_or(c.isinf(x), c.isinf(y)), c.operand(math.inf, c.dtype), length)
    return result


def _signbit(c: Context, x: Value) -> Value:
    """Whether x is below zero, negative zero included; the sign of a NaN is not looked at."""
    if x.type.dtype is DType.BOOL:
        never: Value = c.logical_and(x, c.logical_not(x))
        return never
    below: Value = c.lt(x, _zero(c, x))
    if not x.type.dtype.is_float:
        return below
    negative_zero = c.logical_and(c.eq(x, _zero(c, x)), c.lt(c.reciprocal(x), _zero(c, x)))
    result: Value = c.logical_or(below, negative_zero)
    return result


def _copysign(c: Context, x: Value, sign: Operand) -> Value:
    size = c.abs(c.cast(x, c.dtype))
    result: Value = c.where(_signbit(c, c.operand(sign, c.dtype)), c.neg(size), size)
    return result


def _sinc(c: Context, x: Value) -> Value:
    """sin(πx) / (πx), 1 at 0."""
    scaled = c.mul(c.cast(x, c.dtype), math.pi)
    at_zero = c.eq(scaled, _zero(c, scaled))
    safe = c.where(at_zero, c.operand(1, c.dtype), scaled)
    result: Value = c.where(at_zero, c.operand(1, c.dtype), c.div(c.sin(safe), safe))
    return result


def _times_log(logarithm: str) -> Callable[..., Value]:
    """x · log(y), 0 where x is 0, unless y is NaN."""

    def convert(c: Context, x: Operand, y: Operand) -> Value:
        left, right = c.operand(x, c.dtype), c.operand(y, c.dtype)
        product = c.where(c.eq(left, _zero(c, left)), _zero(c, left), c.mul(left, getattr(c, logarithm)(right)))
        result: Value = c.where(c.isnan(right), right, product)
        return result

    return convert


def _log_add_exp(exp: str, log_of_one_plus: Callable[[Context, Value], Value]) -> Callable[..., Value]:
    """log(exp(x) + exp(y)) as the greater plus a correction; equal infinities are their own result."""

    def convert(c: Context, x: Value, y: Value) -> Value:
        left, right = c.cast(x, c.dtype), c.cast(y, c.dtype)
        gap = c.neg(c.abs(c.sub(left, right)))
        total = c.add(c.maximum(left, right), log_of_one_plus(c, getattr(c, exp)(gap)))
        equal = c.logical_and(c.isinf(left), c.eq(left, right))
        result: Value = c.where(equal, left, total)
        return result

    return convert


def _log1p(c: Context, x: Value) -> Value:
    result: Value = c.log1p(x)
    return result


def _log1p_base2(c: Context, x: Value) -> Value:
    result: Value = c.mul(c.log1p(x), 1 / math.log(2))
    return result


def _heaviside(c: Context, x: Value, at_zero: Value) -> Value:
    zero = _zero(c, x)
    result: Value = c.where(c.eq(x, zero), c.cast(at_zero, c.dtype), c.cast(c.gt(x, zero), c.dtype))
    return result


def _frac(c: Context, x: Value) -> Value:
    result: Value = c.sub(x, c.trunc(x))
    return result


def _scaled(factor: float) -> Callable[..., Value]:
    def convert(c: Context, x: Value) -> Value:
        result: Value = c.mul(c.cast(x, c.dtype), factor)
        return result

    return convert


def _round_decimals(c: Context, x: Value, decimals: int = 0) -> Value:
    if not x.type.dtype.is_float:
        return x
    if decimals == 0:
        result: Value = c.round(x)
        return result
    scale = 10.0 ** abs(decimals)
    if decimals > 0:
        result = c.div(c.round(c.mul(x, scale)), scale)
    else:
        result = c.mul(c.round(c.div(x, scale)), scale)
    return result


def _logit(c: Context, x: Value, epsilon: float | None = None) -> Value:
    x = c.cast(x, c.dtype)
    if epsilon is not None:
        x = c.clamp(x, minimum=float(epsilon), maximum=1.0 - float(epsilon))
    result: Value = c.log(c.div(x, c.sub(c.operand(1, c.dtype), x)))
    return result


def _entropy(c: Context, x: Value) -> Value:
    """-x · log(x), 0 at 0, -inf below."""
    x = c.cast(x, c.dtype)
    zero = _zero(c, x)
    inside = c.where(c.eq(x, zero), zero, c.neg(c.mul(x, c.log(x))))
    result: Value = c.where(c.lt(x, zero), c.operand(-math.inf, c.dtype), inside)
    return result


def _rrelu(
    c: Context,
    x: Value,
    _noise: Value,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    *_: Any,
) -> tuple[Value, None]:
    """Outside of training the slope is the mean of the bounds; the second result is unused noise."""
    if training:
        raise unsupported(c, "random slopes: call model.eval() first")
    return c.leaky_relu(x, slope=(float(lower) + float(upper)) / 2), None


def _rrelu_alone(c: Context, *arguments: Any) -> Value:
    return _rrelu(c, *arguments)[0]


def _angle(c: Context, x: Value) -> Value:
    """π below zero, 0 elsewhere: the angle of a real number in the complex plane."""
    x = c.cast(x, c.dtype)
    angle = c.where(c.lt(x, _zero(c, x)), c.operand(math.pi, c.dtype), _zero(c, x))
    result: Value = c.where(c.isnan(x), x, angle)
    return result


def _infinite(positive: bool) -> Callable[..., Value]:
    def convert(c: Context, x: Value) -> Value:
        if not x.type.dtype.is_float:
            never: Value = c.full(shape=c.shape, value=False, dtype=DType.BOOL)
            return never
        result: Value = c.eq(x, c.operand(math.inf if positive else -math.inf, x.type.dtype))
        return result

    return convert


def _shift(name: str) -> Callable[..., Value]:
    def convert(c: Context, x: Operand, y: Operand) -> Value:
        result: Value = getattr(c, name)(c.operand(x, c.dtype), c.operand(y, c.dtype))
        return result

    return convert


def _extreme_of_numbers(name: str) -> Callable[..., Value]:
    """fmax and fmin: a NaN gives way to a number."""

    def convert(c: Context, x: Value, y: Value) -> Value:
        left, right = c.cast(x, c.dtype), c.cast(y, c.dtype)
        if not c.dtype.is_float:
            extreme: Value = getattr(c, name)(left, right)
            return extreme
        both = getattr(c, name)(left, right)
        result: Value = c.where(c.isnan(left), right, c.where(c.isnan(right), left, both))
        return result

    return convert


CONVERTERS: dict[Any, Callable[..., Any]] = {
    aten.log_sigmoid.default: _log_sigmoid,
    aten.log_sigmoid_forward.default: _log_sigmoid_forward,
    aten.square.default: _square,
    aten.pow.Tensor_Scalar: _power,
    aten.addcmul.default: _addcmul,
    aten.addcdiv.default: _addcdiv,
    aten.lerp.Scalar: _lerp,
    aten.lerp.Tensor: _lerp,
    aten.nan_to_num.default: _nan_to_num,
    aten.hypot.default: _hypot,
    aten.signbit.default: _signbit,
    aten.copysign.Tensor: _copysign,
    aten.copysign.Scalar: _copysign,
    aten.sinc.default: _sinc,
    aten.special_sinc.default: _sinc,
    aten.xlogy.Tensor: _times_log("log"),
    aten.xlogy.Scalar_Other: _times_log("log"),
    aten.xlogy.Scalar_Self: _times_log("log"),
    aten.special_xlog1py.default: _times_log("log1p"),
    aten.special_xlog1py.other_scalar: _times_log("log1p"),
    aten.special_xlog1py.self_scalar: _times_log("log1p"),
    aten.logaddexp.default: _log_add_exp("exp", _log1p),
    aten.logaddexp2.default: _log_add_exp("exp2", _log1p_base2),
    aten.heaviside.default: _heaviside,
    aten.frac.default: _frac,
    aten.angle.default: _angle,
    aten.deg2rad.default: _scaled(math.pi / 180),
    aten.rad2deg.default: _scaled(180 / math.pi),
    aten.round.decimals: _round_decimals,
    aten.logit.default: _logit,
    aten.special_entr.default: _entropy,
    aten.isposinf.default: _infinite(positive=True),
    aten.isneginf.default: _infinite(positive=False),
    aten.rrelu_with_noise.default: _rrelu_alone,
    aten.rrelu_with_noise_functional.default: _rrelu,
    aten.bitwise_left_shift.Tensor: _shift("left_shift"),
    aten.bitwise_left_shift.Tensor_Scalar: _shift("left_shift"),
    aten.bitwise_left_shift.Scalar_Tensor: _shift("left_shift"),
    aten.bitwise_right_shift.Tensor: _shift("right_shift"),
    aten.bitwise_right_shift.Tensor_Scalar: _shift("right_shift"),
    aten.bitwise_right_shift.Scalar_Tensor: _shift("right_shift"),
    aten.__lshift__.Tensor: _shift("left_shift"),
    aten.__lshift__.Scalar: _shift("left_shift"),
    aten.__rshift__.Tensor: _shift("right_shift"),
    aten.__rshift__.Scalar: _shift("right_shift"),
    aten.fmax.default: _extreme_of_numbers("maximum"),
    aten.fmin.default: _extreme_of_numbers("minimum"),
}
