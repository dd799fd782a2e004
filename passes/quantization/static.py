"""Static quantization of convolutions and linear layers to 8-bit integers, with calibrated activations."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from whet.errors import PassError
from whet.ir.builder import Builder
from whet.ir.graph import Graph, Operation, Value
from whet.ir.ops.contraction import channel_dim
from whet.ir.types import DType
from whet.passes.base import Context, Pass, PassResult
from whet.passes.canonicalize.dead_code import DeadCodeElimination
from whet.passes.fold_batch_norm import FoldBatchNorm
from whet.passes.quantization.calibration import Range, observe_ranges
from whet.passes.quantization.parameters import Affine, asymmetric, quantize_weight, symmetric_per_channel


@dataclass(frozen=True)
class QuantizeStatic(Pass):
    """conv and linear in integers: weights i8 symmetric per output channel, activations 8-bit asymmetric per tensor.

    An activation x that a quantized layer reads becomes q = quantize(x); the layer computes
    i32 Σ (q - zero_point) · w_q + b_q, dequantized by scale_x · scale_w; all other readers of x read dequantize(q), so
    that residual additions and pooling run on 8-bit values too. Batch norms are folded first. Ranges are the smallest
    and largest values on the calibration data (Jacob et al., CVPR 2018; Krishnamoorthi 2018).

    Args:
        exclude: patterns (fnmatch) of module paths that stay in floating point.
        activation_dtype: u8 or i8; None: what the target's integer instructions take.

    Raises PassError without calibration data, for data that is empty or not finite, and for a pattern that fits
    nothing.
    """

    exclude: tuple[str, ...] = ()
    activation_dtype: DType | None = None
    must_change: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Fold, calibrate, rewrite. Each layer counts as one change."""
        folded = FoldBatchNorm(expand=False).run(graph, context).graph.clone()
        layers = self._layers(folded)
        if not layers:
            return PassResult(graph, False)
        dtype = self.activation_dtype or (context.target.activation_dtype if context.target else DType.U8)
        activations = list(dict.fromkeys(layer.operand(0) for layer in layers))
        ranges = observe_ranges(folded, activations, context.calibration)
        _Rewriter(folded, {value: _affine(found, dtype) for value, found in ranges.items()}).run(layers)
        result = DeadCodeElimination().run(folded, context).graph
        return PassResult(result, True, {f"{name} quantized": count for name, count in _count(layers).items()})

    def _layers(self, graph: Graph) -> list[Operation]:
        unused = set(self.exclude)
        layers = []
        for operation in graph.operations:
            matched = {pattern for pattern in self.exclude if fnmatch.fnmatch(operation.location.module, pattern)}
            unused -= matched
            if not matched and _is_quantizable(operation):
                layers.append(operation)
        if unused:
            raise PassError(f"exclude: no layer has a module path like {', '.join(sorted(unused))}")
        return layers


def _is_quantizable(operation: Operation) -> bool:
    if operation.name not in _INTEGER_FORMS or operation.result.type.dtype is not DType.F32:
        return False
    weight_and_bias = operation.operands[1:]
    return all(value is None or value.constant is not None for value in weight_and_bias)


def _affine(found: Range, dtype: DType) -> Affine:
    return asymmetric(found.minimum, found.maximum, dtype)


def _count(layers: Sequence[Operation]) -> dict[str, int]:
    names = [layer.name for layer in layers]
    return {name: names.count(name) for name in dict.fromkeys(names)}


class _Rewriter:
    """Edits a private clone: quantize after each activation, integer layers in the place of real ones."""

    def __init__(self, graph: Graph, activations: dict[Value, Affine]) -> None:
        self.graph = graph
        self.activations = activations
        self.quantized: dict[Value, Value] = {}

    def run(self, layers: Sequence[Operation]) -> None:
        # replacing a layer changes what the next one reads: the activations are those of the real graph
        sources = {layer: layer.operand(0) for layer in layers}
        for value in dict.fromkeys(sources.values()):
            self._quantize(value, set(layers))
        for layer, value in sources.items():
            self._replace(layer, value)

    def _quantize(self, value: Value, layers: set[Operation]) -> None:
        """q = quantize(x) where x is made; every reader but quantized layers reads dequantize(q)."""
        affine = self.activations[value]
        builder = Builder(self.graph, before=self._after(value))
        scale = builder.constant(affine.scale)
        zero_point = builder.constant(affine.zero_point)
        quantized = builder.quantize(value, scale, zero_point, dtype=affine.dtype, name_hint=f"{value.name}.q")
        self.quantized[value] = quantized
        others = [use for use in value.uses if use[0] not in layers and use[0] is not quantized.producer]
        if not others:
            return
        real = builder.dequantize(quantized, scale, zero_point, name_hint=f"{value.name}.dq")
        for operation, index in others:
            operation.set_operand(index, real)

    def _after(self, value: Value) -> Operation:
        if value.producer is None:
            return self.graph.operations[0]
        return self.graph.operations[self.graph.operations.index(value.producer) + 1]

    def _replace(self, layer: Operation, value: Value) -> None:
        weight = layer.operand(1)
        bias = layer.operands[2] if len(layer.operands) > 2 else None
        activation = self.activations[value]
        assert weight.constant is not None
        parameters = symmetric_per_channel(weight.constant)
        product = activation.scale.double() * parameters.scale.double()
        builder = Builder(self.graph, before=layer)
        integers = builder.constant(quantize_weight(weight.constant, parameters), _key(weight, "i8"))
        offset = None
        if bias is not None and bias.constant is not None:
            limits = torch.iinfo(torch.int32)
            rounded = torch.round(bias.constant.double() / product).clamp(limits.min, limits.max)
            offset = builder.constant(rounded.to(torch.int32), _key(bias, "i32"))
        form, axis = _INTEGER_FORMS[layer.name]
        total = getattr(builder, form)(
            self.quantized[value],
            integers,
            offset,
            x_zero_point=int(activation.zero_point),
            **layer.attributes,
        )
        real = builder.dequantize(total, builder.constant(product.float()), axis=axis(layer))
        self.graph.replace_value(layer.result, real)
        self.graph.erase(layer)


def _key(value: Value, suffix: str) -> str:
    assert value.producer is not None
    key = value.producer.attributes["key"] or value.name
    return f"{key}.{suffix}"


def _conv_channel(layer: Operation) -> int:
    return channel_dim(layer.result.type.rank, layer.attributes["layout"])


# Layer -> its integer form, and where its output channels lie in the result.
_INTEGER_FORMS: dict[str, tuple[str, Callable[[Operation], int]]] = {
    "conv": ("conv_integer", _conv_channel),
    "linear": ("linear_integer", lambda layer: layer.result.type.rank - 1),
}
