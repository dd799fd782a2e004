"""Constants that the weights of a neighbouring linear layer or convolution can take in."""

from __future__ import annotations

from typing import Any

import torch

from whet.ir.graph import Operation, Value
from whet.passes import ops
from whet.passes.rewrite import AnyOf, MatchFailure, Node, RewritePattern, Rewriter
from whet.passes.weights import (
    LAYERS,
    bias_key,
    float64,
    input_channels,
    input_dim,
    key_of,
    output_channels,
    output_dim,
    per_channel,
    rounded,
    scale_inputs,
    scale_outputs,
)


class MatmulToLinear(RewritePattern):
    """matmul(x, w) -> linear(x, wᵀ), and matmul(x, transpose(w)) -> linear(x, w), for a constant matrix w."""

    allow_shared = True

    def pattern(self, x: Node, w: Node) -> Node:
        return ops.matmul(x, w)

    def rewrite(self, rewriter: Rewriter, x: Value, w: Value) -> Value:
        if w.type.rank != 2:
            raise MatchFailure("is no matrix", w)
        result: Value
        if w.producer is not None and w.producer.name == "transpose" and w.producer.operand(0).constant is not None:
            result = rewriter.linear(x, w.producer.operand(0), None)
            return result
        if w.constant is None:
            raise MatchFailure("is no constant", w)
        if any(user.name != "matmul" for user in w.users) or w in rewriter.returned:
            raise MatchFailure("would be stored twice: used elsewhere", w)
        assert w.producer is not None
        weight = rewriter.constant(w.constant.T.contiguous(), key_of(w), w.producer.attributes["dtype"])
        result = rewriter.linear(x, weight, None)
        return result


def _layers(x: Node, w: Node, b: Node | None) -> AnyOf:
    return AnyOf(*(getattr(ops, name)(x, w, b) for name in LAYERS))


def _layer_of(value: Value) -> Operation:
    assert value.producer is not None
    return value.producer


def _require_floats(value: Value) -> None:
    if not value.type.dtype.is_float:
        raise MatchFailure("is no float", value)


class ConstantBehindLayer(RewritePattern):
    """layer(x, w, b) + c, - c, · c, / c -> layer(x, w', b'), for a constant c with one number a channel."""

    def pattern(self, x: Node, w: Node, c: Node, b: Node | None = None) -> Node:
        layers = [getattr(ops, name)(x, w, b) for name in LAYERS]
        return AnyOf(*(getattr(ops, name)(layer, c) for layer in layers for name in ("add", "sub", "mul", "div")))

    def rewrite(self, rewriter: Rewriter, x: Value, w: Value, c: Value, b: Value | None) -> Value:
        root = rewriter.root
        if c.constant is None:
            raise MatchFailure("must be a constant", c)
        # the layer is the operand that is not c; the pattern may have taken them in either order
        layer = _layer_of(next(v for v in root.operands if v is not c and v is not None))
        _require_floats(c)
        channels = output_channels(layer)
        constant = per_channel(c, root.result.type.rank, output_dim(layer), channels)
        weight = w
        if root.name in ("mul", "div"):
            factor = constant if root.name == "mul" else constant.reciprocal()
            _require_own_weight(rewriter, layer, w)
            weight = rewriter.constant(rounded(scale_outputs(layer, float64(w), factor), w), key_of(w))
            bias = None if b is None else float64(b) * factor
        else:
            shift = constant if root.name == "add" else -constant
            bias = shift if b is None else float64(b) + shift
        return _emit(rewriter, layer, x, weight, bias, b)


def _require_own_weight(rewriter: Rewriter, layer: Operation, weight: Value) -> None:
    if weight.constant is None:
        raise MatchFailure("is no constant", weight)
    if any(user is not layer for user in weight.users) or weight in rewriter.returned:
        raise MatchFailure("would be stored twice: used elsewhere", weight)


def _emit(
    rewriter: Rewriter,
    layer: Operation,
    x: Value,
    weight: Value,
    bias: torch.Tensor | None,
    old_bias: Value | None,
) -> Value:
    key = key_of(old_bias) if old_bias is not None else bias_key(weight) if weight.constant is not None else ""
    constant = None if bias is None else rewriter.constant(rounded(bias, weight), key)
    result: Value = getattr(rewriter, layer.name)(x, weight, constant, **layer.attributes)
    return result


class ScaleBeforeLayer(RewritePattern):
    """layer(x · s, w, b) -> layer(x, w', b), for a constant s with one number a channel.

    Padding is by zeros, which scaling leaves as they are.
    """

    def pattern(self, x: Node, s: Node, w: Node, b: Node | None = None) -> Node:
        return AnyOf(*(_layers(scaled, w, b) for scaled in (ops.mul(x, s), ops.div(x, s))))

    def rewrite(self, rewriter: Rewriter, x: Value, s: Value, w: Value, b: Value | None) -> Value:
        layer = rewriter.root
        if not x.type.same_as(layer.operand(0).type):
            raise MatchFailure("is broadcast by the scale", x)
        _require_floats(s)
        scale = per_channel(s, x.type.rank, input_dim(layer), input_channels(layer))
        factor = scale if _layer_of(layer.operand(0)).name == "mul" else scale.reciprocal()
        _require_own_weight(rewriter, layer, w)
        weight = rewriter.constant(rounded(scale_inputs(layer, float64(w), factor), w), key_of(w))
        result: Value = rewriter.again(x, weight, b)
        return result


class ShiftBeforeLinear(RewritePattern):
    """linear(x + c, w, b) -> linear(x, w, b + w · c), for a constant c; for conv where nothing is padded."""

    def pattern(self, x: Node, c: Node, w: Node, b: Node | None = None) -> Node:
        return AnyOf(*(_unpadded(shifted, w, b) for shifted in (ops.add(x, c), ops.sub(x, c))))

    def rewrite(self, rewriter: Rewriter, x: Value, c: Value, w: Value, b: Value | None) -> Value:
        layer = rewriter.root
        if not x.type.same_as(layer.operand(0).type):
            raise MatchFailure("is broadcast by the constant", x)
        if any(pair != (0, 0) for pair in layer.attributes.get("padding", ())):
            raise MatchFailure("padding would be shifted too", layer.operand(0))
        _require_floats(c)
        shift = per_channel(c, x.type.rank, input_dim(layer), input_channels(layer))
        shift = shift if _layer_of(layer.operand(0)).name == "add" else -shift
        moved = scale_inputs(layer, float64(w), shift).flatten(1).sum(1)
        bias = moved if b is None else float64(b) + moved
        return _emit(rewriter, layer, x, w, bias, b)


def _unpadded(x: Any, w: Node, b: Node | None) -> AnyOf:
    return AnyOf(ops.linear(x, w, b), ops.conv(x, w, b))


PATTERNS = (MatmulToLinear(), ConstantBehindLayer(), ScaleBeforeLayer(), ShiftBeforeLinear())
