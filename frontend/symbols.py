"""torch's symbolic sizes as dimensions: fresh names, divisibility, and numbers computed from sizes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any

import sympy
import torch
from torch.fx import Node
from torch.utils._sympy import functions as torch_functions

from whet.errors import CaptureError
from whet.ir.builder import Builder
from whet.ir.dimensions import Dim, DimRange, simplify_dim, symbol
from whet.ir.graph import Value
from whet.ir.types import DType

_UNLIMITED = 2**31
# A float factor is a fraction with at most so many bits behind the point; 0.1 is none.
_FRACTION_BITS = 20


class SizeSymbols:
    """torch's symbols (s77, ...) as s0, s1, ... in order of appearance, so that text does not depend on the
    run.

    Where the program is only valid for multiples of d (it splits a dimension by d), the symbol becomes d ·
    s0, so that arithmetic on shapes stays exact.
    """

    def __init__(self, placeholders: Iterable[Node], ranges: Mapping[Any, Any]) -> None:
        self.dimensions: dict[str, DimRange] = {}
        self._names: dict[str, Dim] = {}
        for node in placeholders:
            value = node.meta.get("val")
            for size in value.shape if isinstance(value, torch.Tensor) else ():
                for item in sorted(expression_of(size).free_symbols, key=str):
                    self._add(str(item), _divisor(value, item), ranges.get(item))

    def _add(self, name: str, divisor: int, limits: Any) -> None:
        if name in self._names:
            return
        fresh = symbol(f"s{len(self._names)}")
        self._names[name] = simplify_dim(divisor * fresh)
        # torch writes 2 for "1 was not looked at": its programs take 1 all the same, as does their own check
        lower = 1 if limits is None or int(limits.lower) <= 2 else int(limits.lower)
        upper = None if limits is None or limits.upper > _UNLIMITED else int(limits.upper)
        self.dimensions[fresh.name] = DimRange(
            -(-lower // divisor), None if upper is None else upper // divisor
        )

    def translate(self, value: Any) -> Dim | sympy.Expr:
        """A size, or a number computed from sizes. Raises CaptureError for one that depends on data."""
        if isinstance(value, (int, bool)):
            return int(value)
        expression = expression_of(value)
        unknown = sorted(str(item) for item in expression.free_symbols if str(item) not in self._names)
        if unknown:
            raise CaptureError(
                f"a size depends on the data ({expression}): shapes must follow from the shapes of the "
                f"inputs. Replace "
                "boolean indexing and nonzero() by torch.where, and .item() by a number or a 0-d tensor"
            )
        return simplify_dim(self._convert(expression))

    def _convert(self, expression: sympy.Expr) -> Any:
        if expression.is_Symbol:
            return self._names[expression.name]
        if expression.is_Integer:
            return int(expression)
        if expression.is_Float or expression.is_Rational:
            return _fraction(expression)
        convert = _FUNCTIONS.get(type(expression))
        if convert is None:
            raise CaptureError(
                f"a size is computed as {expression}: {type(expression).__name__} of sizes is not supported"
            )
        return convert(*(self._convert(argument) for argument in expression.args))


def expression_of(size: Any) -> sympy.Expr:
    """The expression of a symbolic number, or the number."""
    return size.node.expr if isinstance(size, (torch.SymInt, torch.SymFloat)) else sympy.Integer(int(size))


def _divisor(tensor: Any, item: sympy.Symbol) -> int:
    """The least common multiple of what the program's guards say the symbol is divided by."""
    guards = getattr(tensor.fake_mode.shape_env, "divisible", ()) if hasattr(tensor, "fake_mode") else ()
    divisor = 1
    for guard in guards:
        dividend, modulus = guard.args
        factor = dividend / item
        if modulus.is_Integer and factor.is_Integer:  # factor * item is a multiple of modulus
            divisor = math.lcm(divisor, int(modulus) // math.gcd(int(factor), int(modulus)))
    return divisor


def _fraction(number: sympy.Expr) -> sympy.Rational:
    exact = sympy.Rational(number)
    if exact.q > 2**_FRACTION_BITS:
        raise CaptureError(
            f"a size is multiplied by {float(number)}, which is no exact fraction: pass size= to interpolate "
            f"in place of "
            "scale_factor=, or make this dimension static"
        )
    return exact


def _floor(value: Any) -> Any:
    """⌊value⌋ of a rational expression over sizes."""
    numerator, denominator = sympy.fraction(sympy.together(sympy.sympify(value)))
    return numerator if denominator == 1 else torch_functions.FloorDiv(numerator, denominator)


def _ceiling(value: Any) -> Any:
    numerator, denominator = sympy.fraction(sympy.together(sympy.sympify(value)))
    return (
        numerator if denominator == 1 else torch_functions.FloorDiv(numerator + denominator - 1, denominator)
    )


def _divide(left: Any, right: Any) -> Any:
    return sympy.sympify(left) / sympy.sympify(right)


def _over_expressions(function: Any) -> Callable[..., Any]:
    return lambda *arguments: function(*map(sympy.sympify, arguments))


_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    sympy.Add: lambda *terms: sum(terms),
    sympy.Mul: lambda *factors: reduce(operator.mul, factors),
    sympy.Pow: lambda base, exponent: sympy.sympify(base) ** exponent,
    torch_functions.PowByNatural: lambda base, exponent: sympy.sympify(base) ** exponent,
    torch_functions.FloatPow: lambda base, exponent: sympy.sympify(base) ** exponent,
    torch_functions.OpaqueUnaryFn_sqrt: lambda value: sympy.sqrt(value),
    torch_functions.ToFloat: lambda value: value,
    torch_functions.IntTrueDiv: _divide,
    torch_functions.FloatTrueDiv: _divide,
    torch_functions.TruncToInt: _floor,
    torch_functions.FloorToInt: _floor,
    torch_functions.CeilToInt: _ceiling,
    torch_functions.FloorDiv: _over_expressions(torch_functions.FloorDiv),
    torch_functions.CleanDiv: _over_expressions(torch_functions.FloorDiv),
    torch_functions.Mod: _over_expressions(torch_functions.Mod),
    torch_functions.PythonMod: _over_expressions(torch_functions.PythonMod),
    torch_functions.Max: _over_expressions(torch_functions.Max),
    torch_functions.Min: _over_expressions(torch_functions.Min),
}
"""torch's functions of sizes -> ours; sizes are not negative, so that truncation is the floor."""


def emit_number(builder: Builder, expression: sympy.Expr) -> Value:
    """A scalar (f64) computed from sizes, such as √s0 or s0 / 3, for use as an operand."""
    if expression.is_integer:
        return _full(builder, simplify_dim(expression))
    if expression.is_number:
        return builder.scalar(float(expression), DType.F64)
    if expression.is_Pow:
        base, exponent = (emit_number(builder, argument) for argument in expression.args)
        result: Value = builder.pow(base, exponent)
        return result
    emit = {sympy.Add: builder.add, sympy.Mul: builder.mul}.get(type(expression))
    if emit is None:
        raise CaptureError(f"a number is computed from sizes as {expression}, which is not supported")
    return reduce(emit, [emit_number(builder, argument) for argument in expression.args])


def _full(builder: Builder, value: Dim) -> Value:
    result: Value = builder.full(shape=(), value=value, dtype=DType.F64)
    return result
