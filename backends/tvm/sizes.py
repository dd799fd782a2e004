"""The variables of a Relax function for a graph's symbolic dimensions."""

from __future__ import annotations

from typing import Any

import sympy
from tvm import tirx

from whet.backends.tvm.lowering.context import lower_dim
from whet.ir.dimensions import Dim, dim_symbols, linear_in
from whet.ir.graph import Graph


class Sizes:
    """A graph's dimensions as expressions of Relax variables.

    Relax binds a variable only where it is a whole dimension of an argument. A symbol that arguments have in sums and
    products alone ("4*n") is computed from such a dimension, which gets a variable of its own.

    Attributes:
        symbols: by name, what a symbol is.
    """

    def __init__(self, graph: Graph) -> None:
        dims = [dim for value in graph.arguments for dim in value.type.shape if dim_symbols(dim)]
        bare = {dim.name for dim in dims if isinstance(dim, sympy.Symbol)}
        self.symbols: dict[str, Any] = {name: tirx.Var(name, "int64") for name in _names(graph)}
        self._whole: dict[Dim, tirx.Var] = {}
        waiting = dims
        while waiting:
            late = [dim for dim in waiting if not self._solve(dim, bare)]
            if len(late) == len(waiting):
                return
            waiting = late

    def _solve(self, dim: Dim, bound: set[str]) -> bool:
        """Bind the one unknown symbol of a dimension of an argument; whether none is unknown now."""
        if all(item.name in bound for item in dim_symbols(dim)):
            return True
        linear = linear_in(dim, bound)
        if linear is None or not linear[1].is_Integer:
            return False
        unknown, slope, rest = linear
        size = self._whole.setdefault(dim, tirx.Var(f"size{len(self._whole)}", "int64"))
        self.symbols[unknown.name] = tirx.floordiv(size - lower_dim(rest, self.symbols), int(slope))
        bound.add(unknown.name)
        return True

    def of(self, dim: Dim) -> Any:
        """A dimension: a number, or an int64 expression."""
        if isinstance(dim, int):
            return dim
        return self._whole[dim] if dim in self._whole else lower_dim(dim, self.symbols)


def _names(graph: Graph) -> list[str]:
    found = {item.name for value in graph.values() for dim in value.type.shape for item in dim_symbols(dim)}
    return sorted(found | set(graph.dimensions))
