"""Integers where they are really faster: the choice of precision, fed by times that were measured on the device."""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, Final

from whet.errors import PassError
from whet.ir.graph import Graph
from whet.passes.base import Context, Pass, PassResult
from whet.passes.quantization.placement import CONTRACTIONS
from whet.passes.quantization.static import QuantizeStatic, prepared_for_integers

_MARGIN: Final = 1.02
"""Integers that take so much longer than float are slower: less is noise."""


@dataclass(frozen=True)
class QuantizeWhereFaster(Pass):
    """Static quantization of the layers that integers make faster; the others stay in float.

    Both graphs are timed on the device, kernel by kernel. A layer whose integer kernel takes longer than its float
    kernel is excluded, and the result is quantized and timed again, since what feeds a float layer is dequantized. The
    fastest of the three graphs is kept: all in integers, some, none.

    Args:
        quantize: how the layers that stay are quantized.

    Raises PassError without a device to measure on (`Context.latency`), and what `quantize` raises.
    """

    quantize: QuantizeStatic = field(default_factory=QuantizeStatic)
    must_change: ClassVar[bool] = True

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Changes: those of the quantization, and layers left in float because integers are slower."""
        if context.latency is None:
            raise PassError(
                "QuantizeWhereFaster needs a device to measure on: whet.optimize gives it where the target is this "
                "machine; else Context(latency=...)"
            )
        everything = self.quantize.run(graph, context)
        if not everything.modified:
            return everything
        plain = prepared_for_integers(graph, context)
        in_float, in_integers = context.latency(plain), context.latency(everything.graph)
        slower = _slower(plain, in_float, in_integers)
        candidates = [(sum(in_integers.values()), everything)]
        if slower:
            mixed = self._without(slower, graph, context)
            if mixed is not None:
                candidates.append((sum(context.latency(mixed.graph).values()), mixed))
        seconds, best = min(candidates, key=lambda item: item[0])
        if seconds > sum(in_float.values()):
            self._explain(context, sum(in_float.values()), seconds, graph)
            return PassResult(graph, False)
        left = {"layer left in float, where integers are slower": len(slower)} if best is not everything else {}
        return PassResult(best.graph, True, {**best.changes, **left})

    def _without(self, modules: list[str], graph: Graph, context: Context) -> PassResult | None:
        """Quantized but for these modules; None where nothing would be left to quantize."""
        layers = {item.location.module for item in graph.operations if item.name in CONTRACTIONS}
        exclude = (*self.quantize.exclude, *map(glob.escape, modules))
        if all(any(fnmatch.fnmatch(layer, pattern) for pattern in exclude) for layer in layers):
            return None
        return dataclasses.replace(self.quantize, exclude=exclude).run(graph, context)

    def _explain(self, context: Context, in_float: float, in_integers: float, graph: Graph) -> None:
        if context.tracer is not None:
            reason = f"{in_float * 1e3:.3f} ms in float, {in_integers * 1e3:.3f} ms at best in integers"
            context.tracer.decline(self.name, graph.operations[-1], reason, ())


def _slower(graph: Graph, in_float: Mapping[str, float], in_integers: Mapping[str, float]) -> list[str]:
    """Modules of layers that take longer in integers."""
    layers = dict.fromkeys(item.location.module for item in graph.operations if item.name in CONTRACTIONS)
    return [
        module
        for module in layers
        if module in in_float and module in in_integers and in_integers[module] > _MARGIN * in_float[module]
    ]
