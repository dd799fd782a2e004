"""Operations that change nothing, and pairs of which one does the work of both."""

from __future__ import annotations

from typing import Final

from whet.ir.graph import Value
from whet.ir.types import DType
from whet.passes import ops
from whet.passes.canonicalize.elementwise import filled_with
from whet.passes.rewrite import AnyOf, MatchFailure, Node, RewritePattern, Rewriter


class _DropNeutral(RewritePattern):
    """Base: f(x, neutral) -> x."""

    neutral: float

    def rewrite(self, rewriter: Rewriter, x: Value, y: Value) -> Value:
        if not x.type.same_as(rewriter.root.result.type):
            raise MatchFailure("broadcasts", x)
        if not filled_with(y, self.neutral):
            raise MatchFailure(f"is not the constant {self.neutral}", y)
        return x


class DropZero(_DropNeutral):
    """x + 0, x - 0 -> x."""

    neutral = 0

    def pattern(self, x: Node, y: Node) -> Node:
        return AnyOf(ops.add(x, y), ops.sub(x, y))


class DropOne(_DropNeutral):
    """x · 1, x / 1, x ** 1 -> x."""

    neutral = 1

    def pattern(self, x: Node, y: Node) -> Node:
        return AnyOf(ops.mul(x, y), ops.div(x, y), ops.pow(x, y))


class DropSame(RewritePattern):
    """Casts to x's own type, clamps without bounds, padding by nothing, reductions over no dimension -> x."""

    def pattern(self, x: Node) -> Node:
        reductions = (getattr(ops, name)(x, dims=()) for name in ("sum", "mean", "prod", "amax", "amin"))
        return AnyOf(ops.cast(x), ops.clamp(x, minimum=None, maximum=None), ops.pad(x), *reductions)

    def rewrite(self, rewriter: Rewriter, x: Value) -> Value:
        if not x.type.same_as(rewriter.root.result.type):
            raise MatchFailure("changes the type", x)
        if any(low != 0 for low, _ in rewriter.root.attributes.get("padding", ())):
            raise MatchFailure("moves elements", x)
        return x


# every value of the first is a value of the second
_WIDENING: Final[dict[DType, frozenset[DType]]] = {
    DType.BOOL: frozenset(DType) - {DType.BOOL, DType.I4},
    DType.U8: frozenset({DType.I16, DType.I32, DType.I64, DType.F16, DType.F32, DType.F64}),
    DType.I8: frozenset({DType.I16, DType.I32, DType.I64, DType.F16, DType.BF16, DType.F32, DType.F64}),
    DType.I16: frozenset({DType.I32, DType.I64, DType.F32, DType.F64}),
    DType.I32: frozenset({DType.I64, DType.F64}),
    DType.F16: frozenset({DType.F32, DType.F64}),
    DType.BF16: frozenset({DType.F32, DType.F64}),
    DType.F32: frozenset({DType.F64}),
}


class ComposeCasts(RewritePattern):
    """cast(cast(x)) -> cast(x), where the inner one loses nothing."""

    allow_shared = True

    def pattern(self, x: Node, *, inner: DType, outer: DType) -> Node:
        return ops.cast(ops.cast(x, dtype=inner), dtype=outer)

    def rewrite(self, rewriter: Rewriter, x: Value, *, inner: DType, outer: DType) -> Value:
        if inner not in _WIDENING.get(x.type.dtype, frozenset()):
            raise MatchFailure(f"{x.type.dtype.value} to {inner.value} may lose something", x)
        result: Value = rewriter.cast(x, dtype=outer)
        return result


class DropRepeated(RewritePattern):
    """f(f(x)) -> f(x), where f changes nothing the second time."""

    allow_shared = True

    def pattern(self, x: Node) -> Node:
        names = ("relu", "abs", "sign", "ceil", "floor", "round", "trunc")
        return AnyOf(*(getattr(ops, name)(getattr(ops, name)(x)) for name in names))

    def rewrite(self, rewriter: Rewriter, x: Value) -> Value:
        return rewriter.root.operand(0)


class DropTwice(RewritePattern):
    """f(f(x)) -> x."""

    allow_shared = True

    def pattern(self, x: Node) -> Node:
        return AnyOf(*(getattr(ops, name)(getattr(ops, name)(x)) for name in ("neg", "bitwise_not")))

    def rewrite(self, rewriter: Rewriter, x: Value) -> Value:
        return x


Bound = float | None


class MergeClamps(RewritePattern):
    """clamp(clamp(x, a, b), c, d) -> clamp(x, a', b'); relu is the clamp from 0."""

    allow_shared = True

    def pattern(self, x: Node) -> Node:
        inner = AnyOf(ops.clamp(x), ops.relu(x))
        return AnyOf(ops.clamp(inner), ops.relu(inner))

    def rewrite(self, rewriter: Rewriter, x: Value) -> Value:
        inner, outer = _bounds(rewriter.root.operand(0)), _bounds(rewriter.root.result)
        minimum, maximum = _clamped(inner[0], outer), _clamped(inner[1], outer)
        minimum = outer[0] if inner[0] is None else minimum
        maximum = outer[1] if inner[1] is None else maximum
        # an open side of the inner clamp lets the outer bound through as it is
        if minimum is not None and maximum is not None and minimum > maximum:
            raise MatchFailure("the bounds cross", x)
        result: Value = rewriter.clamp(x, minimum=minimum, maximum=maximum)
        return result


def _bounds(value: Value) -> tuple[Bound, Bound]:
    producer = value.producer
    assert producer is not None
    if producer.name == "relu":
        return 0.0 if value.type.dtype.is_float else 0, None
    minimum, maximum = producer.attributes["minimum"], producer.attributes["maximum"]
    if minimum is not None and maximum is not None and minimum > maximum:
        raise MatchFailure("the bounds cross", value)
    return minimum, maximum


def _clamped(bound: Bound, by: tuple[Bound, Bound]) -> Bound:
    if bound is None:
        return None
    bound = bound if by[0] is None else max(bound, by[0])
    return bound if by[1] is None else min(bound, by[1])


class ClampToRelu(RewritePattern):
    """clamp(x, 0, none) -> relu(x)."""

    def pattern(self, x: Node) -> Node:
        return ops.clamp(x, minimum=0, maximum=None)

    def rewrite(self, rewriter: Rewriter, x: Value) -> Value:
        result: Value = rewriter.relu(x)
        return result


PATTERNS = (
    DropZero(),
    DropOne(),
    DropSame(),
    ComposeCasts(),
    DropRepeated(),
    DropTwice(),
    MergeClamps(),
    ClampToRelu(),
)
