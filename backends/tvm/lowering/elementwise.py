"""Elementwise operations: one scalar expression each, read through broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from whet.backends.tvm.kernels import math as fast
from whet.backends.tvm.kernels.math import expression_dtype as dtype_of
from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.backends.tvm.lowering.half import named, narrowed
from whet.backends.tvm.lowering.loops import Variable, load, loops, parallel_nest, store
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
    """A lowering that computes `expression(operation)` of the elements; 16-bit floats in f32 (numerics: R5)."""

    def lower(c: LoweringContext, operation: Operation) -> te.Tensor:
        result = operation.results[0].type
        function = expression(operation)
        operands = [value for value in operation.operands if value is not None]
        for value in operands:
            if c.number(value) is None:
                c.tensor(value)

        def element(*index: Any) -> Any:
            return c.shared(
                operands,
                [broadcast_index(value, result.shape, index) for value in operands],
                lambda *items: narrowed(function(*items), tvm_dtype(result.dtype)),
            )

        return te.compute(c.dims(result.shape), element, name=operation.name)

    return lower


def _plain(function: Expression) -> Callable[[Operation], Expression]:
    return lambda operation: function


def _const(x: Any, number: float) -> Any:
    return tirx.const(number, dtype_of(x))


def _is_float(x: Any) -> bool:
    return "float" in dtype_of(x)


def select(condition: Any, x: Any, y: Any) -> Any:
    """Both sides are computed, so that the choice vectorizes."""
    return tirx.Select(condition, x, y)


def _relu(x: Any) -> Any:
    return at_least(x, _const(x, 0))


def at_least(x: Any, bound: Any) -> Any:
    """max(x, bound) with a bound that is no NaN; NaN stays NaN, since it is less than nothing."""
    return select(x < bound, bound, x)


def at_most(x: Any, bound: Any) -> Any:
    """min(x, bound) with a bound that is no NaN; NaN stays NaN."""
    return select(x > bound, bound, x)


def maximum(x: Any, y: Any) -> Any:
    """The larger; NaN where either is (floats)."""
    return select(tirx.isnan(x), x, select(x > y, x, y)) if _is_float(x) else tirx.max(x, y)


def minimum(x: Any, y: Any) -> Any:
    """The smaller; NaN where either is (floats)."""
    return select(tirx.isnan(x), x, select(x < y, x, y)) if _is_float(x) else tirx.min(x, y)


def differs(x: Any, y: Any) -> Any:
    """x != y, true where either is NaN. TVM takes a number to be equal to itself, and `!=` to be ordered."""
    x, y = _ordered(x), _ordered(y)
    return tirx.any(tirx.isnan(x), tirx.isnan(y), x != y) if _is_float(x) else x != y


def _ordered(x: Any) -> Any:
    """A bool as a number: LLVM code that compares bools is malformed."""
    return x.astype("int8") if dtype_of(x) == "bool" else x


def _comparing(compare: Expression) -> Expression:
    return lambda x, y: compare(_ordered(x), _ordered(y))


def truth(x: Any) -> Any:
    """Whether x is not zero, as a bool; NaN is true."""
    if dtype_of(x) == "bool":
        return x
    return tirx.Or(tirx.isnan(x), x != _const(x, 0)) if _is_float(x) else x != _const(x, 0)


def _is_signed(x: Any) -> bool:
    return dtype_of(x).startswith("int")


def _bits(x: Any) -> int:
    return int("".join(filter(str.isdigit, dtype_of(x))))


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


def _quotient(x: Any, y: Any) -> Any:
    """x / y; TVM refuses to divide by a zero that it sees, so this is a product with infinity then."""
    return x * tirx.FloatImm(dtype_of(x), math.copysign(math.inf, y.value)) if _is_zero(y) else x / y


def _is_zero(y: Any) -> bool:
    return isinstance(y, tirx.FloatImm) and y.value == 0


def _float_mod(x: Any, y: Any) -> Any:
    """C's fmod: the sign of the dividend. Exact, so 16-bit floats go through f32."""
    return tirx.Mod(x, y)


def _float_floor_div(x: Any, y: Any) -> Any:
    """The floor of the true quotient, which x / y may round past (torch, after Python's float division)."""

    def whole(rest: Any) -> Any:
        zero, one = _const(x, 0), _const(x, 1)
        exact = (x - rest) / y
        below = select(tirx.all(rest != zero, differs(y < zero, rest < zero)), exact - one, exact)
        return named("below", below, lambda value: rounded(value))

    def rounded(below: Any) -> Any:
        half, one = _const(x, 0.5), _const(x, 1)
        near = tirx.floor(below)
        return named("near", near, lambda value: select(below - value > half, value + one, value))

    if _is_zero(y):
        return _quotient(x, y)
    return select(y == _const(y, 0), x / y, named("rest", _float_mod(x, y), whole))


def _float_remainder(x: Any, y: Any) -> Any:
    """The sign of the divisor, as Python's %."""

    def signed(rest: Any) -> Any:
        zero = _const(x, 0)
        return select(tirx.all(rest != zero, differs(rest < zero, y < zero)), rest + y, rest)

    return named("rest", _float_mod(x, y), signed)


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
    exponent = int(y.value)
    if exponent < 0:
        return _reciprocal_power(x, y)
    result, base = _const(x, 1), x
    while exponent:
        result = result * base if exponent & 1 else result
        base, exponent = base * base, exponent >> 1
    return result


def _reciprocal_power(x: Any, y: Any) -> Any:
    """An integer to a negative power."""
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

    return _odd(x, positive)


def _acosh(x: Any) -> Any:
    """log(x + √(x² - 1)) by t = x - 1: log1p(t + √t · √(t + 2)), NaN below 1."""
    two, large = _const(x, 2), _const(x, 1e15 if dtype_of(x) == "float64" else 1e7)

    def of(t: Any) -> Any:
        return select(
            t > large, tirx.log(x) + _const(x, math.log(2)), tirx.log1p(t + tirx.sqrt(t) * tirx.sqrt(t + two))
        )

    return named("above", x - _const(x, 1), of)


def _atanh(x: Any) -> Any:
    """sign(x) · ½ · log1p(2|x| / (1 - |x|)): the quotient of a negative x would cancel near -1."""
    half, one, two = _const(x, 0.5), _const(x, 1), _const(x, 2)
    return _odd(x, lambda size: half * tirx.log1p(two * size / (one - size)))


def _odd(x: Any, positive: Callable[[Any], Any]) -> Any:
    """sign(x) · positive(|x|)."""
    return named(
        "size", tirx.abs(x), lambda size: named("arc", positive(size), lambda y: select(x < _const(x, 0), -y, y))
    )


def _hyperbolic(sign: int) -> Expression:
    """sinh (sign -1) and cosh (sign 1) by e = exp(|x| / 2), which is finite wherever the result is."""

    def expression(x: Any) -> Any:
        half = _const(x, 0.5)

        def of(root: Any) -> Any:
            return root * (half * root) + _const(x, sign) * (half / root) / root

        def odd(size: Any) -> Any:
            small = x + x * x * x * _const(x, 1 / 6) * (_const(x, 1) + x * x * _const(x, 1 / 20))
            large = named("root", fast.exp(size * half), of)
            far = named("far", large, lambda value: select(x < _const(x, 0), -value, value))
            return select(size < _const(x, 0.1 if dtype_of(x) != "float64" else 1e-3), small, far)

        def even(size: Any) -> Any:
            return named("root", fast.exp(size * half), of)

        return named("size", tirx.abs(x), odd if sign < 0 else even)

    return expression


def _hardsigmoid(x: Any) -> Any:
    """min(max(x + 3, 0), 6) / 6."""
    moved = named("moved", x + _const(x, 3), lambda value: at_least(value, _const(x, 0)))
    return named("above", moved, lambda value: at_most(value, _const(x, 6))) / _const(x, 6)


def _softplus(operation: Operation) -> Expression:
    beta, threshold = operation.attributes["beta"], operation.attributes["threshold"]

    def expression(x: Any) -> Any:
        scaled = x * _const(x, beta)
        return select(scaled > _const(x, threshold), x, _softplus_of(scaled) / _const(x, beta))

    return expression


def _softplus_of(x: Any) -> Any:
    """log(1 + exp(x)) without overflow."""
    zero = _const(x, 0)
    return at_least(x, zero) + tirx.log1p(fast.exp(-tirx.abs(x)))


def _elu(operation: Operation) -> Expression:
    alpha, scale, input_scale = (operation.attributes[key] for key in ("alpha", "scale", "input_scale"))

    def expression(x: Any) -> Any:
        zero = _const(x, 0)
        negative = at_most(x, zero) * _const(x, input_scale)
        return select(x > zero, x, fast.expm1(negative) * _const(x, alpha)) * _const(x, scale)

    return expression


def _ends(dtype: DType) -> tuple[float, float]:
    """The least and the greatest value of a type."""
    if dtype.is_float:
        return -math.inf, math.inf
    return dtype.integer_range


def _clamp(operation: Operation) -> Expression:
    low, high = operation.attributes["minimum"], operation.attributes["maximum"]
    least, most = _ends(operation.result.type.dtype)

    def expression(x: Any) -> Any:
        # a bound at the end of the type bounds nothing, and TVM folds a comparison of an unsigned zero wrongly
        above = x if low is None or low <= least else at_least(x, _const(x, min(low, most)))
        if high is None or high >= most:
            return above
        return named("above", above, lambda value: at_most(value, _const(x, max(high, least))))

    return expression


def _cast(operation: Operation) -> Expression:
    dtype = operation.attributes["dtype"]

    def expression(x: Any) -> Any:
        if dtype is DType.BOOL:
            return truth(x)
        if dtype is DType.I4:
            # the low four bits, two's complement (numerics: I1, I7)
            eight = tirx.const(8, "int8")
            return tirx.bitwise_and(x.astype("int8") + eight, tirx.const(15, "int8")) - eight
        # whoever stores the result rounds it to bfloat16: TVM's own cast does not survive inside of an expression
        return x.astype("float32" if dtype is DType.BF16 else tvm_dtype(dtype))

    return expression


def _gelu(operation: Operation) -> Expression:
    return fast.gelu_tanh if operation.attributes["approximate"] == "tanh" else fast.gelu


def _leaky_relu(operation: Operation) -> Expression:
    slope = operation.attributes["slope"]
    return lambda x: select(x > _const(x, 0), x, x * _const(x, slope))


_EXPRESSIONS: dict[str, Expression] = {
    "neg": lambda x: -x if _is_float(x) else _const(x, 0) - x,
    "abs": lambda x: tirx.abs(x) if _is_float(x) or _is_signed(x) else x,
    "sign": _bool_or(_same, _sign),
    "exp": fast.exp,
    "exp2": tirx.exp2,
    "expm1": fast.expm1,
    "log": tirx.log,
    "log2": tirx.log2,
    "log10": tirx.log10,
    "log1p": tirx.log1p,
    "sqrt": tirx.sqrt,
    "rsqrt": lambda x: _const(x, 1) / tirx.sqrt(x),
    "reciprocal": lambda x: _const(x, 1) / x,
    "sin": tirx.sin,
    "cos": tirx.cos,
    "tan": tirx.tan,
    "asin": tirx.asin,
    "acos": tirx.acos,
    "atan": tirx.atan,
    "sinh": _hyperbolic(-1),
    "cosh": _hyperbolic(1),
    "tanh": fast.tanh,
    "asinh": _asinh,
    "acosh": _acosh,
    "atanh": _atanh,
    "erf": fast.erf,
    "erfc": lambda x: _const(x, 1) - fast.erf(x),
    "sigmoid": fast.sigmoid,
    "log_sigmoid": lambda x: -_softplus_of(-x),
    "relu": _relu,
    "silu": fast.silu,
    "mish": lambda x: x * fast.tanh(_softplus_of(x)),
    "hardsigmoid": _hardsigmoid,
    "hardswish": lambda x: x * _hardsigmoid(x),
    "softsign": lambda x: x / (_const(x, 1) + tirx.abs(x)),
    "ceil": _integer_or(_same, tirx.ceil),
    "floor": _integer_or(_same, tirx.floor),
    "round": _integer_or(_same, tirx.nearbyint),
    "trunc": _integer_or(_same, tirx.trunc),
    "bitwise_not": _bool_or(tirx.Not, tirx.bitwise_not),
    "logical_not": lambda x: tirx.Not(truth(x)),
    "isnan": _integer_or(_constantly(False), tirx.isnan),
    "isinf": _integer_or(_constantly(False), lambda x: tirx.abs(x) == tirx.infinity(dtype_of(x))),
    "isfinite": _integer_or(_constantly(True), lambda x: tirx.abs(x) < tirx.infinity(dtype_of(x))),
    "add": _bool_or(tirx.Or, lambda x, y: x + y),
    "sub": lambda x, y: x - y,
    "mul": _bool_or(tirx.And, lambda x, y: x * y),
    "div": _quotient,
    "floor_div": _integer_or(_dividing(tirx.floordiv), _float_floor_div),
    "trunc_div": _integer_or(_dividing(tirx.truncdiv), lambda x, y: tirx.trunc(_quotient(x, y))),
    "remainder": _integer_or(_modulo(tirx.floormod), _float_remainder),
    "fmod": _integer_or(_modulo(tirx.truncmod), _float_mod),
    "atan2": tirx.atan2,
    "maximum": _bool_or(tirx.Or, maximum),
    "minimum": _bool_or(tirx.And, minimum),
    "bitwise_and": _bool_or(tirx.And, tirx.bitwise_and),
    "bitwise_or": _bool_or(tirx.Or, tirx.bitwise_or),
    "bitwise_xor": _bool_or(differs, tirx.bitwise_xor),
    "left_shift": _shift(left=True),
    "right_shift": _shift(left=False),
    "eq": _comparing(lambda x, y: x == y),
    "ne": differs,
    "lt": _comparing(lambda x, y: x < y),
    "le": _comparing(lambda x, y: x <= y),
    "gt": _comparing(lambda x, y: x > y),
    "ge": _comparing(lambda x, y: x >= y),
    "logical_and": lambda x, y: tirx.And(truth(x), truth(y)),
    "logical_or": lambda x, y: tirx.Or(truth(x), truth(y)),
    "logical_xor": lambda x, y: differs(truth(x), truth(y)),
    "where": select,
}


def _integer_power(c: LoweringContext, operation: Operation) -> te.Tensor:
    """Integers to the power of integers, by squaring: as many turns as the exponent has bits."""
    type = operation.result.type
    shape, dtype = c.dims(type.shape), tvm_dtype(type.dtype)
    operands = [operation.operand(0), operation.operand(1)]

    def body(ins: Any, outs: Any) -> None:
        with parallel_nest(shape, 16) as index:
            x, y = (
                load(buffer, broadcast_index(value, type.shape, index))
                for buffer, value in zip(ins, operands, strict=True)
            )
            result, base, rest = (Variable(item, dtype) for item in (tirx.const(1, dtype), x, y))
            with T.While(rest.value > tirx.const(0, dtype)):
                odd = tirx.bitwise_and(rest.value, tirx.const(1, dtype)) != tirx.const(0, dtype)
                result.set(select(odd, result.value * base.value, result.value))
                base.set(base.value * base.value)
                rest.set(tirx.shift_right(rest.value, tirx.const(1, dtype)))
            total = result.value
            if _is_signed(y):
                total = select(y < tirx.const(0, dtype), _reciprocal_power(x, y), total)
            store(outs[0], index, total)

    (power,) = loops([shape], [dtype], [c.tensor(value) for value in operands], body, "pow")
    return power


def _power(c: LoweringContext, operation: Operation) -> te.Tensor:
    exponent = operation.operand(1)
    if exponent.type.dtype.is_float or c.number(exponent) is not None:
        return _lower(_plain(_pow))(c, operation)
    return _integer_power(c, operation)


LOWERINGS: dict[str, Callable[..., Any]] = {
    **{name: _lower(_plain(expression)) for name, expression in _EXPRESSIONS.items()},
    "pow": _power,
    "cast": _lower(_cast),
    "clamp": _lower(_clamp),
    "gelu": _lower(_gelu),
    "leaky_relu": _lower(_leaky_relu),
    "elu": _lower(_elu),
    "softplus": _lower(_softplus),
}
