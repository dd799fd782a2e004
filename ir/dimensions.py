"""Symbolic dimensions: integer expressions over named symbols, with their ranges.

Expressions are sympy's; text is parsed by a grammar of our own, because `sympify` evaluates code.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

import sympy
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, PythonMod

Dim: TypeAlias = int | sympy.Expr


@dataclass(frozen=True)
class DimRange:
    """What values a symbol may take: minimum..maximum (None: no upper limit), multiples of `multiple_of`."""

    minimum: int = 1
    maximum: int | None = None
    multiple_of: int = 1

    def __contains__(self, value: int) -> bool:
        if value < self.minimum or (self.maximum is not None and value > self.maximum):
            return False
        return value % self.multiple_of == 0

    @property
    def words(self) -> str:
        """For errors: "1..64", "8 and more in steps of 8"."""
        limits = f"{self.minimum} and more" if self.maximum is None else f"{self.minimum}..{self.maximum}"
        return limits if self.multiple_of == 1 else f"{limits} in steps of {self.multiple_of}"

    def __str__(self) -> str:
        """As in the text form: "1..64 step 8"."""
        upper = "inf" if self.maximum is None else str(self.maximum)
        return f"{self.minimum}..{upper} step {self.multiple_of}"


def symbol(name: str) -> sympy.Symbol:
    """The dimension symbol of that name; symbols of equal name are equal."""
    return sympy.Symbol(name, integer=True, positive=True)


def simplify_dim(value: Any) -> Dim:
    """An int where the expression is a number, the expanded expression otherwise."""
    if isinstance(value, int):
        return int(value)
    expression = sympy.expand(value)
    return int(expression) if expression.is_Integer else expression


def same_dim(left: Dim, right: Dim) -> bool:
    """Whether two dimensions are equal for every value of their symbols, as far as algebra can tell."""
    if left == right:
        return True
    if isinstance(left, int) and isinstance(right, int):
        return False
    return bool(sympy.expand(left - right) == 0)


def product(dims: Iterable[Dim]) -> Dim:
    """The product of all dimensions; 1 where there are none."""
    return simplify_dim(reduce(operator.mul, dims, 1))


def floor_div(left: Dim, right: Dim) -> Dim:
    """The quotient rounded towards minus infinity."""
    if isinstance(left, int) and isinstance(right, int):
        return left // right
    return simplify_dim(FloorDiv(sympy.sympify(left), sympy.sympify(right)))


def smaller_dim(left: Dim, right: Dim) -> Dim:
    """The minimum of two dimensions."""
    if isinstance(left, int) and isinstance(right, int):
        return min(left, right)
    return simplify_dim(_CALLS["min"](sympy.sympify(left), sympy.sympify(right)))


def dim_symbols(dim: Dim) -> set[sympy.Symbol]:
    """The symbols in a dimension."""
    return set() if isinstance(dim, int) else set(dim.free_symbols)


def solve_dim(dim: Dim, size: int, bindings: Mapping[str, int]) -> tuple[str, int] | None:
    """The one unbound symbol of `dim` and the value that makes it `size`.

    None where another number of symbols is unbound, or where `dim` is not linear in it ("2*s0 + 1" is), or
    where no integer does it.
    """
    linear = linear_in(dim, bindings)
    if linear is None:
        return None
    unknown, slope, rest = linear
    known = {symbol(name): number for name, number in bindings.items()}
    solution = (size - rest.xreplace(known)) / slope.xreplace(known)
    return (unknown.name, int(solution)) if solution.is_Integer else None


def linear_in(dim: Dim, bound: Iterable[str]) -> tuple[sympy.Symbol, sympy.Expr, sympy.Expr] | None:
    """The one symbol of `dim` that is not bound, its slope and the rest, where `dim` is slope * symbol + rest.

    None unless the slope is a number other than zero, and the rest known.
    """
    unknown = [item for item in dim_symbols(dim) if item.name not in bound]
    if len(unknown) != 1:
        return None
    expression, (item,) = sympy.sympify(dim), unknown
    slope, rest = expression.coeff(item, 1), expression.coeff(item, 0)
    linear = slope.is_number and slope != 0 and expression == slope * item + rest and item not in rest.free_symbols
    return (item, slope, rest) if linear else None


def bound_symbols(dims: Iterable[Dim]) -> set[str]:
    """Names of the symbols whose values follow from the sizes of `dims`."""
    bound: set[str] = set()
    waiting = [dim for dim in dims if dim_symbols(dim)]
    while True:
        found = {linear[0].name for dim in waiting if (linear := linear_in(dim, bound)) is not None}
        if not found - bound:
            return bound
        bound |= found


def substitute(value: Any, bindings: Mapping[str, int]) -> Any:
    """`value` with every symbol in `bindings` replaced by its number, through tuples; anything but a dimension is
    left as it is.
    """
    if isinstance(value, tuple | list):
        return tuple(substitute(item, bindings) for item in value)
    if not isinstance(value, sympy.Expr):
        return value
    result = value.subs({item: bindings[item.name] for item in value.free_symbols if item.name in bindings})
    if result.free_symbols:
        return result
    return int(result) if result.is_integer else float(result)


def format_dim(dim: Dim) -> str:
    """The text of a dimension, which `parse_dim` reads. Raises ValueError for what the grammar has not."""
    if isinstance(dim, int):
        return str(dim)
    return _format(dim)


def _format(expression: sympy.Expr) -> str:
    if isinstance(expression, (FloorDiv,)):
        return f"({_format(expression.args[0])} // {_format(expression.args[1])})"
    if isinstance(expression, (Mod, PythonMod, sympy.Mod)):
        return f"({_format(expression.args[0])} % {_format(expression.args[1])})"
    if isinstance(expression, (Max, sympy.Max)):
        return f"max({', '.join(sorted(_format(item) for item in expression.args))})"
    if isinstance(expression, (Min, sympy.Min)):
        return f"min({', '.join(sorted(_format(item) for item in expression.args))})"
    if expression.is_Symbol:
        return str(expression.name)
    if expression.is_Integer:
        return str(int(expression))
    if expression.is_Add:
        terms = [_format(item) for item in expression.as_ordered_terms()]
        return f"({' + '.join(terms)})"
    if expression.is_Mul:
        return "*".join(_format(item) for item in expression.as_ordered_factors())
    if expression.is_Pow and expression.exp.is_Integer and expression.exp > 0:
        return "*".join([_format(expression.base)] * int(expression.exp))
    raise ValueError(f"a dimension cannot be written as {expression!r} ({type(expression).__name__})")


_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: lambda left, right: FloorDiv(sympy.sympify(left), sympy.sympify(right)),
    ast.Mod: lambda left, right: Mod(sympy.sympify(left), sympy.sympify(right)),
}
_CALLS: dict[str, Callable[..., Any]] = {"max": Max, "min": Min}


# No dimension is that long, and nesting grows with the length.
_LONGEST = 1000


def parse_dim(text: str) -> Dim:
    """The dimension that `text` writes: integers, names, + - * // %, max, min, parentheses. ValueError
    otherwise.
    """
    if len(text) > _LONGEST:
        raise ValueError(f"a dimension of {len(text)} characters is too long: {text[:40]!r}...")
    try:
        # Python's own grammar gives the tree; nothing of it is evaluated.
        tree = ast.parse(text.strip(), mode="eval")
        return simplify_dim(_from_ast(tree.body, text))
    except (SyntaxError, ZeroDivisionError, RecursionError, MemoryError) as error:
        raise ValueError(f"not a dimension: {text!r}") from error


def _from_ast(node: ast.expr, text: str) -> Any:
    match node:
        case ast.Constant(value=int() as number) if not isinstance(number, bool):
            return number
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_from_ast(operand, text)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _BINARY:
            return _BINARY[type(op)](_from_ast(left, text), _from_ast(right, text))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in _CALLS:
            return _CALLS[name](*(sympy.sympify(_from_ast(item, text)) for item in arguments))
    raise ValueError(f"not a dimension: {text!r}")
