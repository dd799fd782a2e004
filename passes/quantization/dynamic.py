"""Dynamic quantization: weights as integers beforehand, activations by the range that each call shows."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Final

import torch

from whet.errors import PassError
from whet.ir.builder import Builder
from whet.ir.graph import Graph, Operation, Value
from whet.ir.types import DType
from whet.passes.base import Context, Pass, PassResult
from whet.passes.canonicalize.dead_code import DeadCodeElimination
from whet.passes.quantization.formats import require_bits
from whet.passes.quantization.integer_forms import obstacle
from whet.passes.quantization.parameters import CLIPS, SMALLEST_SCALE, quantize_weight, weight_parameters
from whet.passes.quantization.placement import CONTRACTIONS
from whet.passes.quantization.recurrent import INTEGER_FORMS, quantize_recurrent
from whet.passes.quantization.static import prepared_for_integers
from whet.passes.selection import select_layers
from whet.passes.weights import evaluate_weight, key_of, output_dim

GRANULARITIES: Final = ("token", "tensor")
DYNAMIC: Final = (*CONTRACTIONS, *INTEGER_FORMS)
"""Everything that `QuantizeDynamic` can be asked to quantize."""


@dataclass(frozen=True)
class QuantizeDynamic(Pass):
    """linear, matmul and conv in integers, with activation scales computed in the graph: no calibration data.

    For an activation x: scale = max |x| / (2ᵇ⁻¹ - 1), q = sat(rne(x / scale)) in i8, zero point 0. The maximum is taken
    per token: for each row that a product sums over (each column of a matmul's second operand; each sample of a
    convolution's input); or over the whole tensor. Weights have one symmetric scale an output channel. The sum is
    exact in i32, and the result f32(sum · scale_x) · scale_w + bias. Recurrent layers are quantized as
    `QuantizeRecurrent` does it, with a fixed scale.

    Args:
        granularity: "token" or "tensor".
        bits: of activations, 2 to 8.
        weight_bits: of weights, 2 to 8; up to 4 they are stored as i4.
        per_channel: weights with a scale for each output channel; else one.
        weight_observer: "minmax" or "mse", as for QuantizeStatic.
        exclude: patterns (fnmatch) of module paths that stay in floating point.
        operations: which of `DYNAMIC` to quantize (conv, linear, matmul and recurrent layers); None: all of them.

    Raises PassError for unknown names, for bits out of range and for a pattern that fits nothing.
    """

    granularity: str = "token"
    bits: int = 8
    weight_bits: int = 8
    per_channel: bool = True
    weight_observer: str = "minmax"
    exclude: tuple[str, ...] = ()
    operations: tuple[str, ...] | None = None
    must_change: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Each layer counts as one change."""
        self._check()
        clone = prepared_for_integers(graph, context)
        layers = []
        selected = select_layers(clone, self.operations or DYNAMIC, self.exclude)
        recurrent = [operation for operation in selected if operation.name in INTEGER_FORMS]
        for operation in (item for item in selected if item.name in CONTRACTIONS):
            reason = obstacle(operation, clone.dimensions)
            if reason is None:
                layers.append(operation)
            elif context.tracer is not None:
                context.tracer.decline(self.name, operation, reason, tuple(operation.results))
        changes = Counter(f"{layer.name} quantized" for layer in layers) + quantize_recurrent(clone, recurrent, context)
        if not changes:
            return PassResult(graph, False)
        writer = _Writer(clone, self)
        for layer in layers:
            writer.replace(layer)
        return PassResult(DeadCodeElimination().run(clone, context).graph, True, dict(changes))

    def _check(self) -> None:
        require_bits(self.bits, "bits")
        require_bits(self.weight_bits, "weight_bits")
        for field, known in (("granularity", GRANULARITIES), ("weight_observer", CLIPS)):
            if getattr(self, field) not in known:
                raise PassError(f"{field} is {getattr(self, field)!r}; it must be one of {', '.join(known)}")
        unknown = sorted(set(self.operations or ()) - set(DYNAMIC))
        if unknown:
            raise PassError(f"operations: cannot quantize {', '.join(unknown)}; known are {', '.join(DYNAMIC)}")


@dataclass(frozen=True)
class _Quantized:
    codes: Value
    scale: Value


class _Writer:
    """Edits a private clone; an activation that several layers read alike is quantized once."""

    def __init__(self, graph: Graph, options: QuantizeDynamic) -> None:
        self.graph = graph
        self.options = options
        self.builder = Builder(graph)
        self.made: dict[tuple[Value, tuple[int, ...]], _Quantized] = {}

    def replace(self, layer: Operation) -> None:
        self.builder.before, self.builder.location = layer, layer.location
        real = self._matmul(layer) if layer.name == "matmul" else self._layer(layer)
        self.graph.replace_value(layer.result, real)
        self.graph.erase(layer)

    def _matmul(self, layer: Operation) -> Value:
        """f32(sum · scale_x) · scale_y: rows of x, columns of y."""
        x, y = layer.operand(0), layer.operand(1)
        left = self._quantize(x, (x.type.rank - 1,))
        right = self._quantize(y, (y.type.rank - 2,))
        total = self.builder.matmul_integer(left.codes, right.codes)
        return self._scaled(total, left.scale, right.scale)

    def _layer(self, layer: Operation) -> Value:
        x = layer.operand(0)
        dims = (x.type.rank - 1,) if layer.name == "linear" else tuple(range(1, x.type.rank))
        quantized = self._quantize(x, dims)
        weight = layer.operand(1)
        tensor = evaluate_weight(weight)
        assert tensor is not None
        options = self.options
        affine = weight_parameters(
            tensor, options.weight_bits, per_channel=options.per_channel, clip=options.weight_observer
        )
        key = key_of(weight)
        integers = self.builder.constant(
            quantize_weight(tensor, affine), f"{key}.{affine.dtype.value}" if key else "", affine.dtype
        )
        total = getattr(self.builder, f"{layer.name}_integer")(quantized.codes, integers, **layer.attributes)
        behind = layer.result.type.rank - 1 - output_dim(layer)
        scale = self.builder.constant(_spread(affine.scale, behind), f"{key}.scale" if key else "")
        real = self._scaled(total, quantized.scale, scale)
        bias = layer.operands[2] if len(layer.operands) > 2 else None
        return real if bias is None else self.builder.add(real, self._bias(bias, behind))

    def _scaled(self, total: Value, activation: Value, other: Value) -> Value:
        """Scales have the rank of the sum or none: where batch dimensions broadcast, a scale is multiplied."""
        rank = total.type.rank
        if activation.type.rank in (0, rank):
            return self.builder.mul(self.builder.dequantize(total, activation), other)
        real = self.builder.dequantize(total, self.builder.scalar(1.0, DType.F32))
        return self.builder.mul(self.builder.mul(real, activation), other)

    def _bias(self, bias: Value, behind: int) -> Value:
        if not behind:
            return bias
        tensor = evaluate_weight(bias)
        if tensor is None:
            return self.builder.reshape(bias, shape=(bias.type.shape[0], *([1] * behind)))
        return self.builder.constant(_spread(tensor, behind), key_of(bias))

    def _quantize(self, x: Value, dims: tuple[int, ...]) -> _Quantized:
        whole = self.options.granularity == "tensor"
        dims = tuple(range(x.type.rank)) if whole else dims
        if (x, dims) not in self.made:
            self.made[x, dims] = self._emit(x, dims, keepdims=not whole)
        return self.made[x, dims]

    def _emit(self, x: Value, dims: tuple[int, ...], keepdims: bool) -> _Quantized:
        """max |x| by two reductions that read x itself, and no copy of |x|."""
        builder = self.builder
        high = 2 ** (self.options.bits - 1) - 1
        largest = builder.maximum(
            builder.amax(x, dims=dims, keepdims=keepdims), builder.neg(builder.amin(x, dims=dims, keepdims=keepdims))
        )
        scale = builder.maximum(builder.div(largest, float(high)), SMALLEST_SCALE, name_hint=f"{x.name}.scale")
        zero = builder.scalar(0, DType.I32)
        return _Quantized(builder.quantize(x, scale, zero, dtype=DType.I8, name_hint=f"{x.name}.q"), scale)


def _spread(tensor: torch.Tensor, behind: int) -> torch.Tensor:
    """One number a channel, with `behind` dimensions of size 1 behind it."""
    return tensor.reshape(-1, *([1] * behind)) if tensor.dim() else tensor
