"""How much each layer's precision matters: one layer quantized at a time, measured on calibration data."""

from __future__ import annotations

import dataclasses
import glob
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from whet.errors import PassError
from whet.ir.graph import Graph
from whet.ir.interpreter import Interpreter
from whet.passes.base import Context
from whet.passes.data import Batches
from whet.passes.evaluation import GraphModel, score
from whet.passes.pruning.budget import stored_bytes
from whet.passes.quantization.placement import CONTRACTIONS, QUANTIZABLE
from whet.passes.quantization.recurrent import INTEGER_FORMS
from whet.passes.quantization.static import QuantizeStatic
from whet.passes.quantization.weights_only import WEIGHTS, QuantizeWeights, weight_slots
from whet.passes.selection import select_layers

Quantizer = QuantizeWeights | QuantizeStatic

FLOAT_BITS: Final = 32
"""As a number of bits: the layer stays as it is."""


STATIC_LAYERS: Final = ("linear", "conv")
"""Operations whose weights QuantizeStatic gives any number of bits."""


@dataclass(frozen=True)
class Choice:
    """One layer (a module path) at one precision.

    Attributes:
        layer: the module path; layers of one path change together.
        bits: of its weights; 32: as they are.
        bytes: of its weights, scales and zero points.
        loss: what it costs in quality, by the metric of the table; 0 at 32 bits.
    """

    layer: str
    bits: int
    bytes: int
    loss: float


@dataclass(frozen=True)
class Sensitivity:
    """A table of layers and precisions. Printing it gives one line a layer, the most sensitive first."""

    choices: tuple[Choice, ...]
    metric: str
    sizes: Mapping[str, int]
    """Bytes of the weights of each layer before."""

    @property
    def layers(self) -> tuple[str, ...]:
        """In the order of the graph."""
        return tuple(dict.fromkeys(choice.layer for choice in self.choices))

    @property
    def bits(self) -> tuple[int, ...]:
        """The precisions that were tried, the highest first."""
        return tuple(sorted({choice.bits for choice in self.choices}, reverse=True))

    def of(self, layer: str) -> tuple[Choice, ...]:
        """The choices for one layer, the highest precision first. Raises PassError where there is none."""
        found = sorted((choice for choice in self.choices if choice.layer == layer), key=lambda item: -item.bits)
        if not found:
            raise PassError(f"no layer {layer!r} was measured; there are {', '.join(self.layers)}")
        return tuple(found)

    def __str__(self) -> str:
        width = max([len("layer"), *map(len, self.layers)])
        head = f"{'layer':{width}}" + "".join(f"  {f'{bits} bits':>12} {'bytes':>11}" for bits in self.bits)
        worst = sorted(self.layers, key=lambda layer: -max(choice.loss for choice in self.of(layer)))
        return "\n".join([f"loss: {METRICS[self.metric]}", head, *(self._line(layer, width) for layer in worst)])

    def _line(self, layer: str, width: int) -> str:
        cells = {choice.bits: f"  {choice.loss:12.4g} {choice.bytes:11,}" for choice in self.of(layer)}
        return f"{layer:{width}}" + "".join(cells.get(bits, " " * 26) for bits in self.bits)

    def plot(self, path: str | Path) -> None:
        """Losses by layer, a line for each precision, into a picture. Raises PassError without matplotlib."""
        try:
            figures: Any = importlib.import_module("matplotlib.figure")
        except ImportError as error:
            raise PassError("a plot needs matplotlib: pip install matplotlib") from error
        figure = figures.Figure(figsize=(max(6.0, 0.25 * len(self.layers)), 4.5), layout="constrained")
        axes = figure.subplots()
        for bits in self.bits:
            losses = {choice.layer: choice.loss for choice in self.choices if choice.bits == bits}
            if any(losses.values()):
                axes.plot([losses.get(layer, math.nan) for layer in self.layers], marker="o", label=f"{bits} bits")
        axes.set_xticks(range(len(self.layers)), self.layers, rotation=90, fontsize=6)
        axes.set_ylabel(METRICS[self.metric])
        # losses of `evaluate` may be negative
        axes.set_yscale("symlog" if any(choice.loss < 0 for choice in self.choices) else "log")
        axes.legend()
        figure.savefig(path)


METRICS: Final[Mapping[str, str]] = {
    "error": "‖y - y_float‖² / ‖y_float‖²",
    "kl": "KL(softmax(y_float) ‖ softmax(y))",
    "evaluate": "evaluate(float) - evaluate(quantized)",
}
"""Metric -> what it is. `error` is one over the signal-to-noise ratio: 10 log₁₀ of it is minus the SQNR in dB."""


def sensitivity(
    graph: Graph,
    context: Context,
    quantizer: Quantizer | None = None,
    bits: Sequence[int] = (8, 4),
    *,
    metric: str = "error",
    batches: int = 8,
) -> Sensitivity:
    """The loss of quality with one layer alone at each of `bits`, all others as they are.

    Args:
        graph: the graph to be quantized.
        context: for its calibration data, or its `evaluate` where that is the metric.
        quantizer: QuantizeWeights (the default) or QuantizeStatic, with the options to use; its bits are not looked
            at. A static one quantizes what the layer reads too. Its `exclude` holds.
        bits: precisions to try; 32 stands for the layer as it is.
        metric: "error": relative squared error of the outputs; "kl": of their softmax over the last dimension;
            "evaluate": the loss of what `context.evaluate` gives.
        batches: how many of the calibration batches to compare outputs on, the first ones.

    Raises PassError for an unknown metric, for no layers, for no calibration data or data that is not finite, for an
    output that is not finite, and as the quantizer does.
    """
    quantizer = quantizer or QuantizeWeights()
    if metric not in METRICS:
        raise PassError(f"metric is one of {', '.join(METRICS)}, got {metric!r}")
    if not bits or batches < 1:
        raise PassError(f"bits and batches must name something to try, got {tuple(bits)} and {batches}")
    layers = measured_layers(graph, quantizer)
    if not layers:
        raise PassError("there is no layer to measure: no weight of a layer that is not excluded can be quantized")
    loss = _evaluated(graph, context) if metric == "evaluate" else _compared(graph, context, metric, batches)
    alone, whole, choices = _layers_alone(quantizer), stored_bytes(graph), list[Choice]()
    for index, (layer, size) in enumerate(layers.items()):
        context.progress("measuring sensitivity", index, len(layers))
        for precision in dict.fromkeys(bits):
            if precision == FLOAT_BITS:
                choices.append(Choice(layer, precision, size, 0.0))
                continue
            quantized = quantize_layers(graph, context, alone, {layer: precision})
            choices.append(Choice(layer, precision, size + stored_bytes(quantized) - whole, loss(quantized)))
    return Sensitivity(tuple(choices), metric, layers)


def measured_layers(graph: Graph, quantizer: Quantizer) -> dict[str, int]:
    """Module path of every layer that the quantizer takes -> bytes of its weights, in order.

    Raises PassError for a pattern of the quantizer's `exclude` that fits no layer.
    """
    names = WEIGHTS if isinstance(quantizer, QuantizeWeights) else STATIC_LAYERS
    sizes: dict[str, int] = {}
    for layer in select_layers(graph, names, quantizer.exclude):
        slots = weight_slots(layer)
        if slots:
            own = sum(4 * int(layer.operand(slot).type.numel) for slot in slots)
            sizes[layer.location.module] = sizes.get(layer.location.module, 0) + own
    return sizes


def quantize_layers(graph: Graph, context: Context, quantizer: Quantizer, bits: Mapping[str, int]) -> Graph:
    """The graph with the weights of each layer of `bits` (module path -> bits) quantized, the others as they are."""
    layers = measured_layers(graph, quantizer)
    chosen = {layer: precision for layer, precision in bits.items() if precision != FLOAT_BITS}
    if isinstance(quantizer, QuantizeStatic):
        left = tuple(glob.escape(layer) for layer in layers if layer not in chosen)
        exact = tuple((glob.escape(layer), precision) for layer, precision in chosen.items())
        return (
            dataclasses.replace(quantizer, exclude=quantizer.exclude + left, layer_bits=exact).run(graph, context).graph
        )
    for precision in sorted(set(chosen.values())):
        left = tuple(glob.escape(layer) for layer in layers if chosen.get(layer) != precision)
        graph = (
            dataclasses.replace(quantizer, bits=precision, exclude=quantizer.exclude + left).run(graph, context).graph
        )
    return graph


def _layers_alone(quantizer: Quantizer) -> Quantizer:
    """The quantizer without what it would quantize beside the layers that are measured."""
    if isinstance(quantizer, QuantizeWeights):
        return quantizer
    names = QUANTIZABLE if quantizer.operations is None else quantizer.operations
    beside = {*CONTRACTIONS, *INTEGER_FORMS} - {*STATIC_LAYERS}
    return dataclasses.replace(quantizer, operations=tuple(name for name in names if name not in beside))


Loss = Callable[[Graph], float]


def _evaluated(graph: Graph, context: Context) -> Loss:
    reference = score(context, GraphModel(graph))
    return lambda quantized: reference - score(context, GraphModel(quantized))


def _compared(graph: Graph, context: Context, metric: str, batches: int) -> Loss:
    inputs = list(islice(Batches(context.calibration, graph), batches))
    references = [_outputs(graph, batch) for batch in inputs]
    if not all(references):
        raise PassError("no output of the graph is floating point: give a metric of your own, metric='evaluate'")

    def loss(quantized: Graph) -> float:
        pairs = [
            (output, reference)
            for batch, expected in zip(inputs, references, strict=True)
            for output, reference in zip(_outputs(quantized, batch), expected, strict=True)
        ]
        return _COMPARE[metric](pairs)

    return loss


def _outputs(graph: Graph, batch: tuple[Tensor, ...]) -> list[Tensor]:
    with torch.no_grad():
        outputs = [output.double() for output in Interpreter(graph)(*batch) if output.is_floating_point()]
    if not all(bool(torch.isfinite(output).all()) for output in outputs):
        raise PassError("an output is not finite on the calibration data")
    return outputs


def _relative_error(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    error = math.fsum(float((output - reference).square().sum()) for output, reference in pairs)
    signal = math.fsum(float(reference.square().sum()) for _, reference in pairs)
    return error / signal if signal else error


def _divergence(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Mean over rows."""
    total, rows = 0.0, 0
    for output, reference in pairs:
        log, expected = (torch.log_softmax(item.reshape(-1, item.shape[-1]), 1) for item in (output, reference))
        total += float(F.kl_div(log, expected, reduction="sum", log_target=True))
        rows += len(log)
    return total / max(rows, 1)


_COMPARE: Final[Mapping[str, Callable[[Sequence[tuple[Tensor, Tensor]]], float]]] = {
    "error": _relative_error,
    "kl": _divergence,
}
