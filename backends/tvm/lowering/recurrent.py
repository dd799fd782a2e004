"""Recurrent layers: the inputs of all steps are projected at once, then one loop runs over the steps.

The matrix of the recurrence is packed in columns of whole vectors, [gates, blocks, outputs, block], zeros behind the last unit:
a step multiplies it by the previous output with the sums of one block in registers, and turns these into the new
state. Only the batch is parallel: a step is too short to hand to several threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from whet.backends.tvm.kernels import math as fast
from whet.backends.tvm.kernels.cpu import lanes
from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.backends.tvm.lowering.elementwise import at_least
from whet.backends.tvm.lowering.half import narrowed, widened
from whet.backends.tvm.lowering.loops import load, loops, nest, parallel_nest, store
from whet.ir.graph import Operation, Value
from whet.ir.types import DType

# Vectors of sums in registers: as many as hide the latency of a multiply-add.
_VECTORS = 4


@dataclass(frozen=True)
class _Layer:
    """One layer in one direction."""

    c: LoweringContext
    operation: Operation
    gates: int
    states: int

    def operand(self, slot: int) -> Value | None:
        operands = self.operation.operands
        return operands[slot] if slot < len(operands) else None

    @property
    def dtype(self) -> DType:
        return self.operation.operand(0).type.dtype

    @property
    def working(self) -> str:
        return "float64" if self.dtype is DType.F64 else "float32"

    @property
    def units(self) -> int:
        return self.static(self.operation.operand(self.states).type.shape[1], "units")

    @property
    def outputs(self) -> int:
        return self.static(self.operation.operand(1).type.shape[1], "outputs")

    def static(self, size: Any, what: str) -> int:
        if not isinstance(size, int):
            raise self.c.unsupported(f"needs a static number of {what}")
        return size

    @property
    def block(self) -> int:
        """Units whose sums are kept in registers: all gates of one vector, or a few vectors of one gate."""
        width = lanes(self.c.target, self.working)
        return width * max(1, _VECTORS // self.gates)

    @property
    def blocks(self) -> int:
        return -(-self.units // self.block)

    @property
    def features(self) -> int:
        return self.static(self.operation.operand(0).type.shape[2], "features")


def _packed_columns(weight: torch.Tensor, gates: int, block: int) -> torch.Tensor:
    """[gates · units, inputs] as [blocks, inputs, gates, block], zeros behind the last unit; f32 unless f64."""
    units, inputs = weight.shape[0] // gates, weight.shape[1]
    blocks = -(-units // block)
    wide = weight if weight.dtype == torch.float64 else weight.float()
    padded = wide.new_zeros((gates, blocks * block, inputs))
    padded[:, :units] = wide.reshape(gates, units, inputs)
    return padded.reshape(gates, blocks, block, inputs).permute(1, 3, 0, 2).contiguous()


def _columns(layer: _Layer, value: Value, gates: int) -> te.Tensor:
    """The packed matrix, at compile time where it is constant."""
    block, working = layer.block, layer.working
    if value.constant is not None:
        recipe = f"recurrent[{gates},{block}]"
        return layer.c.packed(value, recipe, lambda tensor: _packed_columns(tensor, gates, block))
    source = layer.c.tensor(value)
    rows, inputs = (layer.static(size, "weights") for size in value.type.shape)
    units = rows // gates

    def element(part: Any, row: Any, gate: Any, lane: Any) -> Any:
        unit = part * block + lane
        item = widened(source(gate * units + tirx.min(unit, units - 1), row)).astype(working)
        return tirx.if_then_else(unit < units, item, tirx.const(0, working))

    return te.compute((-(-units // block), inputs, gates, block), element, name="recurrent_pack", attrs={"whet.role": "stage"})


def _projected(layer: _Layer) -> te.Tensor:
    """W x_t + b of every step, [T, N, blocks, gates, block]; the recurrent bias too where that is only added."""
    c, states = layer.c, layer.states
    value, weight = layer.operation.operand(0), layer.operation.operand(1 + states)
    x, packed = c.tensor(value), _columns(layer, weight, layer.gates)
    length, batch = c.dims(value.type.shape[:2])
    inner = te.reduce_axis((0, layer.features), name="i")

    def element(step: Any, row: Any, part: Any, gate: Any, lane: Any) -> Any:
        item = widened(x(step, row, inner.var)).astype(layer.working)
        return te.sum(item * packed(part, inner.var, gate, lane), axis=inner)

    shape = (length, batch, layer.blocks, layer.gates, layer.block)
    return te.compute(shape, element, name="projected")


def _bias(layer: _Layer, slot: int) -> te.Tensor | None:
    value = layer.operand(slot)
    return None if value is None else layer.c.tensor(value)


Cell = Callable[[list[Any], list[Any], list[Any]], list[Any]]
"""(input sums, recurrent sums, states of the unit) -> new states, the hidden one first; one entry a gate."""


def _lstm_cell(inputs: list[Any], recurrent: list[Any], states: list[Any]) -> list[Any]:
    enter, forget, candidate, leave = (x + h for x, h in zip(inputs, recurrent, strict=True))
    cell = fast.sigmoid(forget) * states[1] + fast.sigmoid(enter) * fast.tanh(candidate)
    return [fast.sigmoid(leave), cell]


def _gru_cell(inputs: list[Any], recurrent: list[Any], states: list[Any]) -> list[Any]:
    update = fast.sigmoid(inputs[1] + recurrent[1])
    candidate = fast.tanh(inputs[2] + fast.sigmoid(inputs[0] + recurrent[0]) * recurrent[2])
    return [candidate + update * (states[0] - candidate)]
