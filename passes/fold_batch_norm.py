"""Folding batch norm into the convolution or linear layer before it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from whet.ir.graph import Graph, Operation, Value
from whet.ir.ops.contraction import channel_dim
from whet.passes import ops
from whet.passes.base import Context, Pass, PassResult
from whet.passes.rewrite import MatchFailure, Node, RewritePattern, Rewriter, apply_patterns


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """batch_norm(conv(x, w, b)) -> conv(x, w · s, (b - mean) · s + bias), with s = weight / √(variance + epsilon).

    For conv, conv_transpose and linear with constant weights and statistics, computed in float64 and rounded once
    (Jacob et al., CVPR 2018, section 3.2). With `expand`, a batch norm that has no such layer before it becomes
    x · s + t with constants.
    """

    expand: bool = True

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Work on a clone; the graph itself comes back where there is no batch norm with constant statistics."""
        clone = graph.clone()
        changes = apply_patterns(clone, [_FoldIntoConv(), _FoldIntoConvTranspose(), _FoldIntoLinear()], context.tracer)
        if self.expand:
            changes += apply_patterns(clone, [_ExpandBatchNorm()], context.tracer)
        named = {_CHANGES[name]: count for name, count in changes.items()}
        return PassResult(clone, True, named) if changes else PassResult(graph, False)


_CHANGES = {
    "_FoldIntoConv": "folded into conv",
    "_FoldIntoConvTranspose": "folded into conv_transpose",
    "_FoldIntoLinear": "folded into linear",
    "_ExpandBatchNorm": "expanded",
}


def scale_and_shift(operation: Operation) -> tuple[torch.Tensor, torch.Tensor]:
    """s and t in float64, one number a channel, with batch_norm(x) = x · s + t. Raises MatchFailure."""
    _, mean, variance, weight, bias = [*operation.operands, None, None][:5]
    moving = [value for value in (mean, variance, weight, bias) if value is not None and value.constant is None]
    if moving:
        raise MatchFailure("statistics, weight and bias of the batch norm must be constants", *moving)
    assert mean is not None and variance is not None
    scale = (_float64(variance) + operation.attributes["epsilon"]).rsqrt()
    scale = scale if weight is None else scale * _float64(weight)
    shift = -_float64(mean) * scale
    return scale, shift if bias is None else shift + _float64(bias)


def _float64(value: Value) -> torch.Tensor:
    assert value.constant is not None
    return value.constant.double()


def _rounded(tensor: torch.Tensor, like: Value) -> torch.Tensor:
    return tensor.to(like.type.dtype.torch)


class _FoldIntoLayer(RewritePattern):
    """Base: `layer` is the operation's name; subclasses say which dimension and how the weight is scaled."""

    layer: str

    def pattern(
        self,
        x: Node,
        w: Node,
        mean: Node,
        variance: Node,
        b: Node | None = None,
        weight: Node | None = None,
        bias: Node | None = None,
    ) -> Node:
        """The layer, then batch norm."""
        layer: Node = getattr(ops, self.layer)(x, w, b)
        return ops.batch_norm(layer, mean, variance, weight, bias)

    def rewrite(self, rewriter: Rewriter, x: Value, w: Value, b: Value | None) -> Value:
        """The same layer with other weights. Raises MatchFailure for weights that are not constant."""
        norm = rewriter.root
        layer = norm.operand(0).producer
        assert layer is not None
        if w.constant is None or (b is not None and b.constant is None):
            raise MatchFailure(f"weight and bias of the {self.layer} must be constants", w, b)
        if norm.attributes["axis"] != self.channel(layer):
            raise MatchFailure(f"normalizes dimension {norm.attributes['axis']}, not the channels", norm.operand(0))
        scale, shift = scale_and_shift(norm)
        folded = shift if b is None else _float64(b) * scale + shift
        result: Value = getattr(rewriter, self.layer)(
            x,
            rewriter.constant(_rounded(self.scaled(layer, _float64(w), scale), w), _key(w)),
            rewriter.constant(_rounded(folded, w), _key(b) if b is not None else _bias_key(w)),
            **layer.attributes,
        )
        return result

    def channel(self, layer: Operation) -> int:
        """The dimension of the layer's result that its output channels lie in."""
        return channel_dim(layer.result.type.rank, layer.attributes["layout"])

    def scaled(self, layer: Operation, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The layer's weight with output channel o multiplied by scale[o]."""
        return weight * scale.reshape(-1, *([1] * (weight.dim() - 1)))


class _FoldIntoConv(_FoldIntoLayer):
    layer = "conv"


class _FoldIntoConvTranspose(_FoldIntoLayer):
    layer = "conv_transpose"

    def scaled(self, layer: Operation, weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        """The weight is [in, out / groups, *kernel]: rows of group g make the channels of group g."""
        groups = layer.attributes["groups"]
        grouped = weight.unflatten(0, (groups, -1))
        factors = scale.reshape(groups, 1, -1, *([1] * (weight.dim() - 2)))
        return (grouped * factors).flatten(0, 1)


class _FoldIntoLinear(_FoldIntoLayer):
    layer = "linear"

    def channel(self, layer: Operation) -> int:
        """Features are last."""
        return layer.result.type.rank - 1


class _ExpandBatchNorm(RewritePattern):
    """batch_norm(x) -> x · s + t."""

    def pattern(
        self, x: Node, mean: Node, variance: Node, weight: Node | None = None, bias: Node | None = None
    ) -> Node:
        """Any batch norm."""
        return ops.batch_norm(x, mean, variance, weight, bias)

    def rewrite(self, rewriter: Rewriter, x: Value, mean: Value) -> Value:
        """Two elementwise operations. Raises MatchFailure where statistics are state."""
        norm = rewriter.root
        shape = (-1, *([1] * (x.type.rank - 1 - norm.attributes["axis"])))
        scale, shift = (_rounded(tensor.reshape(shape), x) for tensor in scale_and_shift(norm))
        stem = _key(mean).rpartition(".")[0]
        scaled = rewriter.mul(x, rewriter.constant(scale, f"{stem}.scale" if stem else ""))
        result: Value = rewriter.add(scaled, rewriter.constant(shift, f"{stem}.shift" if stem else ""))
        return result


def _key(value: Value) -> str:
    assert value.producer is not None
    key: str = value.producer.attributes["key"]
    return key


def _bias_key(weight: Value) -> str:
    """The key that a bias beside this weight would have had."""
    key = _key(weight)
    return f"{key.removesuffix('weight')}bias" if key.endswith("weight") else f"{key}.bias" if key else ""
