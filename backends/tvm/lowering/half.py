"""16-bit floats: storage types, computed with in f32 (numerics: R5); and names for what an expression uses twice.

TVM knows how to cast bfloat16, but forgets it inside of a `Let`, and writes the cast at a store out in terms of the
whole stored expression, in which its vectorizer then finds names bound twice. So casts of bfloat16 are written out
here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import tirx

from whet.backends.tvm.kernels.math import expression_dtype

HALF = ("float16", "bfloat16")


def named(name: str, value: Any, body: Callable[[Any], Any]) -> Any:
    """`body(value)` with the value written once: expressions are trees, in which shared parts would multiply."""
    variable, bound, held = binding(name, value)
    return tirx.Let(variable, bound, body(held))


def binding(name: str, value: Any) -> tuple[tirx.Var, Any, Any]:
    """A variable, what a `Let` binds to it, and the expression that then means `value`.

    A bool is bound as a float: what TVM knows of an integer's range, it refuses to know better once it has simplified
    the value, and a comparison that it knows to hold is a fact to it, which must not be a vector.
    """
    if expression_dtype(value) != "bool":
        variable = tirx.Var(name, expression_dtype(value))
        return variable, value, variable
    variable, zero = tirx.Var(name, "float32"), tirx.const(0, "float32")
    return variable, tirx.Select(value, tirx.const(1, "float32"), zero), tirx.NE(variable, zero)


def widened(x: Any) -> Any:
    """A 16-bit float as f32, anything else as it is."""
    dtype = expression_dtype(x)
    if dtype not in HALF:
        return x
    if isinstance(x, tirx.FloatImm):
        return tirx.const(float(x.value), "float32")
    if dtype == "float16":
        return x.astype("float32")
    bits = tirx.reinterpret("uint16", x).astype("uint32")
    return tirx.reinterpret("float32", tirx.shift_left(bits, tirx.const(16, "uint32")))


def narrowed(x: Any, dtype: str) -> Any:
    """x as `dtype`, where that is the 16-bit float that x was widened from; nearest, ties to even."""
    if expression_dtype(x) == dtype:
        return x
    return named("wide", x, _as_bfloat16 if dtype == "bfloat16" else lambda wide: wide.astype(dtype))


def _as_bfloat16(wide: Any) -> Any:
    """The upper half of the bits, rounded; a NaN, whose bits might round to a number, is a NaN again."""

    def upper_half(bits: Any) -> Any:
        odd = tirx.bitwise_and(tirx.shift_right(bits, unsigned(16)), unsigned(1))
        rounded = tirx.shift_right(bits + unsigned(0x7FFF) + odd, unsigned(16))
        return tirx.Select(tirx.isnan(wide), unsigned(0x7FC0), rounded).astype("uint16")

    def unsigned(number: int) -> Any:
        return tirx.const(number, "uint32")

    return tirx.reinterpret("bfloat16", named("bits", tirx.reinterpret("uint32", wide), upper_half))
