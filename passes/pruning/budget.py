"""How much a pruned graph may cost."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from whet.errors import PassError
from whet.ir.dimensions import Dim, substitute
from whet.ir.graph import Graph


@dataclass(frozen=True)
class Budget:
    """What may be left of a graph.

    Args:
        kind: "flops" (of one call; symbolic dimensions count as their minimum), "parameters" (elements of
            floating-point constants) or "bytes" (of all constants, as they are stored).
        amount: a float in (0, 1]: the fraction of the graph's own that may be left; an int: so much in all.

    Raises PassError for another kind, and for an amount out of its range.
    """

    kind: str
    amount: float | int

    def __post_init__(self) -> None:
        if self.kind not in MEASURES:
            raise PassError(f"Budget's kind is one of {sorted(MEASURES)}, got {self.kind!r}")
        whole = isinstance(self.amount, int) and not isinstance(self.amount, bool)
        if not (self.amount > 0 if whole else 0 < self.amount <= 1):
            raise PassError(
                f"Budget's amount is a fraction that is kept, a float in (0, 1], or a number in all, a positive int; "
                f"got {self.amount!r}"
            )

    def limit(self, graph: Graph) -> float:
        """What may be left of `graph`, in FLOPs, elements or bytes."""
        return float(self.amount) if isinstance(self.amount, int) else self.amount * self.measure(graph)

    def measure(self, graph: Graph) -> int:
        """What `graph` costs, in FLOPs, elements or bytes."""
        return MEASURES[self.kind](graph)


def flops(graph: Graph) -> int:
    """Floating-point and integer operations of one call, symbolic dimensions at their minimum."""
    smallest = {name: max(limits.minimum, 1) for name, limits in graph.dimensions.items()}

    def bound(dim: Dim) -> int:
        return int(substitute(dim, smallest))

    return sum(bound(operation.definition.cost(operation).flops) for operation in graph.operations)


def parameters(graph: Graph) -> int:
    """Elements of floating-point constants."""
    return sum(int(value.type.numel) for value in graph.constants if value.type.dtype.is_float)


def stored_bytes(graph: Graph) -> int:
    """Bytes of all constants."""
    return sum(-(-int(value.type.numel) * value.type.dtype.bits // 8) for value in graph.constants)


MEASURES: Final[dict[str, Callable[[Graph], int]]] = {
    "bytes": stored_bytes,
    "flops": flops,
    "parameters": parameters,
}
