"""Removing operations whose results nothing uses."""

from __future__ import annotations

from dataclasses import dataclass

from whet.ir.graph import Graph
from whet.passes.base import Context, Pass, PassResult


@dataclass(frozen=True)
class DeadCodeElimination(Pass):
    """Remove every operation, constants too, that no output and no state output depends on."""

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Work on a clone; the graph itself comes back where every operation is alive."""
        clone = graph.clone()
        removed = remove_dead_code(clone)
        return PassResult(clone, True, {"dead operation": removed}) if removed else PassResult(graph, False)


def remove_dead_code(graph: Graph) -> int:
    """Remove dead operations from `graph` in place; how many there were."""
    needed = set(graph.returns)
    alive = []
    for operation in reversed(graph.operations):
        if needed.isdisjoint(operation.results):
            operation.drop_operands()
            continue
        alive.append(operation)
        needed.update(value for value in operation.operands if value is not None)
    removed = len(graph.operations) - len(alive)
    graph.operations = alive[::-1]
    return removed
