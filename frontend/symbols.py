"""torch's symbolic sizes as dimensions: fresh names, divisibility, and numbers computed from sizes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import reduce
from typing import Any

import sympy
import torch
from torch.fx import Node
from torch.utils._sympy import functions as torch_functions

from whet.errors import CaptureError
from whet.frontend.dimension_names import DimensionNames, shape_environment
from whet.ir.builder import Builder
from whet.ir.dimensions import Dim, DimRange, simplify_dim, symbol
from whet.ir.graph import Value
from whet.ir.types import DType

_VIEWS = frozenset({torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default, torch.ops.aten.reshape.default})
"""Operators whose result has as many elements as their operand."""
_UNLIMITED = 2**31
# A float factor is a fraction with at most so many bits behind the point; 0.1 is none.
_FRACTION_BITS = 20


class SizeSymbols:
    """torch's symbols (s77, ...) under the user's names, or as s0, s1, ... in order of appearance, so that text does
    not depend on the run (see `DimensionNames`).

    Where the program is only valid for multiples of d (it splits a dimension by d), the symbol becomes d ·
    s0, so that arithmetic on shapes stays exact.
    """

    def __init__(self, nodes: Iterable[Node], ranges: Mapping[Any, Any]) -> None:
        self.dimensions: dict[str, DimRange] = {}
        self._names: dict[str, Dim] = {}
        nodes = list(nodes)
        sizes = [size for node in nodes if node.op == "placeholder" for size in _shape(node)]
        symbolic = [expression_of(size) for size in sizes if not isinstance(size, int)]
        divisors = _divisors(nodes) if symbolic else {}
        names = DimensionNames(nodes)
        for size in symbolic:
            for item in sorted(size.free_symbols, key=str):
                self._add(item, names, divisors.get(item, 1), ranges.get(item))

    def _add(self, item: sympy.Symbol, names: DimensionNames, divisor: int, limits: Any) -> None:
        if item.name in self._names:
            return
        fresh = symbol(names.name(item, divisor))
        self._names[item.name] = simplify_dim(divisor * fresh)
        # torch writes 2 for "1 was not looked at": its programs take 1 all the same, as does their own check
        lower = 1 if limits is None or int(limits.lower) <= 2 else int(limits.lower)
        upper = None if limits is None or limits.upper > _UNLIMITED else int(limits.upper)
        self.dimensions[fresh.name] = DimRange(-(-lower // divisor), None if upper is None else upper // divisor)

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


def _shape(node: Node) -> Sequence[Any]:
    value = node.meta.get("val")
    return value.shape if isinstance(value, torch.Tensor) else ()


def _divisors(nodes: Sequence[Node]) -> dict[sympy.Symbol, int]:
    """What each symbol is divided by without rest: the program is only valid for such sizes."""
    divisors: dict[sympy.Symbol, int] = {}
    for item, divisor in (*_from_remainders(nodes), *_from_equations(nodes)):
        divisors[item] = math.lcm(divisors.get(item, 1), divisor)
    return divisors


def _guards(nodes: Sequence[Node], name: str) -> Iterable[Any]:
    """What torch noted while it traced the program; a program that was loaded from a file has no such notes."""
    return list(getattr(shape_environment(nodes), name, ()))


def _from_remainders(nodes: Sequence[Node]) -> Iterable[tuple[sympy.Symbol, int]]:
    """Mod(factor * s, modulus) = 0."""
    for remainder in _guards(nodes, "divisible"):
        dividend, modulus = remainder.args
        for item in dividend.free_symbols:
            factor = dividend / item
            if modulus.is_Integer and factor.is_Integer:
                yield item, int(modulus) // math.gcd(int(factor), int(modulus))


def _from_equations(nodes: Sequence[Node]) -> Iterable[tuple[sympy.Symbol, int]]:
    """An equation with s // d that holds with s / d in its place says that d divides s."""
    guards = [guard.expr for guard in _guards(nodes, "guards")]
    differences = [guard.lhs - guard.rhs for guard in guards if isinstance(guard, sympy.Eq)]
    for node in nodes:
        if node.target in _VIEWS:
            differences.append(_numel(_shape(node.all_input_nodes[0])) - _numel(_shape(node)))
    for difference in differences:
        for quotient in difference.atoms(torch_functions.FloorDiv):
            item, divisor = quotient.args
            if item.is_Symbol and divisor.is_Integer and _vanishes(difference, quotient, item / divisor):
                yield item, int(divisor)


def _numel(shape: Sequence[Any]) -> sympy.Expr:
    return sympy.prod([expression_of(size) for size in shape])


def _vanishes(difference: sympy.Expr, quotient: sympy.Expr, exact: sympy.Expr) -> bool:
    """Whether a difference that is not 0 as it stands is 0 with the exact quotient."""
    if sympy.expand(difference) == 0:
        return False
    return bool(sympy.expand(difference.xreplace({quotient: exact}).doit()) == 0)


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
    return numerator if denominator == 1 else torch_functions.FloorDiv(numerator + denominator - 1, denominator)


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
