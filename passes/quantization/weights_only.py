"""Weight-only quantization: weights as integers with scales, activations in floating point."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

import torch
from torch import Tensor

from whet.errors import PassError
from whet.ir.builder import Builder
from whet.ir.graph import Graph, Operation, Value
from whet.ir.types import DType
from whet.passes.base import Context, Pass, PassResult
from whet.passes.canonicalize.dead_code import DeadCodeElimination
from whet.passes.fold_batch_norm import FoldBatchNorm
from whet.passes.quantization.bias_correction import correct_bias
from whet.passes.quantization.formats import Format, weight_format
from whet.passes.quantization.layerwise import CONTRACTIONS, inputs_for
from whet.passes.quantization.parameters import SMALLEST_SCALE, Affine, row_scales
from whet.passes.quantization.rounding import LayerInputs, Nearest, Rounding, round_nearest
from whet.passes.selection import select_layers
from whet.passes.weights import evaluate_weight, key_of

WEIGHTS: Final[Mapping[str, tuple[int, ...]]] = {
    "linear": (1,),
    "conv": (1,),
    "conv_transpose": (1,),
    "take": (0,),
    "lstm": (3, 4, 7),
    "gru": (2, 3),
    "rnn": (2, 3),
}
"""Operation -> the operands that are its weights: matrices, kernels, tables of embeddings."""

_QUANTIZED: Final = frozenset({"dequantize", "dequantize_blocks"})


def weight_slots(operation: Operation) -> list[int]:
    """The operands of an operation that are f32 weights in a form that can be evaluated, and not integers already."""
    slots = WEIGHTS.get(operation.name, ())
    if operation.name == "take" and not _is_embedding(operation):
        return []
    return [slot for slot in slots if slot < len(operation.operands) and _is_weight(operation.operands[slot])]


def _is_embedding(take: Operation) -> bool:
    """Whether it looks rows of a matrix up, and not the parameters of rows that are integers already."""
    parameters = any(user.name in _QUANTIZED for user in take.result.users)
    return take.attributes["axis"] == 0 and take.operand(0).type.rank == 2 and not parameters


def _is_weight(value: Value | None) -> bool:
    if value is None or value.type.dtype is not DType.F32 or value.producer is None:
        return False
    if value.producer.name in _QUANTIZED or value.type.rank < 2 or not value.type.numel:
        return False
    return evaluate_weight(value) is not None


@dataclass(frozen=True)
class QuantizeWeights(Pass):
    """Weights w become integers q with w ≈ (q - z) · s, and stay that in memory; what they multiply stays real.

    Per channel (`group_size` None): one s a row of a matrix, one an output channel of a convolution, in the graph
    `dequantize(q, s, axis=0)`. Per group: one s for `group_size` neighbouring inputs of each output of a matrix,
    `dequantize_blocks(q, s, group)`; the kernels of convolutions are too small for that and are done per channel.
    Symmetric: s = max |w| / (2ᵇ⁻¹ - 1) and z = 0; asymmetric: s = (max w - min w) / (2ᵇ - 1), with 0 in that range and
    exact. Up to 4 bits are stored as i4, two a byte, more as i8. Tables of embeddings are done row by row: only the
    rows that are looked up are dequantized. Batch norms are folded first. A pruned weight keeps its zeros
    (Dettmers et al., NeurIPS 2022; Frantar et al., ICLR 2023).

    Args:
        bits: 2 to 8.
        group_size: inputs that share a scale (32, 64, 128 are usual); None: all of a channel.
        symmetric: whether the zero point is 0 everywhere; with 4 bits and fewer, asymmetric is closer.
        exclude: patterns (fnmatch) of module paths that stay in floating point.
        clip: "minmax", or "mse": the range with the smallest squared error (symmetric alone).
        rounding: how integers are chosen: `Nearest()`, or one that looks at calibration data (GPTQ, AdaRound), for
            linear layers and convolutions; all else is rounded to nearest.
        bias_correction: biases of linear layers and convolutions make up for what rounded weights shift the mean of
            each channel by, on calibration data (`corrected_bias`).

    Raises PassError for impossible options, for a pattern that fits nothing, and where calibration data is wanted
    and missing.
    """

    bits: int = 8
    group_size: int | None = None
    symmetric: bool = True
    exclude: tuple[str, ...] = ()
    clip: str = "minmax"
    rounding: Rounding = field(default_factory=Nearest)
    bias_correction: bool = False
    must_change: ClassVar[bool] = True

    def __post_init__(self) -> None:
        weight_format(self.bits)
        if self.group_size is not None and self.group_size < 2:
            raise PassError(
                f"group_size is {self.group_size}: give 2 or more (32, 64, 128), or None for whole channels"
            )
        if self.clip not in ("minmax", "mse") or (self.clip == "mse" and not self.symmetric):
            raise PassError(f"clip is {self.clip!r}: give 'minmax', or 'mse' with symmetric=True")

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Fold, choose integers, rewrite. Each operation with a quantized weight counts as one change."""
        folded = FoldBatchNorm(expand=False).run(graph, context).graph.clone()
        layers = [layer for layer in select_layers(folded, WEIGHTS, self.exclude) if weight_slots(layer)]
        if not layers:
            return PassResult(graph, False)
        writer = _Writer(folded, self)
        for done, (layer, inputs) in enumerate(self._inputs(folded, layers, context), start=1):
            context.progress("quantizing weights", done, len(layers))
            writer.write(layer, inputs)
        result = DeadCodeElimination().run(folded, context).graph
        counts = Counter(layer.name for layer in layers)
        return PassResult(result, True, {f"{name} quantized": count for name, count in counts.items()})

    def _inputs(
        self, graph: Graph, layers: list[Operation], context: Context
    ) -> Iterator[tuple[Operation, LayerInputs | None]]:
        contractions = [layer for layer in layers if layer.name in CONTRACTIONS]
        yield from inputs_for(self.rounding, self.bias_correction, graph, contractions, context)
        yield from ((layer, None) for layer in layers if layer.name not in CONTRACTIONS)


@dataclass(frozen=True)
class Grouped:
    """Integers of a weight of the shape [rows, columns], with parameters [rows, groups]."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None


def quantize_rows(
    rows: Tensor,
    form: Format,
    group: int,
    clip: str = "minmax",
    rounding: Rounding | None = None,
    inputs: LayerInputs | None = None,
    shape: tuple[int, ...] | None = None,
) -> Grouped:
    """Integers of a matrix f32 [rows, columns], parameters for each `group` columns (the last group may be shorter).

    `rounding` sees the weight in its own `shape`; None: to nearest.
    """
    parameters = _group_parameters(rows, form, group, clip)
    columns = rows.shape[1]
    scale, zero_point = (
        item.reshape(len(rows), -1).repeat_interleave(group, 1)[:, :columns].reshape(shape or rows.shape)
        for item in (parameters.scale, parameters.zero_point)
    )
    low, high = form.codes
    weight = rows.reshape(shape or rows.shape)
    if rounding is None:
        codes = round_nearest(weight, scale, zero_point, low, high)
    else:
        codes = rounding.round(weight, scale, zero_point, low, high, inputs)
    zeros = None if form.symmetric else parameters.zero_point.reshape(len(rows), -1)
    return Grouped(codes.reshape(rows.shape).to(form.dtype.torch), parameters.scale.reshape(len(rows), -1), zeros)


def _group_parameters(rows: Tensor, form: Format, group: int, clip: str) -> Affine:
    """One scale and zero point a row and group, flat; zeros that fill the last group change no range."""
    filled = torch.nn.functional.pad(rows.detach().double(), (0, -rows.shape[1] % group)).reshape(-1, group)
    if form.symmetric:
        scale = row_scales(filled, form, clip)
        return Affine(scale, torch.zeros(scale.shape, dtype=torch.int32), form.dtype, form.bits)
    low, high = form.codes
    bottom, top = filled.amin(1).clamp_max(0), filled.amax(1).clamp_min(0)
    scale = ((top - bottom) / (high - low)).clamp_min(SMALLEST_SCALE).float()
    zero_point = torch.round(low - bottom / scale.double()).clamp(low, high).to(torch.int32)
    return Affine(scale, zero_point, form.dtype, form.bits)


class _Writer:
    """Edits a private clone: each weight in integers, once, however many layers share it."""

    def __init__(self, graph: Graph, options: QuantizeWeights) -> None:
        self.graph = graph
        self.options = options
        self.form = Format(weight_format(options.bits).dtype, options.bits, options.symmetric)
        self.stored: dict[tuple[Value, int], tuple[Value, Grouped]] = {}
        self.weights: dict[Value, Value] = {}

    def write(self, layer: Operation, inputs: LayerInputs | None) -> None:
        """Quantize the weights of one layer."""
        if layer.name == "take":
            self._write_take(layer)
            return
        for slot in weight_slots(layer):
            weight = layer.operand(slot)
            if weight not in self.weights:
                self.weights[weight] = self._dequantized(layer, weight, inputs)
            layer.set_operand(slot, self.weights[weight])
            if self.options.bias_correction and inputs is not None:
                correct_bias(self.graph, layer, weight, inputs)

    def _dequantized(self, layer: Operation, weight: Value, inputs: LayerInputs | None) -> Value:
        axis = 1 if layer.name == "conv_transpose" else 0
        codes, grouped = self._codes(layer, weight, axis, inputs)
        builder = Builder(self.graph, before=_following(self.graph, codes), location=layer.location)
        if self._group(weight) is None:
            zero_point = None if grouped.zero_point is None else builder.constant(grouped.zero_point[:, 0])
            scale = builder.constant(grouped.scale[:, 0], _key(weight, "scale"))
            real: Value = builder.dequantize(codes, scale, zero_point, axis=axis)
            return real
        return self._blocks(builder, codes, *self._parameters(builder, weight, grouped), weight)

    def _write_take(self, layer: Operation) -> None:
        """take(dequantize(table), i) = dequantize(take(table, i)), with the parameters of the rows taken likewise."""
        weight, indices = layer.operand(0), layer.operand(1)
        codes, grouped = self._codes(layer, weight, 0, None)
        builder = Builder(self.graph, before=layer, location=layer.location)
        scale, zero_point = self._parameters(builder, weight, grouped)
        real = self._blocks(
            builder,
            builder.take(codes, indices, axis=0),
            builder.take(scale, indices, axis=0),
            None if zero_point is None else builder.take(zero_point, indices, axis=0),
            weight,
        )
        self.graph.replace_value(layer.result, real)
        self.graph.erase(layer)

    def _codes(self, layer: Operation, weight: Value, axis: int, inputs: LayerInputs | None) -> tuple[Value, Grouped]:
        """The integers, made where the weight is: layers that share it may be written in any order."""
        if (weight, axis) in self.stored:
            return self.stored[weight, axis]
        tensor = evaluate_weight(weight)
        assert tensor is not None
        moved = tensor.detach().movedim(axis, 0)
        rows = moved.reshape(len(moved), -1)
        group = self._group(weight) or rows.shape[1]
        rounding = self.options.rounding if inputs is not None else None
        grouped = quantize_rows(rows, self.form, group, self.options.clip, rounding, inputs, tuple(moved.shape))
        codes = grouped.codes.reshape(moved.shape).movedim(0, axis).contiguous()
        builder = Builder(self.graph, before=_following(self.graph, weight), location=layer.location)
        value = builder.constant(codes, _key(weight, "q"), dtype=self.form.dtype)
        self.stored[weight, axis] = value, grouped
        return self.stored[weight, axis]

    def _group(self, weight: Value) -> int | None:
        """Inputs that share a scale; None for all of a channel, or where the weight is no matrix."""
        return self.options.group_size if weight.type.rank == 2 else None

    def _parameters(self, builder: Builder, weight: Value, grouped: Grouped) -> tuple[Value, Value | None]:
        zero_point = None if grouped.zero_point is None else builder.constant(grouped.zero_point.to(torch.int32))
        return builder.constant(grouped.scale, _key(weight, "scale")), zero_point

    def _blocks(self, builder: Builder, codes: Value, scale: Value, zero_point: Value | None, weight: Value) -> Value:
        group = self._group(weight) or int(weight.type.static_shape[1])
        real: Value = builder.dequantize_blocks(codes, scale, zero_point, group=group)
        return real


def _following(graph: Graph, value: Value) -> Operation:
    """The operation behind the one that makes `value`, which is never the last."""
    assert value.producer is not None
    return graph.operations[graph.operations.index(value.producer) + 1]


def _key(weight: Value, part: str) -> str:
    return f"{key_of(weight)}.{part}" if key_of(weight) else ""
