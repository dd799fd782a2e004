"""Writing quantization that can be trained as quantize, dequantize and integers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from whet.ir.builder import Builder
from whet.ir.graph import Graph, Operation, Value
from whet.ir.ops import CATALOGUE
from whet.ir.ops.fake_quantize import codes
from whet.passes.base import Context, Pass, PassResult
from whet.passes.canonicalize.dead_code import remove_dead_code
from whet.passes.rewrite.expand import expand_operations
from whet.passes.weights import evaluate_weight, key_of


@dataclass(frozen=True)
class ExpandFakeQuantize(Pass):
    """fake_quantize(x, s, z) -> dequantize(quantize(x, s, z), s, z), bit for bit; integers where x is a weight.

    Narrower bounds than the type's become a clamp of the codes (numerics: Q10).
    """

    def run(self, graph: Graph, context: Context) -> PassResult:
        """Work on a clone; the graph itself comes back where there is none."""
        clone = graph.clone()
        found = expand_operations(clone, "fake_quantize", _expanded)
        if not found:
            return PassResult(graph, False)
        remove_dead_code(clone)
        return PassResult(clone, True, {"fake quantization": found})


def _expanded(builder: Builder, operation: Operation) -> Value:
    x, scale, zero_point = (operation.operand(slot) for slot in range(3))
    dtype, axis, bounds = (operation.attributes[name] for name in ("dtype", "axis", "bounds"))
    tensor = evaluate_weight(x)
    if tensor is not None and scale.constant is not None and zero_point.constant is not None:
        key = key_of(x)
        integers = integer_weight(operation, tensor, scale.constant, zero_point.constant)
        quantized = builder.constant(integers, f"{key}.{dtype.value}" if key else "", dtype)
        point = zero_point if bool(zero_point.constant.any()) else None
        real: Value = builder.dequantize(quantized, scale, point, axis=axis)
        return real
    quantized = builder.quantize(x, scale, zero_point, dtype=dtype, axis=axis, name_hint=f"{x.name}.q")
    if bounds is not None and tuple(bounds) != dtype.integer_range:
        quantized = builder.clamp(quantized, minimum=bounds[0], maximum=bounds[1])
    return builder.dequantize(quantized, scale, zero_point, axis=axis, name_hint=f"{x.name}.dq")


def integer_weight(operation: Operation, weight: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The codes that a fake_quantize gives a weight."""
    dtype, axis, bounds = (operation.attributes[name] for name in ("dtype", "axis", "bounds"))
    quantize = CATALOGUE["quantize"]
    found: Tensor = quantize.evaluate(weight, scale, zero_point, dtype=dtype, axis=axis)
    return found.clamp(*codes(dtype, bounds))
