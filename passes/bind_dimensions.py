"""Symbolic dimensions to numbers: a graph that was trained on batches, compiled for one picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from whet.errors import PassError
from whet.ir.dimensions import substitute
from whet.ir.graph import Graph
from whet.ir.types import TensorType
from whet.passes.base import Context, Pass, PassResult


@dataclass(frozen=True)
class BindDimensions(Pass):
    """Give symbolic dimensions a fixed size, so that kernels are made for it.

    Args:
        sizes: size by the name of the dimension; the empty mapping binds every dimension to `default`.
        default: the size of dimensions that `sizes` does not name; None: they stay symbolic.

    Raises PassError for a name that is no dimension of the graph and for a size outside of its range.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    default: int | None = None
    must_change: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Each dimension counts as one change."""
        unknown = sorted(set(self.sizes) - set(graph.dimensions))
        if unknown:
            raise PassError(f"no dimension is named {', '.join(unknown)}; the graph has {sorted(graph.dimensions)}")
        chosen = dict(self.sizes)
        if self.default is not None:
            chosen = dict.fromkeys(graph.dimensions, self.default) | chosen
        for name, size in chosen.items():
            if size not in graph.dimensions[name]:
                raise PassError(f"dimension {name} cannot be {size}: allowed is {graph.dimensions[name]}")
        if not chosen:
            return PassResult(graph, False)
        clone = graph.clone()
        for value in clone.values():
            value.type = _bound(value.type, chosen)
        for operation in clone.operations:
            operation.attributes = {key: substitute(item, chosen) for key, item in operation.attributes.items()}
        clone.dimensions = {name: limits for name, limits in graph.dimensions.items() if name not in chosen}
        return PassResult(clone, True, {"dimension bound": len(chosen)})


def _bound(type: TensorType, sizes: Mapping[str, Any]) -> TensorType:
    return TensorType(tuple(substitute(dim, sizes) for dim in type.shape), type.dtype)
