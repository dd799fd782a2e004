"""Transcendental functions as plain arithmetic, which vectorizes: LLVM's own become one libm call a lane.

Every function takes and returns one float32 expression (others are computed in float32 and cast back; float64
goes to TVM's intrinsics). The coefficients are minimax fits made for this module (iterated reweighted least
squares over Chebyshev nodes, 40 digits); the error in the comment is the largest relative one before rounding
to float32. With the rounding of the evaluation the functions stay within 1e-6 relative of the exact value,
denormal results of `exp` excepted, which are exact to the last denormal digit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tvm import tirx

from whet.backends.tvm.kernels.expressions import Expression

_LOG2_E = 1.4426950408889634
# ln 2 in two parts: the first has so few digits that its product with an exponent is exact in float32.
_LN2_HIGH = 0.693359375
_LN2_LOW = -2.12194440054690583e-4
# 1.5 * 2**23: adding it leaves the nearest integer in the low bits of the sum.
_ROUND_MAGIC = 12582912.0
_ROUND_MAGIC_BITS = 0x4B400000
# Below the first exp is 0 in float32, above the second infinite.
_EXP_RANGE = (-105.0, 89.0)
# Below the first exp(x) - 1 is -1 in float32.
_EXPM1_RANGE = (-40.0, 89.0)

# (exp(r) - 1 - r) / r**2 for |r| <= ln(2) / 2; 3.2e-9.
_EXP = (
    0.5000000095675755,
    0.16666518297478816,
    0.04166620424964657,
    0.008368954304984686,
    0.0013950594211147105,
)
# erf(x) / x in x**2 for |x| <= 3.925 (beyond it erf is 1 in float32); 1.9e-8.
_ERF_LIMIT = 3.925
_ERF_NUMERATOR = (
    1.1283791461562425,
    0.19056586695934,
    0.05276511382643681,
    0.003771225873455291,
    0.00028479279743289957,
    2.045965039642048e-06,
)
_ERF_DENOMINATOR = (
    1.0,
    0.5022173399451079,
    0.11417074808642134,
    0.01498055176797721,
    0.0011634981137561206,
    3.804447714829004e-05,
)
# tanh(x) / x in x**2 for |x| <= 9.02 (beyond it tanh is 1 in float32); 2.1e-8.
_TANH_LIMIT = 9.02
_TANH_NUMERATOR = (
    0.9999999794532475,
    0.13379655485770015,
    0.0034939571434309054,
    2.0582106057949577e-05,
    1.3317026150995123e-08,
)
_TANH_DENOMINATOR = (
    1.0,
    0.4671297091868037,
    0.0258707867172823,
    0.00032829615098134673,
    7.761209320612372e-07,
)
_GELU_TANH_CUBIC = 0.044715
_SQRT_HALF = 0.7071067811865476
_SQRT_TWO_OVER_PI = 0.7978845608028654


def exp(x: Expression) -> Expression:
    """e to the power of x; 0, infinity and NaN as in IEEE 754."""
    return _in_float32(x, _exp32, tirx.exp)


def expm1(x: Expression) -> Expression:
    """exp(x) - 1, without cancellation near zero."""
    return _in_float32(x, _expm1_32, lambda value: tirx.exp(value) - tirx.const(1.0, "float64"))


def sigmoid(x: Expression) -> Expression:
    """1 / (1 + exp(-x))."""
    return _in_float32(x, _sigmoid32, tirx.sigmoid)


def silu(x: Expression) -> Expression:
    """x times its sigmoid."""
    return _named("x", x, lambda value: value * sigmoid(value))


def tanh(x: Expression) -> Expression:
    """Hyperbolic tangent."""
    return _in_float32(x, _tanh32, tirx.tanh)


def erf(x: Expression) -> Expression:
    """Error function."""
    return _in_float32(x, _erf32, tirx.erf)


def gelu(x: Expression) -> Expression:
    """x times the normal distribution function of x (the exact form, by `erf`)."""
    one, half, scale = _constant(x, 1.0), _constant(x, 0.5), _constant(x, _SQRT_HALF)
    return _named("x", x, lambda v: half * v * (one + erf(v * scale)))


def gelu_tanh(x: Expression) -> Expression:
    """The tanh approximation of `gelu` (Hendrycks and Gimpel 2016)."""
    one, half, scale = _constant(x, 1.0), _constant(x, 0.5), _constant(x, _SQRT_TWO_OVER_PI)
    cubic = _constant(x, _GELU_TANH_CUBIC)
    return _named("x", x, lambda v: half * v * (one + tanh(scale * (v + cubic * v * v * v))))


def _in_float32(
    x: Expression, compute: Callable[[Expression], Expression], precise: Callable[[Expression], Expression]
) -> Expression:
    dtype = expression_dtype(x)
    if dtype == "float64":
        return precise(x)
    if dtype == "float32":
        return compute(x)
    return compute(x.astype("float32")).astype(dtype)


def expression_dtype(x: Expression) -> str:
    """The dtype of a scalar expression as text."""
    return str(x.expr_ty().dtype)


def _constant(x: Expression, value: float) -> Expression:
    return tirx.const(value, expression_dtype(x))


def _horner(x: Expression, coefficients: Sequence[float]) -> Expression:
    """The polynomial with these coefficients, the constant one first."""
    total: Expression = tirx.const(coefficients[-1], "float32")
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + tirx.const(coefficient, "float32")
    return total


def _clip(x: Expression, low: float, high: float) -> Expression:
    """x held in [low, high]; NaN stays NaN, which TVM's min and max do not promise."""

    def hold(value: Expression) -> Expression:
        below = tirx.Select(value < tirx.const(low, "float32"), tirx.const(low, "float32"), value)
        return tirx.Select(value > tirx.const(high, "float32"), tirx.const(high, "float32"), below)

    return _named("raw", x, hold)


def _exp32(x: Expression) -> Expression:
    """2**n * exp(r); 2**n in two factors, so that denormals come out right."""

    def scaled(power: Expression, less_one: Expression) -> Expression:
        half = tirx.shift_right(power, tirx.const(1, "int32"))
        value = tirx.const(1.0, "float32") + less_one
        return value * _power_of_two(half) * _power_of_two(power - half)

    return _reduced_exp(x, scaled)


def _expm1_32(x: Expression) -> Expression:
    """2**n * ((exp(r) - 1) + (1 - 2**-n)): near zero n is 0 and nothing cancels."""

    def scaled(power: Expression, less_one: Expression) -> Expression:
        half = tirx.shift_right(power, tirx.const(1, "int32"))
        inverse = _power_of_two(tirx.max(tirx.const(0, "int32") - power, tirx.const(-126, "int32")))
        value = less_one + (tirx.const(1.0, "float32") - inverse)
        return value * _power_of_two(half) * _power_of_two(power - half)

    return _reduced_exp(x, scaled, _EXPM1_RANGE)


def _reduced_exp(
    x: Expression,
    body: Callable[[Expression, Expression], Expression],
    bounds: tuple[float, float] = _EXP_RANGE,
) -> Expression:
    """`body(n, exp(r) - 1)` with x, held in `bounds`, as n ln 2 + r and n the integer nearest to x / ln 2."""

    def split(held: Expression) -> Expression:
        shifted = held * tirx.const(_LOG2_E, "float32") + tirx.const(_ROUND_MAGIC, "float32")
        # Bits are bound, not what they mean: TVM refuses a name whose range it knows only where it is bound.
        bits = tirx.reinterpret("int32", shifted)
        return _named("bits", bits, lambda b: remainder(held, b - tirx.const(_ROUND_MAGIC_BITS, "int32")))

    def remainder(held: Expression, power: Expression) -> Expression:
        whole = power.astype("float32")
        rest = held - whole * tirx.const(_LN2_HIGH, "float32") - whole * tirx.const(_LN2_LOW, "float32")
        return _named("rest", rest, lambda r: body(power, r + r * r * _horner(r, _EXP)))

    return _named("held", _clip(x, *bounds), split)


def _named(name: str, value: Expression, body: Callable[[Expression], Expression]) -> Expression:
    """`body(value)` with the value written once: expressions are trees, and shared parts would multiply."""
    variable = tirx.Var(name, expression_dtype(value))
    return tirx.Let(variable, value, body(variable))


def _power_of_two(exponent: Expression) -> Expression:
    """2.0**exponent for an int32 expression between -126 and 127, by writing the exponent field."""
    field = tirx.shift_left(exponent + tirx.const(127, "int32"), tirx.const(23, "int32"))
    return tirx.reinterpret("float32", field)


def _sigmoid32(x: Expression) -> Expression:
    one = tirx.const(1.0, "float32")
    return one / (one + _exp32(tirx.const(0.0, "float32") - x))


def _tanh32(x: Expression) -> Expression:
    return _odd_rational(x, _TANH_LIMIT, _TANH_NUMERATOR, _TANH_DENOMINATOR)


def _erf32(x: Expression) -> Expression:
    return _odd_rational(x, _ERF_LIMIT, _ERF_NUMERATOR, _ERF_DENOMINATOR)


def _odd_rational(x: Expression, limit: float, numerator: Sequence[float], denominator: Sequence[float]) -> Expression:
    """x * P(x**2) / Q(x**2) of x held in [-limit, limit]."""

    def ratio(held: Expression) -> Expression:
        return _named(
            "square",
            held * held,
            lambda square: held * _horner(square, numerator) / _horner(square, denominator),
        )

    return _named("held", _clip(x, -limit, limit), ratio)
