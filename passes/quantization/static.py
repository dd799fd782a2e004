"""Static quantization: activations and weights as integers whose parameters calibration data has fixed."""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from whet.errors import PassError
from whet.ir.graph import Graph, Operation, Value
from whet.ir.types import DType
from whet.passes.base import Context, Pass, PassResult
from whet.passes.fold_batch_norm import FoldBatchNorm
from whet.passes.legalize import DecomposeAttention
from whet.passes.materialize import MaterializeWeights
from whet.passes.quantization.calibration import observe
from whet.passes.quantization.folding import FoldQuantization
from whet.passes.quantization.formats import Format, require_bits
from whet.passes.quantization.insertion import Insertion, WeightOptions
from whet.passes.quantization.integer_forms import obstacle
from whet.passes.quantization.layerwise import inputs_for
from whet.passes.quantization.observers import find_observer
from whet.passes.quantization.parameters import CLIPS, Affine, affine
from whet.passes.quantization.placement import CONTRACTIONS, QUANTIZABLE, Placement, activations, place, root
from whet.passes.quantization.recurrent import INTEGER_FORMS, quantize_recurrent
from whet.passes.quantization.rounding import Nearest, Rounding
from whet.passes.recurrent_projection import HoistRecurrentProjections
from whet.passes.selection import require_matches, select_layers


@dataclass(frozen=True)
class QuantizeStatic(Pass):
    """Layers, residual additions, concatenations and pooling in integers, by ranges seen on calibration data.

    An activation x that a conv, linear or matmul reads becomes q = sat(rne(x / scale) + zero_point), per tensor; a
    weight becomes integers with one symmetric scale an output channel. Then `FoldQuantization` makes operations on
    the codes of them: exact i32 sums, requantized where codes follow. Residual additions, averages and concatenations
    of feature maps read 8-bit codes too; the operands of a concatenation share its parameters. softmax, gelu,
    normalizations, the residual stream of a transformer and all else stay in f32, between dequantize and quantize.
    Batch norms are folded and attention is decomposed first. Of recurrent layers the product with the inputs becomes a
    linear layer, and that with the previous output is quantized as `QuantizeRecurrent` does it, but not without `fold`
    (Jacob et al., CVPR 2018; Krishnamoorthi, arXiv:1806.08342).

    Args:
        observer: what range of an activation gets codes: "minmax", "moving_average", "percentile", "mse" or "entropy";
            see `whet.passes.quantization.observers`. The default averages the extremes of batches, which leaves single
            outliers out; give it batches of few samples.
        bits: of activations, 2 to 8.
        weight_bits: of weights, 2 to 8; up to 4 they are stored as i4.
        layer_bits: (pattern of module paths, weight bits) of layers that have others than `weight_bits`; the first
            pattern that fits counts.
        symmetric: activations with the zero point at the middle code; else wherever zero lies in the range.
        per_channel: weights with a scale for each output channel; else one.
        weight_observer: "minmax": the largest weight has the largest code. "mse": the clip of least squared error.
        exclude: patterns (fnmatch) of module paths that stay in floating point.
        activation_dtype: u8 or i8; None: what the target's integer instructions take.
        operations: which of `whet.passes.quantization.placement.QUANTIZABLE` to quantize; None: all of them.
        rounding: how the integers of weights are chosen: `Nearest()`, or by what layers read on the calibration data:
            `GPTQ()`, `AdaRound()`.
        bias_correction: biases make up for what rounded weights shift the mean of each channel by (`corrected_bias`).
        fold: whether to fold; else the graph keeps quantize and dequantize around real operations, as quantization-
            aware training and rounding passes want it.

    Raises PassError without calibration data, for data that is empty or not finite, for a value that no batch reached,
    for unknown names, for bits out of range and for a pattern that fits nothing.
    """

    observer: str = "moving_average"
    bits: int = 8
    weight_bits: int = 8
    symmetric: bool = False
    per_channel: bool = True
    weight_observer: str = "minmax"
    exclude: tuple[str, ...] = ()
    activation_dtype: DType | None = None
    operations: tuple[str, ...] | None = None
    layer_bits: tuple[tuple[str, int], ...] = ()
    rounding: Rounding = field(default_factory=Nearest)
    bias_correction: bool = False
    fold: bool = True
    must_change: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Fold batch norms, observe, insert quantize and dequantize, fold those."""
        self._check()
        prepared = prepared_for_integers(graph, context)
        layers, followers, recurrent = self._select(prepared, context)
        if not layers and not recurrent:
            return PassResult(graph, False)
        placement = place(prepared, layers, followers)
        parameters = self._parameters(prepared, placement, context)
        self._insert(prepared, placement, parameters, context)
        changes = Counter(f"{layer.name} quantized" for layer in layers)
        changes["activation quantized"] = len(placement.sources) + len(placement.edges)
        if self.fold:
            changes += quantize_recurrent(prepared, recurrent, context)
        result = FoldQuantization().run(prepared, context).graph if self.fold else prepared
        return PassResult(result, True, dict(changes))

    def _check(self) -> None:
        find_observer(self.observer)
        require_bits(self.bits, "bits")
        for weight_bits in (self.weight_bits, *(bits for _, bits in self.layer_bits)):
            require_bits(weight_bits, "weight_bits")
        if self.weight_observer not in CLIPS:
            raise PassError(f"weight_observer is {self.weight_observer!r}; it must be one of {', '.join(CLIPS)}")
        unknown = sorted(set(self.operations or ()) - set(QUANTIZABLE))
        if unknown:
            raise PassError(f"operations: cannot quantize {', '.join(unknown)}; known are {', '.join(QUANTIZABLE)}")

    def _select(self, graph: Graph, context: Context) -> tuple[list[Operation], list[Operation], list[Operation]]:
        """Contractions that can be quantized, what else is to read codes, and recurrent layers."""
        names = QUANTIZABLE if self.operations is None else self.operations
        selected = select_layers(graph, names, self.exclude)
        layers = []
        for operation in (item for item in selected if item.name in CONTRACTIONS):
            reason = obstacle(operation, graph.dimensions)
            if reason is None:
                layers.append(operation)
            elif context.tracer is not None:
                context.tracer.decline(self.name, operation, reason, tuple(operation.results))
        others = [operation for operation in selected if operation.name not in CONTRACTIONS]
        recurrent = [operation for operation in others if operation.name in INTEGER_FORMS]
        return layers, [operation for operation in others if operation not in recurrent], recurrent

    def _parameters(self, graph: Graph, placement: Placement, context: Context) -> dict[Value, Affine]:
        """For every observed value."""
        form = Format(self._dtype(context), self.bits, self.symmetric)
        make = find_observer(self.observer)
        observers = observe(graph, placement.observed, context, make)
        ranges = {value: observer.range(form) for value, observer in observers.items()}
        return {value: affine(found.minimum, found.maximum, form) for value, found in ranges.items()}

    def _dtype(self, context: Context) -> DType:
        if self.activation_dtype is not None:
            return self.activation_dtype
        return DType.U8 if context.target is None else context.target.activation_dtype

    def _insert(self, graph: Graph, placement: Placement, parameters: dict[Value, Affine], context: Context) -> None:
        insertion = Insertion(graph)
        layers = [layer for layer in placement.layers if layer.name != "matmul"]
        patterns = [pattern for pattern, _ in self.layer_bits]
        require_matches("layer_bits", patterns, (layer.location.module for layer in layers))
        for layer, inputs in inputs_for(self.rounding, self.bias_correction, graph, layers, context):
            source = placement.sources[root(activations(layer)[0])]
            insertion.weight(layer, self._weight_options(layer), parameters[source], inputs)
        for value, source in placement.sources.items():
            insertion.activation(value, parameters[source], placement.reads_codes)
        for operation, index in placement.edges:
            insertion.operand(operation, index, parameters[placement.sources[operation.result]])

    def _weight_options(self, layer: Operation) -> WeightOptions:
        module = layer.location.module
        bits = next((bits for pattern, bits in self.layer_bits if fnmatch.fnmatch(module, pattern)), self.weight_bits)
        return WeightOptions(bits, self.per_channel, self.weight_observer, self.rounding, self.bias_correction)


def prepared_for_integers(graph: Graph, context: Context) -> Graph:
    """A clone in which weights are constants, batch norms folded and attention is matmuls and a softmax."""
    for item in _PREPARATION:
        graph = item.run(graph, context).graph
    return graph.clone()


_PREPARATION: Sequence[Pass] = (
    MaterializeWeights(),
    FoldBatchNorm(expand=False),
    DecomposeAttention(),
    HoistRecurrentProjections(),
)
