"""From a graph with quantize and dequantize around real operations to one that computes on the codes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Final

import torch
from torch import Tensor

from whet.ir.graph import Graph, Operation, Value
from whet.passes import ops
from whet.passes.base import Context, Pass, PassResult
from whet.passes.canonicalize.dead_code import DeadCodeElimination
from whet.passes.quantization.integer_forms import (
    Codes,
    IntegerForm,
    dequantized,
    integer_form,
    parameters_of,
)
from whet.passes.rewrite import AnyOf, MatchFailure, Node, RewritePattern, Rewriter, apply_patterns


@dataclass(frozen=True)
class FoldQuantization(Pass):
    """dequantize -> operation -> quantize  ->  the operation on codes, as docs/numerics.md defines it (Q4-Q11).

    - conv, linear and matmul of dequantized operands become conv_integer, linear_integer, matmul_integer: exact i32
      sums, a constant bias among them. Where a quantize follows (relu and clamp may stand between), the sum is
      requantized by m = f32(f64(sx) · f64(sw) / f64(sy)), else dequantized by f32(f64(sx) · f64(sw)).
    - mean, avg_pool and adaptive_avg_pool become i32 sums, likewise.
    - max_pool, reshape, transpose, slice, flip, broadcast_to, take, relu and concat (of equal parameters) act on the
      codes; so does a clamp between a dequantize and a quantize of the same parameters.
    - A quantize of a constant is one; a quantize of what has just been dequantized by the same parameters goes.

    All else between (add, gelu, softmax, ...) stays what it is, and backends fuse it with the dequantize before and
    the quantize behind. An operation that cannot take its codes is left in f32; the tracer has the reason.
    """

    must_change: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Work on a clone; the graph itself comes back where nothing could be folded."""
        clone = graph.clone()
        applied = apply_patterns(clone, _patterns(clone), context.tracer)
        if not applied:
            return PassResult(graph, False)
        changes = {_CHANGES[name]: count for name, count in applied.items()}
        return PassResult(DeadCodeElimination().run(clone, context).graph, True, changes)


_CHANGES: Final = {
    "IntegerOperation": "integer operation",
    "OnCodes": "operation on codes",
    "ConcatOnCodes": "concat on codes",
    "ReluOnCodes": "clamp of codes",
    "ClampOnCodes": "clamp of codes",
    "RoundTrip": "round trip removed",
    "QuantizedConstant": "quantized constant",
}


def _patterns(graph: Graph) -> tuple[RewritePattern, ...]:
    return (
        QuantizedConstant(),
        RoundTrip(),
        ClampOnCodes(),
        OnCodes(),
        ReluOnCodes(),
        ConcatOnCodes(),
        IntegerOperation(graph),
    )


def dequantize(rewriter: Rewriter, codes: Codes, value: Value) -> Value:
    """`value` with the parameters of `codes`."""
    scale, zero_point = rewriter.constant(codes.scale), rewriter.constant(codes.zero_point)
    result: Value = rewriter.dequantize(value, scale, zero_point, axis=codes.axis)
    return result


def _codes(value: Value) -> Codes:
    codes = dequantized(value)
    if codes is None:
        raise MatchFailure("is not dequantized by constants", value)
    return codes


class QuantizedConstant(RewritePattern):
    """quantize(constant) -> constant."""

    def pattern(self, x: Node, scale: Node, zero_point: Node) -> Node:
        return ops.quantize(x, scale, zero_point)

    def rewrite(self, rewriter: Rewriter, x: Value, scale: Value, zero_point: Value) -> Value:
        if x.constant is None or scale.constant is None or zero_point.constant is None:
            raise MatchFailure("is no constant", x)
        definition, attributes = rewriter.root.definition, rewriter.root.attributes
        codes = definition.evaluate(x.constant, scale.constant, zero_point.constant, **attributes)
        assert x.producer is not None
        key = x.producer.attributes["key"]
        return rewriter.constant(codes, f"{key}.{attributes['dtype'].value}" if key else "", attributes["dtype"])


class RoundTrip(RewritePattern):
    """quantize(dequantize(q, s, z), s, z) -> q: codes survive the round trip (numerics: Q4)."""

    allow_shared = True

    def pattern(self, x: Node, scale: Node, zero_point: Node) -> Node:
        return ops.quantize(x, scale, zero_point)

    def rewrite(self, rewriter: Rewriter, x: Value) -> Value:
        codes = _codes(x)
        wanted = parameters_of(rewriter.root, rewriter.root.result)
        if wanted is None or not wanted.matches(codes):
            raise MatchFailure("was dequantized by other parameters", x)
        return codes.value


# Movements, and a maximum over windows: monotone, and nothing else than elements of their first operand.
_ON_CODES: Final = ("reshape", "transpose", "slice", "flip", "broadcast_to", "max_pool")


class OnCodes(RewritePattern):
    """f(dequantize(q, s, z)) -> dequantize(f(q), s, z) for what moves or selects elements (numerics: Q10)."""

    allow_shared = True

    def pattern(self, x: Node, indices: Node) -> Node:
        return AnyOf(*(getattr(ops, name)(x) for name in _ON_CODES), ops.take(x, indices))

    def rewrite(self, rewriter: Rewriter, x: Value) -> Value:
        codes = _codes(x)
        if not codes.per_tensor:
            raise MatchFailure("its codes have a scale for each channel", x)
        return dequantize(rewriter, codes, rewriter.again(codes.value, *rewriter.root.operands[1:]))


class ConcatOnCodes(RewritePattern):
    """concat of dequantized values with equal parameters -> dequantize(concat of their codes)."""

    allow_shared = True

    def pattern(self, *xs: Node) -> Node:
        return ops.concat(*xs)

    def rewrite(self, rewriter: Rewriter, *xs: Value) -> Value:
        found = [_codes(value) for value in xs]
        different = [value for value, codes in zip(xs, found, strict=True) if not codes.matches(found[0])]
        if different or not found[0].per_tensor:
            raise MatchFailure("the operands have different parameters", *different)
        return dequantize(rewriter, found[0], rewriter.again(*(codes.value for codes in found)))


class ReluOnCodes(RewritePattern):
    """relu(dequantize(q, s, z)) -> dequantize(max(q, z), s, z): the bound 0 is a code (numerics: Q10)."""

    allow_shared = True

    def pattern(self, x: Node) -> Node:
        return ops.relu(x)

    def rewrite(self, rewriter: Rewriter, x: Value) -> Value:
        codes = _codes(x)
        if not codes.per_tensor:
            raise MatchFailure("its codes have a scale for each channel", x)
        return dequantize(rewriter, codes, clamped(rewriter, codes.value, codes.point, None))


class ClampOnCodes(RewritePattern):
    """quantize(clamp(dequantize(q, s, z)), s, z) -> clamp(q) to the codes of its bounds (numerics: Q10)."""

    allow_shared = True

    def pattern(self, x: Node, scale: Node, zero_point: Node) -> Node:
        return ops.quantize(ops.clamp(x), scale, zero_point)

    def rewrite(self, rewriter: Rewriter, x: Value) -> Value:
        codes = _codes(x)
        wanted = parameters_of(rewriter.root, rewriter.root.result)
        if wanted is None or not codes.per_tensor or not wanted.matches(codes):
            raise MatchFailure("was dequantized by other parameters", x)
        clamp = rewriter.root.operand(0).producer
        assert clamp is not None
        quantize = rewriter.root
        bounds = (clamp.attributes[name] for name in ("minimum", "maximum"))
        low, high = (None if bound is None else _code(quantize, wanted, bound) for bound in bounds)
        return clamped(rewriter, codes.value, low, high)


def _code(quantize: Operation, parameters: Codes, number: float) -> int:
    x = torch.tensor(number, dtype=torch.float32)
    dtype = quantize.attributes["dtype"]
    return int(quantize.definition.evaluate(x, parameters.scale, parameters.zero_point, dtype=dtype))


def clamped(rewriter: Rewriter, codes: Value, low: int | None, high: int | None) -> Value:
    """`codes` within [low, high]; the value itself where its type has no codes outside."""
    lowest, highest = codes.type.dtype.integer_range
    low = None if low is None or low <= lowest else low
    high = None if high is None or high >= highest else high
    if low is None and high is None:
        return codes
    result: Value = rewriter.clamp(codes, minimum=low, maximum=high)
    return result


class IntegerOperation(RewritePattern):
    """f(dequantize(x), dequantize(w), b) -> dequantize or requantize of f on codes; see FoldQuantization."""

    allow_shared = True

    def __init__(self, graph: Graph) -> None:
        self._dimensions = graph.dimensions

    def pattern(self, x: Node, w: Node, b: Node | None = None) -> Node:
        return AnyOf(
            *(getattr(ops, name)(x, w, b) for name in ("conv", "linear")),
            ops.matmul(x, w),
            *(getattr(ops, name)(x) for name in ("mean", "avg_pool", "adaptive_avg_pool")),
        )

    def rewrite(self, rewriter: Rewriter) -> Value:
        root = rewriter.root
        form = integer_form(root, self._dimensions)
        operands = list(form.operands)
        if form.bias is not None:
            operands.append(rewriter.constant(form.bias, form.bias_key))
        total: Value = getattr(rewriter, form.name)(*operands, **form.attributes)
        target = None if form.rest is not None else _following(root.result, rewriter.returned)
        multiplier = None if target is None else _multiplier(form, target)
        if target is not None and multiplier is not None:
            zero_point = rewriter.constant(target.zero_point)
            codes = rewriter.requantize(
                total, rewriter.constant(multiplier), zero_point, dtype=target.value.type.dtype, axis=form.axis
            )
            return dequantize(rewriter, target, codes)
        real: Value = rewriter.dequantize(total, rewriter.constant(form.scale.float()), axis=form.axis)
        return real if form.rest is None else rewriter.add(real, _along(rewriter, form.rest, root))


def _following(value: Value, returned: Collection[Value]) -> Codes | None:
    """The quantize, per tensor, that is all that `value` goes to, straight or through one relu or clamp."""
    for clamps in (True, False):
        if value in returned or len(value.uses) != 1:
            return None
        user = value.uses[0][0]
        if user.name == "quantize":
            found = parameters_of(user, user.result)
            return found if found is not None and found.per_tensor else None
        if not clamps or user.name not in ("relu", "clamp"):
            return None
        value = user.result
    return None


def _multiplier(form: IntegerForm, target: Codes) -> Tensor | None:
    """f32(f64(sx) · f64(sw) / f64(sy)) (numerics: Q8); None where that is no normal number."""
    multiplier = (form.scale / target.scale.double()).float()
    limits = torch.finfo(torch.float32)
    normal = (multiplier >= limits.tiny) & torch.isfinite(multiplier)
    return multiplier if bool(normal.all()) else None


def _along(rewriter: Rewriter, bias: Value, layer: Operation) -> Value:
    """A bias [channels] such that it broadcasts against the layer's result."""
    behind = 0 if layer.name == "linear" else _dims_behind_channels(layer)
    if not behind:
        return bias
    shape = (bias.type.shape[0], *([1] * behind))
    if bias.constant is not None:
        return rewriter.constant(bias.constant.reshape([int(dim) for dim in shape]))
    result: Value = rewriter.reshape(bias, shape=shape)
    return result


def _dims_behind_channels(layer: Operation) -> int:
    return layer.result.type.rank - 2 if layer.attributes["layout"] == "channels_first" else 0
