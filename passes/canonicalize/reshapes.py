"""Reshapes that cancel or compose."""

from __future__ import annotations

from whet.ir.graph import Value
from whet.passes import ops
from whet.passes.rewrite import MatchFailure, Node, RewritePattern, Rewriter


class ComposeReshapes(RewritePattern):
    """reshape(reshape(x)) -> reshape(x)."""

    allow_shared = True

    def pattern(self, x: Node) -> Node:
        return ops.reshape(ops.reshape(x))

    def rewrite(self, rewriter: Rewriter, x: Value) -> Value:
        result: Value = rewriter.again(x)
        return result


class DropReshape(RewritePattern):
    """reshape(x) to the shape that x has -> x."""

    def pattern(self, x: Node) -> Node:
        return ops.reshape(x)

    def rewrite(self, rewriter: Rewriter, x: Value) -> Value:
        if not x.type.same_as(rewriter.root.result.type):
            raise MatchFailure("changes the shape", x)
        return x


PATTERNS = (DropReshape(), ComposeReshapes())
