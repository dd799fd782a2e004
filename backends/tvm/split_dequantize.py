"""A dequantize of its own for each reader that can compute it on the way."""

from __future__ import annotations

from dataclasses import dataclass

from whet.backends.tvm.regions import Kind, kind_of
from whet.ir.builder import Builder
from whet.ir.graph import Graph, Operation
from whet.ir.types import DType
from whet.passes.base import Context, Pass, PassResult


@dataclass(frozen=True)
class SplitDequantize(Pass):
    """dequantize(q), read n times  ->  one for each elementwise reader, and one for all others.

    A region takes in only what nothing else reads. A quarter of the bytes is read where the codes of a residual are
    dequantized inside of every kernel that adds it; accumulators (i32) stay, as they are a kernel's epilogue.
    """

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Each new dequantize counts as one change; the graph itself comes back where there is none."""
        clone = graph.clone()
        returned = set(clone.returns)
        shared = [
            operation
            for operation in clone.operations
            if operation.name == "dequantize"
            and operation.operand(0).type.dtype is not DType.I32
            and len(operation.result.users) + (operation.result in returned) > 1
        ]
        count = sum(_split(clone, operation) for operation in shared)
        return PassResult(clone, True, {"dequantize split": count}) if count else PassResult(graph, False)


def _split(graph: Graph, operation: Operation) -> int:
    readers = [user for user in operation.result.users if kind_of(user) is Kind.ELEMENTWISE]
    kept = len(readers) == len(operation.result.users) and operation.result not in graph.returns
    for reader in readers[kept:]:
        twin = Builder(graph, reader, operation.location).dequantize(*operation.operands, **operation.attributes)
        for index, operand in enumerate(reader.operands):
            if operand is operation.result:
                reader.set_operand(index, twin)
    return len(readers[kept:])
