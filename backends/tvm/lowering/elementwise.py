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


def _truth(x: Any) -> Any:
    """Whether x is not zero, as a bool; NaN is true."""
    return x if dtype_of(x) == "bool" else x != _const(x, 0)


def _differ(x: Any, y: Any) -> Any:
    return x != y


def _is_signed(x: Any) -> bool:
    return dtype_of(x).startswith("int")


def _bits(x: Any) -> int:
    return int("".join(filter(str.isdigit, dtype_of(x))))


def _named(name: str, value: Any, body: Expression) -> Any:
    """`body(value)` with the value written once: expressions are trees, in which shared parts would multiply."""
    variable = tirx.Var(name, dtype_of(value))
    return tirx.Let(variable, value, body(variable))


def _bool_or(on_bool: Expression, otherwise: Expression) -> Expression:
    """`on_bool` where the operands are bools, which have no arithmetic of their own."""

    def choose(*operands: Any) -> Any:
        return (on_bool if dtype_of(operands[0]) == "bool" else otherwise)(*operands)

    return choose


def _integer_or(on_integer: Expression, otherwise: Expression) -> Expression:
    """`on_integer` where the operands are integers or bools."""

    def choose(*operands: Any) -> Any:
        return (otherwise if _is_float(operands[0]) else on_integer)(*operands)

    return choose


def _same(x: Any) -> Any:
    return x


def _constantly(value: bool) -> Expression:
    return lambda x: tirx.const(value, "bool")


def _sign(x: Any) -> Any:
    zero, one = _const(x, 0), _const(x, 1)
    positive = select(x > zero, one, zero)
    if not (_is_float(x) or _is_signed(x)):
        return positive
    return select(x < zero, _const(x, -1), positive)


def _dividing(divide: Expression) -> Expression:
    """An integer division that never traps: the smallest number over -1 wraps (numerics: I1)."""

    def guarded(x: Any, y: Any) -> Any:
        if isinstance(y, tirx.IntImm) or not _is_signed(x):
            return divide(x, y)
        negated, one = y == _const(y, -1), _const(y, 1)
        return select(negated, _const(x, 0) - x, divide(x, select(negated, one, y)))

    return guarded


def _modulo(modulo: Expression) -> Expression:
    """A remainder that never traps: the remainder of a division by -1 is 0, as by 1."""

    def guarded(x: Any, y: Any) -> Any:
        if isinstance(y, tirx.IntImm) or not _is_signed(x):
            return modulo(x, y)
        return modulo(x, select(y == _const(y, -1), _const(y, 1), y))

    return guarded


def _float_mod(x: Any, y: Any) -> Any:
    """C's fmod: the sign of the dividend. Exact, so 16-bit floats go through f32."""
    return tirx.Mod(x, y)


def _float_floor_div(x: Any, y: Any) -> Any:
    """The floor of the true quotient, which x / y may round past (torch, after Python's float division)."""

    def whole(rest: Any) -> Any:
        zero, one = _const(x, 0), _const(x, 1)
        exact = (x - rest) / y
        below = select(tirx.all(rest != zero, (y < zero) != (rest < zero)), exact - one, exact)
        return _named("below", below, lambda value: rounded(value))

    def rounded(below: Any) -> Any:
        half, one = _const(x, 0.5), _const(x, 1)
        near = tirx.floor(below)
        return _named("near", near, lambda value: select(below - value > half, value + one, value))

    return select(y == _const(y, 0), x / y, _named("rest", _float_mod(x, y), whole))


def _float_remainder(x: Any, y: Any) -> Any:
    """The sign of the divisor, as Python's %."""

    def signed(rest: Any) -> Any:
        zero = _const(x, 0)
        return select(tirx.all(rest != zero, (rest < zero) != (y < zero)), rest + y, rest)

    return _named("rest", _float_mod(x, y), signed)


def _pow(x: Any, y: Any) -> Any:
    if not _is_float(x):
        return _integer_pow(x, y)
    if isinstance(y, tirx.FloatImm):
        special = _POWERS.get(float(y.value))
        if special is not None:
            return special(x)
    return tirx.pow(x, y)


def _integer_pow(x: Any, y: Any) -> Any:
    """By squaring, wrapping; a negative exponent gives the truncated quotient: 0 but for the bases 1 and -1."""
    if not isinstance(y, tirx.IntImm):
        return _integer_power_of(x, y)
    exponent = int(y.value)
    if exponent < 0:
        return _reciprocal_power(x, y)
    result, base = _const(x, 1), x
    while exponent:
        result = result * base if exponent & 1 else result
        base, exponent = base * base, exponent >> 1
    return result


def _integer_power_of(x: Any, y: Any) -> Any:
    def step(bit: int, result: Any, base: Any) -> Any:
        if bit == _bits(y) - (1 if _is_signed(y) else 0):
            return select(y < _const(y, 0), _reciprocal_power(x, y), result) if _is_signed(y) else result
        taken = tirx.bitwise_and(tirx.shift_right(y, _const(y, bit)), _const(y, 1)) != _const(y, 0)
        following = select(taken, result * base, result)
        return _named("power", following, lambda power: _named("base", base * base, lambda b: step(bit + 1, power, b)))

    return step(0, _const(x, 1), x)


def _reciprocal_power(x: Any, y: Any) -> Any:
    zero, one, odd = _const(x, 0), _const(x, 1), tirx.bitwise_and(y, _const(y, 1)) != _const(y, 0)
    return select(x == one, one, select(x == _const(x, -1), select(odd, _const(x, -1), one), zero))


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


def _shift(left: bool) -> Expression:
    """Shifts by anything outside of 0..bits-1 leave nothing of the number but its sign (numerics: I4)."""

    def shifted(x: Any, y: Any) -> Any:
        last = _const(y, _bits(x) - 1)
        inside = tirx.all(y >= _const(y, 0), y <= last)
        amount = select(inside, y, last)
        if left:
            return select(inside, tirx.shift_left(x, amount), _const(x, 0))
        moved = tirx.shift_right(x, amount)
        return moved if _is_signed(x) else select(inside, moved, _const(x, 0))

    return shifted


def _asinh(x: Any) -> Any:
    """sign(x) · log(|x| + √(x² + 1)), as log1p(|x| + x² / (1 + √(x² + 1))), which does not cancel near zero."""
    one, large = _const(x, 1), _const(x, 1e15 if dtype_of(x) == "float64" else 1e7)

    def positive(size: Any) -> Any:
        square = size * size
        small = tirx.log1p(size + square / (one + tirx.sqrt(square + one)))
        return select(size > large, tirx.log(size) + _const(x, math.log(2)), small)

    return _named("size", tirx.abs(x), lambda size: _named("arc", positive(size), lambda y: select(x < _const(x, 0), -y, y)))


def _acosh(x: Any) -> Any:
    """log(x + √(x² - 1)) by t = x - 1: log1p(t + √(2t + t²))."""
    two, large = _const(x, 2), _const(x, 1e15 if dtype_of(x) == "float64" else 1e7)

    def of(t: Any) -> Any:
        return select(t > large, tirx.log(x) + _const(x, math.log(2)), tirx.log1p(t + tirx.sqrt(t * (t + two))))

    return _named("above", x - _const(x, 1), of)


def _atanh(x: Any) -> Any:
    """½ · log1p(2x / (1 - x))."""
    half, one, two = _const(x, 0.5), _const(x, 1), _const(x, 2)
    return half * tirx.log1p(two * x / (one - x))


def _hyperbolic(sign: int) -> Expression:
    """sinh (sign -1) and cosh (sign 1) by e = exp(|x| / 2), which is finite wherever the result is."""

    def expression(x: Any) -> Any:
        half = _const(x, 0.5)

        def of(root: Any) -> Any:
            return root * (half * root) + _const(x, sign) * (half / root) / root

        def odd(size: Any) -> Any:
            small = x + x * x * x * _const(x, 1 / 6) * (_const(x, 1) + x * x * _const(x, 1 / 20))
            large = _named("root", fast.exp(size * half), of)
            far = _named("far", large, lambda value: select(x < _const(x, 0), -value, value))
            return select(size < _const(x, 0.1 if dtype_of(x) != "float64" else 1e-3), small, far)

        def even(size: Any) -> Any:
            return _named("root", fast.exp(size * half), of)

        return _named("size", tirx.abs(x), odd if sign < 0 else even)

    return expression


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
        negative = minimum(x, zero) * _const(x, input_scale)
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
            return _truth(x)
        if dtype is DType.I4:
            # the low four bits, two's complement (numerics: I1, I7)
            eight = tirx.const(8, "int8")
            return tirx.bitwise_and(x.astype("int8") + eight, tirx.const(15, "int8")) - eight
        return x.astype(tvm_dtype(dtype))

    return expression


def _gelu(operation: Operation) -> Expression:
    return in_f32(fast.gelu_tanh if operation.attributes["approximate"] == "tanh" else fast.gelu)


def _leaky_relu(operation: Operation) -> Expression:
    slope = operation.attributes["slope"]
    return lambda x: select(x > _const(x, 0), x, x * _const(x, slope))


_EXPRESSIONS: dict[str, Expression] = {
    "neg": lambda x: -x if _is_float(x) else _const(x, 0) - x,
    "abs": lambda x: tirx.abs(x) if _is_float(x) or _is_signed(x) else x,
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
    "sinh": in_f32(_hyperbolic(-1)),
    "cosh": in_f32(_hyperbolic(1)),
    "tanh": in_f32(fast.tanh),
    "asinh": in_f32(_asinh),
    "acosh": in_f32(_acosh),
    "atanh": in_f32(_atanh),
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
    "ceil": _integer_or(_same, tirx.ceil),
    "floor": _integer_or(_same, tirx.floor),
    "round": _integer_or(_same, tirx.nearbyint),
    "trunc": _integer_or(_same, tirx.trunc),
    "bitwise_not": _bool_or(tirx.Not, tirx.bitwise_not),
    "logical_not": lambda x: tirx.Not(_truth(x)),
    "isnan": _integer_or(_constantly(False), _nan),
    "isinf": _integer_or(_constantly(False), lambda x: tirx.abs(x) == tirx.infinity(dtype_of(x))),
    "isfinite": _integer_or(_constantly(True), lambda x: tirx.abs(x) < tirx.infinity(dtype_of(x))),
    "add": _bool_or(tirx.Or, lambda x, y: x + y),
    "sub": lambda x, y: x - y,
    "mul": _bool_or(tirx.And, lambda x, y: x * y),
    "div": lambda x, y: x / y,
    "floor_div": _integer_or(_dividing(tirx.floordiv), in_f32(_float_floor_div)),
    "trunc_div": _integer_or(_dividing(tirx.truncdiv), in_f32(lambda x, y: tirx.trunc(x / y))),
    "remainder": _integer_or(_modulo(tirx.floormod), in_f32(_float_remainder)),
    "fmod": _integer_or(_modulo(tirx.truncmod), in_f32(_float_mod)),
    "pow": in_f32(_pow),
    "atan2": in_f32(tirx.atan2),
    "maximum": _bool_or(tirx.Or, maximum),
    "minimum": _bool_or(tirx.And, minimum),
    "bitwise_and": _bool_or(tirx.And, tirx.bitwise_and),
    "bitwise_or": _bool_or(tirx.Or, tirx.bitwise_or),
    "bitwise_xor": _bool_or(_differ, tirx.bitwise_xor),
    "left_shift": _shift(left=True),
    "right_shift": _shift(left=False),
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y,
    "logical_and": lambda x, y: tirx.And(_truth(x), _truth(y)),
    "logical_or": lambda x, y: tirx.Or(_truth(x), _truth(y)),
    "logical_xor": lambda x, y: _differ(_truth(x), _truth(y)),
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
}
