"""All simplifications together, until none is left."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final

from whet.errors import InternalError
from whet.ir.graph import Graph
from whet.passes.base import Context, Pass, PassResult
from whet.passes.canonicalize import broadcasts, identities, layers, reshapes, slices, transposes
from whet.passes.canonicalize.common_subexpressions import merge_common_subexpressions
from whet.passes.canonicalize.constant_folding import fold_constants
from whet.passes.canonicalize.dead_code import remove_dead_code
from whet.passes.rewrite.driver import apply_patterns

PATTERNS: Final = (
    *identities.PATTERNS,
    *reshapes.PATTERNS,
    *transposes.PATTERNS,
    *broadcasts.PATTERNS,
    *slices.PATTERNS,
    *layers.PATTERNS,
)
"""Every simplification that is a pattern; the order is that of trying them at one operation."""

_MOST_ROUNDS = 20


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Fold constants, merge what is computed twice, apply `PATTERNS` and remove dead code, to a fixpoint.

    Results change by rounding alone (numerics.md, T4). `max_bytes` is ConstantFolding's; `merge_constants`
    ties constants of equal content (leave them apart before training).
    """

    max_bytes: int = 1 << 20
    merge_constants: bool = True

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Work on a clone; the graph itself comes back where it is canonical already."""
        clone = graph.clone()
        changes: Counter[str] = Counter()
        for _ in range(_MOST_ROUNDS):
            found = Counter({"dead operation": remove_dead_code(clone)})
            found["merged operation"] = merge_common_subexpressions(clone, self.merge_constants)
            found += apply_patterns(clone, PATTERNS, context.tracer)
            found["folded value"] = fold_constants(clone, self.max_bytes)
            found = +found
            if not found:
                return PassResult(clone, True, changes) if changes else PassResult(graph, False)
            changes += found
        raise InternalError(f"no canonical form after {_MOST_ROUNDS} rounds; the last one did {dict(found)}")
