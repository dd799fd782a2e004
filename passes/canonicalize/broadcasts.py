"""Broadcasts that elementwise operations do by themselves."""

from __future__ import annotations

from whet.ir.definition import InferError
from whet.ir.dimensions import same_dim
from whet.ir.graph import Value
from whet.passes import ops
from whet.passes.canonicalize.elementwise import any_elementwise
from whet.passes.rewrite import MatchFailure, Node, RewritePattern, Rewriter


class DropBroadcast(RewritePattern):
    """broadcast_to(x) that repeats nothing -> x or a reshape; broadcast_to(broadcast_to(x)) -> one of them."""

    def pattern(self, x: Node) -> Node:
        return ops.broadcast_to(x)

    def rewrite(self, rewriter: Rewriter, x: Value) -> Value:
        target = rewriter.root.result.type
        if x.type.same_as(target):
            return x
        result: Value
        if same_dim(x.type.numel, target.numel):
            result = rewriter.reshape(x, shape=target.shape)
            return result
        if x.producer is None or x.producer.name != "broadcast_to":
            raise MatchFailure("repeats elements", x)
        result = rewriter.again(x.producer.operand(0))
        return result


class BroadcastIntoElementwise(RewritePattern):
    """f(broadcast_to(x), y) -> f(x, y), for elementwise f whose other operands give the shape."""

    def pattern(self, *operands: Node) -> Node:
        return any_elementwise(operands[0])

    def rewrite(self, rewriter: Rewriter, *operands: Value) -> Value:
        root = rewriter.root
        plain = list(operands)
        for index, value in enumerate(operands):
            if value.producer is None or value.producer.name != "broadcast_to":
                continue
            tried = [*plain[:index], value.producer.operand(0), *plain[index + 1 :]]
            try:
                (type,) = root.definition.result_types([item.type for item in tried], root.attributes)
            except InferError:
                continue  # sizes that are equal only once they are broadcast
            if type.same_as(root.result.type):
                plain = tried
        if plain == list(operands):
            raise MatchFailure("no broadcast operand, or the result has its shape from it", *operands)
        result: Value = rewriter.again(*plain)
        return result


PATTERNS = (DropBroadcast(), BroadcastIntoElementwise())
