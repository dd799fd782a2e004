"""Folding batch norm into the convolution or linear layer before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch

from whet.ir.graph import Graph, Operation, Value
from whet.passes import ops
from whet.passes.base import Context, Pass, PassResult
from whet.passes.rewrite import AnyOf, MatchFailure, Node, RewritePattern, Rewriter, apply_patterns
from whet.passes.weights import (
    LAYERS,
    STORED_FORMS,
    bias_key,
    float64,
    key_of,
    output_dim,
    rounded,
    scale_outputs,
)


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """batch_norm(conv(x, w, b)) -> conv(x, w · s, (b - mean) · s + bias), s = weight / √(variance + epsilon).

    For conv, conv_transpose and linear with constant weights and statistics, computed in float64 and rounded
    once (Jacob et al., CVPR 2018, section 3.2); masked(w, m) becomes masked(w · s, m). With `expand`, a batch
    norm that has no such layer before it becomes x · s + t with constants.
    """

    expand: bool = True

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Work on a clone; the graph itself comes back where no batch norm has constant statistics."""
        clone = graph.clone()
        applied = apply_patterns(clone, [BatchNormIntoLayer()], context.tracer)
        if self.expand:
            applied += apply_patterns(clone, [ExpandBatchNorm()], context.tracer)
        changes = {_CHANGES[name]: count for name, count in applied.items()}
        return PassResult(clone, True, changes) if changes else PassResult(graph, False)


_CHANGES: Final = {"BatchNormIntoLayer": "batch norm folded", "ExpandBatchNorm": "batch norm expanded"}


def scale_and_shift(norm: Operation) -> tuple[torch.Tensor, torch.Tensor]:
    """s and t in float64, one number a channel, with batch_norm(x) = x · s + t.

    Raises MatchFailure where an operand other than x is no constant.
    """
    _, mean, variance, weight, bias = [*norm.operands, None, None][:5]
    moving = [value for value in (mean, variance, weight, bias) if value is not None and value.constant is None]
    if moving:
        raise MatchFailure("statistics, weight and bias of a batch norm must be constants to be folded", *moving)
    assert mean is not None and variance is not None
    scale = (float64(variance) + norm.attributes["epsilon"]).rsqrt()
    scale = scale if weight is None else scale * float64(weight)
    shift = -float64(mean) * scale
    return scale, shift if bias is None else shift + float64(bias)


class BatchNormIntoLayer(RewritePattern):
    """batch_norm(layer(x, w, b)) -> layer(x, w', b')."""

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
        layer = AnyOf(*(getattr(ops, name)(x, w, b) for name in LAYERS))
        return ops.batch_norm(layer, mean, variance, weight, bias)

    def rewrite(self, rewriter: Rewriter, x: Value, w: Value, b: Value | None) -> Value:
        norm = rewriter.root
        layer = norm.operand(0).producer
        assert layer is not None
        stored, mask = _stored_weight(layer, w, b)
        if norm.attributes["axis"] != output_dim(layer):
            raise MatchFailure(f"normalizes dimension {norm.attributes['axis']}, not the channels", norm.operand(0))
        scale, shift = scale_and_shift(norm)
        folded = shift if b is None else float64(b) * scale + shift
        scaled = rewriter.constant(rounded(scale_outputs(layer, float64(stored), scale), w), key_of(w))
        result: Value = getattr(rewriter, layer.name)(
            x,
            scaled if mask is None else rewriter.masked(scaled, mask),
            rewriter.constant(rounded(folded, w), key_of(b) if b is not None else bias_key(w)),
            **layer.attributes,
        )
        return result


def _stored_weight(layer: Operation, weight: Value, bias: Value | None) -> tuple[Value, Value | None]:
    """The constant that a weight is stored as, and its mask: masked(w, m) · s = masked(w · s, m).

    Raises MatchFailure for what is computed, and for stored forms that cannot be scaled by channel.
    """
    form = weight.producer
    if form is None or form.name not in ("constant", *STORED_FORMS) or (bias is not None and bias.constant is None):
        raise MatchFailure(f"weight and bias of the {layer.name} must be constants", weight, bias)
    stored, mask = (form.operand(0), form.operand(1)) if form.name == "masked" else (weight, None)
    if stored.constant is None:
        raise MatchFailure("the weight is stored as integers or shared values: fold batch norms before", weight)
    return stored, mask


class ExpandBatchNorm(RewritePattern):
    """batch_norm(x) -> x · s + t."""

    def pattern(
        self, x: Node, mean: Node, variance: Node, weight: Node | None = None, bias: Node | None = None
    ) -> Node:
        return ops.batch_norm(x, mean, variance, weight, bias)

    def rewrite(self, rewriter: Rewriter, x: Value, mean: Value) -> Value:
        norm = rewriter.root
        scale, shift = scale_and_shift(norm)
        shape = (-1, *([1] * (x.type.rank - 1 - norm.attributes["axis"])))
        stem = key_of(mean).rpartition(".")[0]
        scale_key, shift_key = (f"{stem}.scale", f"{stem}.shift") if stem else ("", "")
        scaled = rewriter.mul(x, rewriter.constant(rounded(scale, x).reshape(shape), scale_key))
        result: Value = rewriter.add(scaled, rewriter.constant(rounded(shift, x).reshape(shape), shift_key))
        return result
