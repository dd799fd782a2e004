"""Stored forms of weights (pruned, shared) as plain constants, for code that takes the weights themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from whet.ir.graph import Graph, Operation
from whet.passes.base import Context, Pass, PassResult
from whet.passes.canonicalize.dead_code import DeadCodeElimination
from whet.passes.rewrite.rewriter import Rewriter
from whet.passes.weights import evaluate_weight, key_of

FORMS: Final = frozenset({"masked", "lookup"})
"""Operations that exist for the recovery and the storage of weights; no kernel computes them."""


@dataclass(frozen=True)
class MaterializeWeights(Pass):
    """masked(w, mask) and lookup(codebook, indices) of constants -> constants, exactly."""

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Each weight counts as one change; the graph itself comes back where there is none."""
        clone = graph.clone()
        rewriter = Rewriter(clone)
        changed = sum(_materialize(rewriter, operation) for operation in clone.operations if operation.name in FORMS)
        if not changed:
            return PassResult(graph, False)
        rewriter.commit()
        return PassResult(DeadCodeElimination().run(clone, context).graph, True, {"weight materialized": changed})


def _materialize(rewriter: Rewriter, operation: Operation) -> bool:
    value = operation.result
    used_as_weight = any(user.name not in FORMS for user in value.users) or value in rewriter.returned
    if not used_as_weight:
        return False
    tensor = evaluate_weight(value)
    if tensor is None:
        return False
    rewriter.begin(operation)
    constant = rewriter.constant(tensor, key_of(value))
    rewriter.graph.replace_value(value, constant)
    return True
