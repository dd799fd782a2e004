"""Transposes that cancel, that compose, that move nothing, and that sink until they meet."""

from __future__ import annotations

from collections.abc import Sequence

from whet.ir.dimensions import same_dim
from whet.ir.graph import Value
from whet.passes import ops
from whet.passes.canonicalize.elementwise import any_elementwise
from whet.passes.rewrite import MatchFailure, Node, RewritePattern, Rewriter

Permutation = tuple[int, ...]


class ComposeTransposes(RewritePattern):
    """transpose(transpose(x)) -> one transpose, or x itself where they cancel."""

    allow_shared = True

    def pattern(self, x: Node, *, inner: Permutation, outer: Permutation) -> Node:
        return ops.transpose(ops.transpose(x, permutation=inner), permutation=outer)

    def rewrite(self, rewriter: Rewriter, x: Value, *, inner: Permutation, outer: Permutation) -> Value:
        permutation = tuple(inner[dim] for dim in outer)
        if permutation == tuple(range(len(permutation))):
            return x
        result: Value = rewriter.transpose(x, permutation=permutation)
        return result


class TransposeOfOnes(RewritePattern):
    """transpose(x) -> x, or a reshape, where only dimensions of size 1 change places."""

    def pattern(self, x: Node, *, permutation: Permutation) -> Node:
        return ops.transpose(x, permutation=permutation)

    def rewrite(self, rewriter: Rewriter, x: Value, *, permutation: Permutation) -> Value:
        if permutation == tuple(range(x.type.rank)):
            return x
        moved = [dim for dim in permutation if not same_dim(x.type.shape[dim], 1)]
        if moved != sorted(moved):
            raise MatchFailure("moves elements", x)
        result: Value = rewriter.reshape(x, shape=rewriter.root.result.type.shape)
        return result


class SinkTranspose(RewritePattern):
    """f(transpose(x), transpose(y), constant) -> transpose(f(x, y, constant')), for elementwise f."""

    def pattern(self, *operands: Node) -> Node:
        return any_elementwise(operands[0])

    def rewrite(self, rewriter: Rewriter, *operands: Value) -> Value:
        permutation = self._common_permutation(rewriter, operands)
        inverse = [permutation.index(dim) for dim in range(len(permutation))]
        moved = []
        for value in operands:
            if value.constant is None:
                moved.append(value.producer.operand(0) if value.type.rank and value.producer else value)
            elif value.type.rank == 0:
                moved.append(value)
            else:
                tensor = value.constant
                full = tensor.reshape([1] * (len(permutation) - tensor.dim()) + list(tensor.shape))
                moved.append(rewriter.constant(full.permute(inverse).contiguous()))
        result: Value = rewriter.transpose(rewriter.again(*moved), permutation=permutation)
        return result

    def _common_permutation(self, rewriter: Rewriter, operands: Sequence[Value]) -> Permutation:
        """Of all operands but constants and scalars. Raises MatchFailure where they have none in common."""
        found: Permutation | None = None
        for value in operands:
            if value.constant is not None or value.type.rank == 0:
                continue
            if value.producer is None or value.producer.name != "transpose":
                raise MatchFailure("is no transpose", value)
            if not rewriter.private(value):
                raise MatchFailure("used elsewhere", value)
            permutation: Permutation = value.producer.attributes["permutation"]
            if found not in (None, permutation):
                raise MatchFailure("is transposed differently", value)
            found = permutation
        if found is None or len(found) != rewriter.root.result.type.rank:
            raise MatchFailure("has no transposed operand of its own rank")
        return found


PATTERNS = (ComposeTransposes(), TransposeOfOnes(), SinkTranspose())
