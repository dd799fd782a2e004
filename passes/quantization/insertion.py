"""Writing quantize and dequantize into a graph: around activations, and for the weights of layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from whet.ir.builder import Builder
from whet.ir.graph import Graph, Location, Operation, Value
from whet.passes.quantization.accumulation import bias_limit, terms
from whet.passes.quantization.bias_correction import correct_bias
from whet.passes.quantization.integer_forms import dequantized
from whet.passes.quantization.parameters import Affine, quantize_weight, weight_parameters
from whet.passes.quantization.rounding import LayerInputs, Nearest, Rounding
from whet.passes.weights import evaluate_weight, key_of


@dataclass(frozen=True)
class WeightOptions:
    """How weights become integers; see `weight_parameters`."""

    bits: int = 8
    per_channel: bool = True
    clip: str = "minmax"
    rounding: Rounding = field(default_factory=Nearest)
    bias_correction: bool = False


class Insertion:
    """Edits a private clone."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.builder = Builder(graph)

    def activation(self, value: Value, affine: Affine, reads: Callable[[Value, Operation], bool]) -> Value:
        """dequantize(quantize(value)), which operations that read `value` read from now on, where `reads` says so."""
        readers = [(operation, index) for operation, index in value.uses if reads(value, operation)]
        real = self._round_trip(value, affine, self._behind(value))
        for operation, index in readers:
            operation.set_operand(index, real)
        return real

    def operand(self, operation: Operation, index: int, affine: Affine) -> None:
        """dequantize(quantize(...)) for one reader alone."""
        real = self._round_trip(operation.operand(index), affine, operation)
        operation.set_operand(index, real)

    def weight(
        self, layer: Operation, options: WeightOptions, activation: Affine, inputs: LayerInputs | None = None
    ) -> None:
        """The layer's weight as dequantize(integers, one scale a row); what is dequantized already stays.

        A scale is large enough for the bias, in units of it and of `activation`'s, to fit an i32 beside the sum.
        `inputs` is what the layer reads, for a rounding that looks at it and for bias correction.
        """
        value = layer.operand(1)
        tensor = evaluate_weight(value)
        if tensor is None or dequantized(value) is not None:
            return
        affine = weight_parameters(tensor, options.bits, per_channel=options.per_channel, clip=options.clip)
        affine = self._roomy(layer, affine, activation)
        self.builder.before, self.builder.location = layer, layer.location
        key = key_of(value)
        codes = quantize_weight(tensor, affine, options.rounding, inputs)
        integers = self.builder.constant(codes, f"{key}.{affine.dtype.value}" if key else "", affine.dtype)
        scale = self.builder.constant(affine.scale, f"{key}.scale" if key else "")
        axis = 0 if affine.scale.dim() else None
        layer.set_operand(1, self.builder.dequantize(integers, scale, axis=axis))
        if options.bias_correction and inputs is not None:
            correct_bias(self.graph, layer, value, inputs)

    def _roomy(self, layer: Operation, affine: Affine, activation: Affine) -> Affine:
        bias = layer.operands[2] if len(layer.operands) > 2 else None
        tensor = None if bias is None else evaluate_weight(bias)
        count = terms(layer, self.graph.dimensions)
        if tensor is None or count is None:
            return affine
        # half a step for the rounding of the bias, and a little for that of the scales
        room = (bias_limit(count) - 1) * (1 - 1e-6)
        needed = tensor.double().abs() / (activation.scale.double() * room)
        needed = needed if affine.scale.dim() else needed.max()
        return Affine(_at_least(affine.scale, needed), affine.zero_point, affine.dtype, affine.bits)

    def _round_trip(self, value: Value, affine: Affine, before: Operation | None) -> Value:
        builder = self.builder
        builder.before = before
        builder.location = value.producer.location if value.producer is not None else _first_reader(value)
        scale, zero_point = builder.constant(affine.scale), builder.constant(affine.zero_point)
        codes = builder.quantize(value, scale, zero_point, dtype=affine.dtype, name_hint=f"{value.name}.q")
        if not affine.format.fills:
            low, high = affine.format.codes
            lowest, _ = affine.dtype.integer_range
            codes = builder.clamp(codes, minimum=low if low > lowest else None, maximum=high)
        return builder.dequantize(codes, scale, zero_point, name_hint=f"{value.name}.dq")

    def _behind(self, value: Value) -> Operation | None:
        operations = self.graph.operations
        index = 0 if value.producer is None else operations.index(value.producer) + 1
        return operations[index] if index < len(operations) else None


def _first_reader(value: Value) -> Location:
    return value.uses[0][0].location if value.uses else Location()


def _at_least(scale: Tensor, needed: Tensor) -> Tensor:
    """f32 that is not below `needed` for rounding."""
    return torch.maximum(scale, needed.float())
