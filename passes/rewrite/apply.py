"""Rewrite patterns as a pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from whet.ir.graph import Graph
from whet.passes.base import Context, Pass, PassResult
from whet.passes.rewrite.driver import apply_patterns
from whet.passes.rewrite.pattern import RewritePattern


@dataclass(frozen=True)
class ApplyPatterns(Pass):
    """Apply `patterns` to a fixpoint. The pass manager makes one of every pattern that it is given."""

    patterns: tuple[RewritePattern, ...]

    must_change: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Work on a clone; the graph itself comes back where nothing matched."""
        clone = graph.clone()
        applied = apply_patterns(clone, self.patterns, context.tracer)
        return PassResult(clone, True, applied) if applied else PassResult(graph, False)

    @property
    def name(self) -> str:
        return ", ".join(pattern.name for pattern in self.patterns)
