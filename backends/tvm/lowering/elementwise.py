"""Elementwise operations: one scalar expression each, read through broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from whet.backends.tvm.kernels import math as fast
from whet.backends.tvm.kernels.math import expression_dtype as dtype_of
from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.ir.dimensions import same_dim
from whet.ir.graph import Operation, Value
from whet.ir.types import DType

Expression = Callable[..., Any]


def broadcast_index(value: Value, shape: Sequence[Any], index: Sequence[Any]) -> list[Any]:
    """Where an operand is read for one result element: trailing dimensions aligned, size one stays at zero."""
    shift = len(shape) - value.type.rank
    return [
        index[dim + shift] if same_dim(size, shape[dim + shift]) else tirx.IntImm("int64", 0)
        for dim, size in enumerate(value.type.shape)
    ]


def _lower(expression: Callable[[Operation], Expression]) -> Callable[..., te.Tensor]:
    """A lowering that computes `expression(operation)` of the operands' elements."""

    def lower(c: LoweringContext, operation: Operation) -> te.Tensor:
        result = operation.results[0].type
        function = expression(operation)
        operands = [value for value in operation.operands if value is not None]
        for value in operands:
            if c.number(value) is None:
                c.tensor(value)

        def element(*index: Any) -> Any:
            items = [c.read(value, broadcast_index(value, result.shape, index)) for value in operands]
            return function(*items)

        return te.compute(c.dims(result.shape), element, name=operation.name)

    return lower


def _plain(function: Expression) -> Callable[[Operation], Expression]:
    return lambda operation: function


def _const(x: Any, number: float) -> Any:
    return tirx.const(number, dtype_of(x))


def in_f32(function: Expression) -> Expression:
    """`function` computed in float32 where the operand is a 16-bit float (numerics contract)."""

    def widened(*operands: Any) -> Any:
        dtype = dtype_of(operands[0])
        if dtype not in ("float16", "bfloat16"):
            return function(*operands)
        return function(*(x.astype("float32") for x in operands)).astype(dtype)

    return widened


def _is_float(x: Any) -> bool:
    return "float" in dtype_of(x)


def select(condition: Any, x: Any, y: Any) -> Any:
    """Both sides are computed, so that the choice vectorizes."""
    return tirx.Select(condition, x, y)


def _relu(x: Any) -> Any:
    return maximum(x, _const(x, 0))


def maximum(x: Any, y: Any) -> Any:
    """The larger; NaN where either is (floats)."""
    return select(tirx.any(x > y, _nan(x)), x, y) if _is_float(x) else tirx.max(x, y)


def minimum(x: Any, y: Any) -> Any:
    """The smaller; NaN where either is (floats)."""
    return select(tirx.any(x < y, _nan(x)), x, y) if _is_float(x) else tirx.min(x, y)


def _nan(x: Any) -> Any:
    return x != x


def _sign(x: Any) -> Any:
    zero, one = _const(x, 0), _const(x, 1)
    positive = select(x > zero, one, zero)
    return positive if dtype_of(x).startswith(("uint", "bool")) else select(x < zero, _const(x, -1), positive)


def _abs(x: Any) -> Any:
    return tirx.abs(x)


def _floor_div(x: Any, y: Any) -> Any:
    return tirx.floor(x / y) if _is_float(x) else tirx.floordiv(x, y)


def _trunc_div(x: Any, y: Any) -> Any:
    return tirx.trunc(x / y) if _is_float(x) else tirx.truncdiv(x, y)


def _remainder(x: Any, y: Any) -> Any:
    """The sign of the divisor, as Python's %."""
    if not _is_float(x):
        return tirx.floormod(x, y)
    rest = tirx.fmod(x, y)
    zero = _const(x, 0)
    return select(tirx.all(rest != zero, (rest < zero) != (y < zero)), rest + y, rest)


def _fmod(x: Any, y: Any) -> Any:
    return tirx.fmod(x, y) if _is_float(x) else tirx.truncmod(x, y)


def _pow(x: Any, y: Any) -> Any:
    if not _is_float(x):
        return _integer_pow(x, y)
    if isinstance(y, tirx.FloatImm):
        special = _POWERS.get(float(y.value))
        if special is not None:
            return special(x)
    return tirx.pow(x, y)


def _integer_pow(x: Any, y: Any) -> Any:
    if not isinstance(y, tirx.IntImm) or int(y.value) < 0:
        wide = tirx.pow(x.astype("float64"), y.astype("float64"))
        return tirx.nearbyint(wide).astype(dtype_of(x))
    result, base, exponent = _const(x, 1), x, int(y.value)
    while exponent:
        result = result * base if exponent & 1 else result
        base, exponent = base * base, exponent >> 1
    return result


_POWERS: dict[float, Expression] = {
    0.0: lambda x: _const(x, 1),
    0.5: tirx.sqrt,
    1.0: lambda x: x,
    2.0: lambda x: x * x,
    3.0: lambda x: x * x * x,
    4.0: lambda x: (x * x) * (x * x),
    -0.5: lambda x: _const(x, 1) / tirx.sqrt(x),
    -1.0: lambda x: _const(x, 1) / x,
    -2.0: lambda x: _const(x, 1) / (x * x),
}


def _hardsigmoid(x: Any) -> Any:
    return minimum(maximum(x + _const(x, 3), _const(x, 0)), _const(x, 6)) / _const(x, 6)


def _softplus(operation: Operation) -> Expression:
    beta, threshold = operation.attributes["beta"], operation.attributes["threshold"]

    def expression(x: Any) -> Any:
        scaled = x * _const(x, beta)
        return select(scaled > _const(x, threshold), x, _softplus_of(scaled) / _const(x, beta))

    return in_f32(expression)


def _softplus_of(x: Any) -> Any:
    """log(1 + exp(x)) without overflow."""
    zero = _const(x, 0)
    return tirx.max(x, zero) + tirx.log1p(fast.exp(zero - tirx.abs(x)))


def _elu(operation: Operation) -> Expression:
    alpha, scale, input_scale = (operation.attributes[key] for key in ("alpha", "scale", "input_scale"))

    def expression(x: Any) -> Any:
        zero = _const(x, 0)
        negative = tirx.min(x, zero) * _const(x, input_scale)
        return select(x > zero, x, fast.expm1(negative) * _const(x, alpha)) * _const(x, scale)

    return in_f32(expression)


def _clamp(operation: Operation) -> Expression:
    low, high = operation.attributes["minimum"], operation.attributes["maximum"]

    def expression(x: Any) -> Any:
        if low is not None:
            x = _bounded(x, low, tirx.max)
        return x if high is None else _bounded(x, high, tirx.min)

    def keeping_nan(x: Any) -> Any:
        return select(_nan(x), x, expression(x)) if _is_float(x) else expression(x)

    return keeping_nan


def _bounded(x: Any, bound: float, choose: Callable[[Any, Any], Any]) -> Any:
    if math.isinf(bound):
        return x
    return choose(x, _const(x, bound))


def _cast(operation: Operation) -> Expression:
    dtype = operation.attributes["dtype"]

    def expression(x: Any) -> Any:
        if dtype is DType.BOOL:
            return x != _const(x, 0)
        return x.astype(tvm_dtype(dtype))

    return expression


def _gelu(operation: Operation) -> Expression:
    return in_f32(fast.gelu_tanh if operation.attributes["approximate"] == "tanh" else fast.gelu)


def _leaky_relu(operation: Operation) -> Expression:
    slope = operation.attributes["slope"]
    return lambda x: select(x > _const(x, 0), x, x * _const(x, slope))


def _quantize(c: LoweringContext, operation: Operation) -> te.Tensor:
    return _quantizing(c, operation, lambda x, scale: x.astype("float32") * (tirx.const(1.0, "float32") / scale))


def _requantize(c: LoweringContext, operation: Operation) -> te.Tensor:
    return _quantizing(c, operation, lambda x, multiplier: x.astype("float32") * multiplier)


def _quantizing(c: LoweringContext, operation: Operation, scaled: Expression) -> te.Tensor:
    """sat(rne(scaled) + zero_point); NaN gives the zero point (numerics contract)."""
    x, scale, zero_point = (operation.operand(slot) for slot in range(3))
    dtype, axis = operation.attributes["dtype"], operation.attributes["axis"]
    low, high = (tirx.const(float(bound), "float32") for bound in dtype.integer_range)
    c.tensor(x)

    def element(*index: Any) -> Any:
        offset = c.read(zero_point, parameter_index(zero_point, axis, index)).astype("float32")
        factor = c.read(scale, parameter_index(scale, axis, index))
        rounded = tirx.nearbyint(scaled(c.read(x, index), factor)) + offset
        real = select(_nan(rounded), offset, rounded) if x.type.dtype.is_float else rounded
        return tirx.max(tirx.min(real, high), low).astype("int32").astype(tvm_dtype(dtype))

    return te.compute(c.dims(operation.result.type.shape), element, name=operation.name)


def parameter_index(parameter: Value, axis: int | None, index: Sequence[Any]) -> list[Any]:
    """Where a scale or zero point is read: nowhere per tensor, at the axis otherwise."""
    return [] if axis is None or parameter.type.rank == 0 else [index[axis]]


def _dequantize(c: LoweringContext, operation: Operation) -> te.Tensor:
    x, scale = operation.operand(0), operation.operand(1)
    zero_point = operation.operands[2] if len(operation.operands) > 2 else None
    axis = operation.attributes["axis"]
    c.tensor(x)

    def element(*index: Any) -> Any:
        centered = c.read(x, index).astype("int32")
        if zero_point is not None:
            centered = centered - c.read(zero_point, parameter_index(zero_point, axis, index))
        return centered.astype("float32") * c.read(scale, parameter_index(scale, axis, index))

    return te.compute(c.dims(operation.result.type.shape), element, name=operation.name)


_EXPRESSIONS: dict[str, Expression] = {
    "neg": lambda x: _const(x, 0) - x if not _is_float(x) else -x,
    "abs": _abs,
    "sign": _sign,
    "exp": in_f32(fast.exp),
    "exp2": in_f32(tirx.exp2),
    "expm1": in_f32(fast.expm1),
    "log": in_f32(tirx.log),
    "log2": in_f32(tirx.log2),
    "log10": in_f32(tirx.log10),
    "log1p": in_f32(tirx.log1p),
    "sqrt": in_f32(tirx.sqrt),
    "rsqrt": in_f32(lambda x: _const(x, 1) / tirx.sqrt(x)),
    "reciprocal": in_f32(lambda x: _const(x, 1) / x),
    "sin": in_f32(tirx.sin),
    "cos": in_f32(tirx.cos),
    "tan": in_f32(tirx.tan),
    "asin": in_f32(tirx.asin),
    "acos": in_f32(tirx.acos),
    "atan": in_f32(tirx.atan),
    "sinh": in_f32(tirx.sinh),
    "cosh": in_f32(tirx.cosh),
    "tanh": in_f32(fast.tanh),
    "asinh": in_f32(tirx.asinh),
    "acosh": in_f32(tirx.acosh),
    "atanh": in_f32(tirx.atanh),
    "erf": in_f32(fast.erf),
    "erfc": in_f32(lambda x: _const(x, 1) - fast.erf(x)),
    "sigmoid": in_f32(fast.sigmoid),
    "log_sigmoid": in_f32(lambda x: -_softplus_of(-x)),
    "relu": _relu,
    "silu": in_f32(fast.silu),
    "mish": in_f32(lambda x: x * fast.tanh(_softplus_of(x))),
    "hardsigmoid": _hardsigmoid,
    "hardswish": lambda x: x * _hardsigmoid(x),
    "softsign": lambda x: x / (_const(x, 1) + tirx.abs(x)),
    "ceil": tirx.ceil,
    "floor": tirx.floor,
    "round": tirx.nearbyint,
    "trunc": tirx.trunc,
    "bitwise_not": tirx.bitwise_not,
    "logical_not": tirx.Not,
    "isnan": lambda x: _nan(x) if _is_float(x) else tirx.const(False, "bool"),
    "isinf": lambda x: tirx.abs(x) == tirx.infinity(dtype_of(x)) if _is_float(x) else tirx.const(False, "bool"),
    "isfinite": lambda x: tirx.abs(x) < tirx.infinity(dtype_of(x)) if _is_float(x) else tirx.const(True, "bool"),
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": lambda x, y: x / y,
    "floor_div": _floor_div,
    "trunc_div": _trunc_div,
    "remainder": _remainder,
    "fmod": _fmod,
    "pow": in_f32(_pow),
    "atan2": in_f32(tirx.atan2),
    "maximum": maximum,
    "minimum": minimum,
    "bitwise_and": tirx.bitwise_and,
    "bitwise_or": tirx.bitwise_or,
    "bitwise_xor": tirx.bitwise_xor,
    "left_shift": tirx.shift_left,
    "right_shift": tirx.shift_right,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "logical_and": tirx.And,
    "logical_or": tirx.Or,
    "logical_xor": lambda x, y: x != y,
    "where": select,
}

LOWERINGS: dict[str, Callable[..., Any]] = {
    **{name: _lower(_plain(expression)) for name, expression in _EXPRESSIONS.items()},
    "cast": _lower(_cast),
    "clamp": _lower(_clamp),
    "gelu": _lower(_gelu),
    "leaky_relu": _lower(_leaky_relu),
    "elu": _lower(_elu),
    "softplus": _lower(_softplus),
    "quantize": _quantize,
    "requantize": _requantize,
    "dequantize": _dequantize,
}
