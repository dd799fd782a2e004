"""Quantization-aware training: weights learn to be the integers that they become."""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from typing import Final

from whet.ir.graph import Graph
from whet.ir.types import DType
from whet.passes.base import Context, PassResult
from whet.passes.quantization.expand_fake import ExpandFakeQuantize
from whet.passes.quantization.fake import masks_of, with_fake_quantization
from whet.passes.quantization.folding import FoldQuantization
from whet.passes.quantization.formats import Format, weight_format
from whet.passes.quantization.static import QuantizeStatic, prepared_for_integers
from whet.passes.quantization.steps import FollowingSteps, LearnedSteps
from whet.passes.recovery.distill import Distill

_FEW_BITS: Final = 4


@dataclass(frozen=True, kw_only=True)
class QuantizationAware(Distill):
    """Train with quantization in the forward pass (Jacob et al., CVPR 2018), then quantize as `QuantizeStatic` does.

    The graph is calibrated as by `QuantizeStatic`; a `fake_quantize` stands where integers will be, and passes
    gradients straight through. The integers of the result are those that training saw, bit for bit. Pruned weights
    stay pruned. Batch norms are folded before. All options of training are those of `FineTune`; with alpha below 1 a
    teacher, the original graph by default, is listened to as in `Distill`.

    Args:
        weight_bits: 2 to 8; up to 4 the weights are stored as i4.
        layer_bits: (pattern of module paths, weight bits) of layers that have others; the first pattern that fits
            counts.
        activation_bits: 2 to 8.
        learned_step: learn the scales, of weights and activations, by gradient (LSQ, Esser et al., ICLR 2020). Else
            the scales of weights follow their largest elements, and those of activations stay as calibrated.
        observer: what range of an activation gets codes, as in `QuantizeStatic`.
        weight_observer: "minmax" or "mse", likewise; None: "mse" up to 4 bits and for learned steps, else "minmax".
        activation_dtype: u8 or i8; None: what the target's integer instructions take.
        exclude: patterns (fnmatch) of module paths that stay in floating point; they are trained all the same.
        fold: whether to make integer operations of the result; else quantize and dequantize stay around real ones.
        alpha: weight of the labels; 1: labels alone.

    Raises PassError for what QuantizeStatic, FineTune and Distill raise it for.
    """

    weight_bits: int = 8
    layer_bits: tuple[tuple[str, int], ...] = ()
    activation_bits: int = 8
    learned_step: bool = False
    observer: str = "moving_average"
    weight_observer: str | None = None
    activation_dtype: DType | None = None
    fold: bool = True
    alpha: float = 1.0

    @property
    def frozen(self) -> tuple[str, ...]:
        """Nothing: `exclude` speaks of quantization here."""
        return ()

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Calibrate, train, convert. Layers, activations and trained tensors count."""
        static = self._static()
        floats = prepared_for_integers(graph, context)
        calibrated = static.run(floats, context)
        if not calibrated.modified:
            return PassResult(graph, False)
        fake = with_fake_quantization(calibrated.graph, floats, masks_of(graph), self._weight_format)
        rule = LearnedSteps(fake) if self.learned_step else FollowingSteps(fake)
        trained, count = self.train(fake.graph, context, rule)
        result = ExpandFakeQuantize().run(trained, context).graph
        result = FoldQuantization().run(result, context).graph if self.fold else result
        return PassResult(result, True, {**calibrated.changes, "tensor trained": count})

    def _weight_format(self, module: str) -> Format:
        bits = next((bits for pattern, bits in self.layer_bits if fnmatch.fnmatch(module, pattern)), self.weight_bits)
        return weight_format(bits)

    def _static(self) -> QuantizeStatic:
        careful = self.learned_step or self.weight_bits <= _FEW_BITS
        return QuantizeStatic(
            observer=self.observer,
            bits=self.activation_bits,
            weight_bits=self.weight_bits,
            layer_bits=self.layer_bits,
            weight_observer=self.weight_observer or ("mse" if careful else "minmax"),
            exclude=self.exclude,
            activation_dtype=self.activation_dtype,
            fold=False,
        )
