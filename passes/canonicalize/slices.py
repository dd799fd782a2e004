"""Slices and concatenations that undo or contain each other."""

from __future__ import annotations

from whet.ir.dimensions import Dim, same_dim, simplify_dim
from whet.ir.graph import Operation, Value
from whet.passes import ops
from whet.passes.rewrite import MatchFailure, Node, RewritePattern, Rewriter

Dims = tuple[Dim, ...]


class DropSlice(RewritePattern):
    """slice(x) of all of x -> x."""

    def pattern(self, x: Node) -> Node:
        return ops.slice(x)

    def rewrite(self, rewriter: Rewriter, x: Value) -> Value:
        attributes = rewriter.root.attributes
        whole = x.type.same_as(rewriter.root.result.type) and all(same_dim(item, 0) for item in attributes["starts"])
        if not whole or any(step != 1 for step in attributes["steps"]):
            raise MatchFailure("takes a part", x)
        return x


class ComposeSlices(RewritePattern):
    """slice(slice(x)) -> slice(x)."""

    allow_shared = True

    def pattern(self, x: Node) -> Node:
        return ops.slice(ops.slice(x))

    def rewrite(self, rewriter: Rewriter, x: Value) -> Value:
        inner, outer = _producer(rewriter.root.operand(0)).attributes, rewriter.root.attributes
        starts, stops, steps = [], [], []
        for dim in range(x.type.rank):
            step = inner["steps"][dim]
            start = simplify_dim(inner["starts"][dim] + outer["starts"][dim] * step)
            if step == 1:
                stop = simplify_dim(inner["starts"][dim] + outer["stops"][dim])
            else:  # one past the last element taken, which may be before the inner stop
                last = simplify_dim(inner["starts"][dim] + (outer["stops"][dim] - 1) * step + 1)
                stop = last if _is_positive(outer["stops"][dim]) else start
            starts.append(start)
            stops.append(stop)
            steps.append(step * outer["steps"][dim])
        result: Value = rewriter.slice(x, starts=tuple(starts), stops=tuple(stops), steps=tuple(steps))
        if not result.type.same_as(rewriter.root.result.type):
            raise MatchFailure("the sizes cannot be shown to agree", x)
        return result


def _is_positive(dim: Dim) -> bool:
    if isinstance(dim, int):
        return dim > 0
    if dim.is_positive:
        return True
    raise MatchFailure(f"cannot tell whether {dim} is positive")


class SliceOfConcat(RewritePattern):
    """slice(concat(a, b, c)) -> slice(b), where it takes elements of b alone."""

    allow_shared = True

    def pattern(self, *parts: Node, axis: int) -> Node:
        return ops.slice(ops.concat(*parts, axis=axis))

    def rewrite(self, rewriter: Rewriter, *parts: Value, axis: int) -> Value:
        attributes = rewriter.root.attributes
        start, stop = attributes["starts"][axis], attributes["stops"][axis]
        if not isinstance(start, int) or not isinstance(stop, int):
            raise MatchFailure("the slice is not static", rewriter.root.result)
        offset = 0
        for part in parts:
            size = part.type.shape[axis]
            if not isinstance(size, int):
                raise MatchFailure("its size is not static", part)
            if offset <= start and stop <= offset + size:
                result: Value = rewriter.again(
                    part,
                    starts=_with(attributes["starts"], axis, start - offset),
                    stops=_with(attributes["stops"], axis, stop - offset),
                )
                return result
            offset += size
        raise MatchFailure("takes elements of several operands", *parts)


class ConcatOfSlices(RewritePattern):
    """concat(x[:a], x[a:b]) -> x[:b]: runs of operands that continue each other become one."""

    def pattern(self, *parts: Node, axis: int) -> Node:
        return ops.concat(*parts, axis=axis)

    def rewrite(self, rewriter: Rewriter, *parts: Value, axis: int) -> Value:
        merged: list[Value] = []
        for part in parts:
            joined = _joined(rewriter, merged[-1], part, axis) if merged else None
            if joined is None:
                merged.append(part)
            else:
                merged[-1] = joined
        if len(merged) == len(parts) and len(parts) > 1:
            raise MatchFailure("no operand continues the one before it", *parts)
        if len(merged) == 1:
            return merged[0]
        result: Value = rewriter.concat(*merged, axis=axis)
        return result


def _joined(rewriter: Rewriter, left: Value, right: Value, axis: int) -> Value | None:
    """One slice of what both are slices of, where the second starts where the first ends; else None."""
    first, second = left.producer, right.producer
    if first is None or second is None or first.name != "slice" or second.name != "slice":
        return None
    if first.operands != second.operands or not _continues(first, second, axis):
        return None
    stops = _with(first.attributes["stops"], axis, second.attributes["stops"][axis])
    result: Value = rewriter.slice(first.operand(0), **{**first.attributes, "stops": stops})
    return result


def _continues(first: Operation, second: Operation, axis: int) -> bool:
    left, right = first.attributes, second.attributes
    if left["steps"] != right["steps"] or left["steps"][axis] != 1:
        return False
    others = [dim for dim in range(len(left["steps"])) if dim != axis]
    same = all(same_dim(left[key][dim], right[key][dim]) for key in ("starts", "stops") for dim in others)
    return same and same_dim(left["stops"][axis], right["starts"][axis])


class FlattenConcat(RewritePattern):
    """concat(concat(a, b), c) -> concat(a, b, c), along one axis, where the inner one has no other use."""

    def pattern(self, *parts: Node, axis: int) -> Node:
        return ops.concat(*parts, axis=axis)

    def rewrite(self, rewriter: Rewriter, *parts: Value, axis: int) -> Value:
        flat: list[Value] = []
        for part in parts:
            producer = part.producer
            inner = producer is not None and producer.name == "concat" and producer.attributes["axis"] == axis
            if producer is not None and inner and rewriter.private(part):
                flat += [value for value in producer.operands if value is not None]
            else:
                flat.append(part)
        if len(flat) == len(parts):
            raise MatchFailure("no operand is a concatenation along this axis with no other use", *parts)
        result: Value = rewriter.concat(*flat, axis=axis)
        return result


def _producer(value: Value) -> Operation:
    assert value.producer is not None
    return value.producer


def _with(dims: Dims, axis: int, dim: Dim) -> Dims:
    return (*dims[:axis], dim, *dims[axis + 1 :])


PATTERNS = (DropSlice(), ComposeSlices(), SliceOfConcat(), ConcatOfSlices(), FlattenConcat())
