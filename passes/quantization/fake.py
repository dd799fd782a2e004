"""From quantize and dequantize around real operations to quantization that can be trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from whet.ir.builder import Builder
from whet.ir.graph import Graph, Operation, Value
from whet.ir.types import DType
from whet.passes.canonicalize.dead_code import remove_dead_code
from whet.passes.quantization.formats import Format
from whet.passes.weights import LAYERS, key_of

_CLAMPED: Final = ("minimum", "maximum")


@dataclass(frozen=True)
class FakeQuantization:
    """A graph with fake_quantize, and which of them are of weights, which of activations."""

    graph: Graph
    weights: list[Operation] = field(default_factory=list)
    activations: list[Operation] = field(default_factory=list)

    @property
    def scales(self) -> list[Value]:
        """Their scales, each once."""
        return list(dict.fromkeys(item.operand(1) for item in [*self.weights, *self.activations]))


def masks_of(graph: Graph) -> dict[str, Tensor]:
    """Which weights of pruned layers are kept, by the layer's module path."""
    found = {}
    for operation in graph.operations:
        weight = operation.operands[1].producer if operation.name in LAYERS and operation.operands[1] else None
        if weight is not None and weight.name == "masked" and weight.operand(1).constant is not None:
            found[operation.location.module] = weight.operand(1).constant
    return {path: mask for path, mask in found.items() if mask is not None}


def with_fake_quantization(
    graph: Graph, floats: Graph, masks: Mapping[str, Tensor], weight_format: Callable[[str], Format]
) -> FakeQuantization:
    """Every dequantize(quantize(x)), and every dequantized integer weight, as a fake_quantize.

    Args:
        graph: what QuantizeStatic(fold=False) has made.
        floats: the graph that it was made of, whose layers have the weights themselves.
        masks: by a layer's module path, which of its weights are kept; they become `masked`.
        weight_format: of the integer weights, by the module path of their layer.

    Scales that were one tensor become one constant, so that they stay equal when they are learned.
    """
    return _Faker(graph.clone(), floats, masks, weight_format).run()


class _Faker:
    def __init__(
        self, graph: Graph, floats: Graph, masks: Mapping[str, Tensor], weight_format: Callable[[str], Format]
    ) -> None:
        self.result = FakeQuantization(graph)
        self.weight_format = weight_format
        self.floats = {item.results[0].name: item for item in floats.operations if item.results}
        self.masks = masks
        self.builder = Builder(graph)
        self.constants = {value.name: value for value in graph.constants}
        self.shared: dict[int, Value] = {}

    def run(self) -> FakeQuantization:
        graph = self.result.graph
        for operation in [item for item in graph.operations if item.name == "dequantize"]:
            source = operation.operand(0).producer
            if source is None or not operation.result.uses:
                continue
            if source.name == "constant":
                self._weight(operation)
            else:
                self._activation(operation, source)
        remove_dead_code(graph)
        return self.result

    def _weight(self, dequantize: Operation) -> None:
        """fake_quantize of the weight that the layer had, masked as it was; one that several layers use stays one."""
        layer, slot = dequantize.result.uses[0]
        value = self.floats[layer.results[0].name].operand(slot)
        tensor = value.constant
        if tensor is None:  # it came with codes of its own
            return
        self._before(dequantize)
        weight = self.constants.get(value.name) or self.builder.constant(tensor, key_of(value))
        mask = self.masks.get(layer.location.module)
        if mask is not None and mask.shape == tensor.shape:
            weight = self.builder.masked(weight, self.builder.constant(mask))
        form = self.weight_format(layer.location.module)
        fake = self._fake(dequantize, weight, form.dtype, dequantize.attributes["axis"], form.codes)
        self.result.weights.append(fake)

    def _activation(self, dequantize: Operation, source: Operation) -> None:
        quantize, bounds = source, None
        if source.name == "clamp":
            bounds = _bounds(source)
            producer = source.operand(0).producer
            assert producer is not None
            quantize = producer
        if quantize.name != "quantize":
            return
        self._before(dequantize)
        dtype, axis = quantize.attributes["dtype"], quantize.attributes["axis"]
        self.result.activations.append(self._fake(dequantize, quantize.operand(0), dtype, axis, bounds))

    def _before(self, operation: Operation) -> None:
        self.builder.before, self.builder.location = operation, operation.location

    def _fake(
        self, dequantize: Operation, x: Value, dtype: DType, axis: int | None, bounds: tuple[int, ...] | None
    ) -> Operation:
        scale = self._shared_scale(dequantize.operand(1))
        point = dequantize.operands[2] if len(dequantize.operands) > 2 else None
        if point is None:
            point = self.builder.constant(torch.zeros(scale.type.static_shape, dtype=torch.int32))
        hint = f"{x.name}.fake"
        value = self.builder.fake_quantize(x, scale, point, dtype=dtype, axis=axis, bounds=bounds, name_hint=hint)
        self.result.graph.replace_value(dequantize.result, value)
        assert value.producer is not None
        return value.producer

    def _shared_scale(self, scale: Value) -> Value:
        """The first constant of that very tensor; operations come in order, so that it is defined before."""
        assert scale.constant is not None
        return self.shared.setdefault(scale.constant.data_ptr(), scale)


def _bounds(clamp: Operation) -> tuple[int, ...]:
    """What a clamp of codes leaves; an end that it does not name is the type's."""
    ends = zip(_CLAMPED, clamp.result.type.dtype.integer_range, strict=True)
    return tuple(limit if clamp.attributes[name] is None else int(clamp.attributes[name]) for name, limit in ends)
