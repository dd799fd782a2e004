"""Recurrent layers whose inputs are multiplied already: one loop over the steps.

The recurrent weight is packed as [blocks of units, inputs, gates, block], zeros behind the last unit: the sums of one
block of units, for all its gates and some rows of the batch, stay in registers, and the cell turns them into the new
state right away. Only the batch is parallel: one step is too short to hand to several threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch
from tvm import te, tirx
from tvm.script.ir_builder import tirx as T

from whet.backends.tvm.kernels import math as fast
from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.cpu import lanes
from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.backends.tvm.lowering.elementwise import at_least
from whet.backends.tvm.lowering.half import narrowed, widened
from whet.backends.tvm.lowering.loops import extent_of, load, loops, nest, parallel_nest, store
from whet.ir.graph import Operation, Value
from whet.ir.types import DType

# Vectors of sums for one row of the batch: enough to hide the latency of a multiply-add.
_VECTORS = 4

Sums = Callable[[int], Any]
"""gate -> its sum for the unit that is computed."""


@dataclass(frozen=True)
class Place:
    """One unit: where it is in the states, [row, unit], and a vector of registers that the cell may use."""

    unit: list[Any]
    hidden: Any
    following: Any
    cell: Any
    registers: Any
    register: list[Any]


@dataclass(frozen=True)
class Kind:
    """What tells one kind of layer from another.

    `cell(inputs, recurrent, place)` writes the new state of one unit, given what the gates get from the input and from
    the previous output. `weight` is the slot of the recurrent weight, `bias` and `projection` those of its bias and of
    what multiplies the output, where the layer takes any.
    """

    gates: int
    states: int
    cell: Callable[[Sums, Sums, Place], None]
    weight: int
    bias: int | None = None
    projection: int | None = None


class Product(Protocol):
    """How the previous output is multiplied by the recurrent weight."""

    @property
    def vectors(self) -> int:
        """Vectors of sums for one row of the batch."""
        ...

    def tensors(self, layer: Layer) -> dict[str, te.Tensor]:
        """What the kernel reads for it, by name."""
        ...

    def scratch(self, layer: Layer, batch: Any) -> list[tuple[tuple[Any, ...], str]]:
        """Shapes and dtypes of what it keeps between steps."""
        ...

    def multiply(self, layer: Layer, loop: Loop, part: Any, members: list[Any]) -> Callable[[int, int, Any], Any]:
        """Write the sums of one block of units; (slot in members, gate, lane) -> the product."""
        ...

    def publish(self, layer: Layer, loop: Loop, row: Any) -> None:
        """Write what it keeps of a new output, which is in `loop.hidden`."""
        ...


def pack_gates(weight: torch.Tensor, gates: int, block: int) -> torch.Tensor:
    """[gates · units, inputs] as [blocks, inputs, gates, block], zeros behind the last unit; 16-bit floats as f32."""
    units, inputs = weight.shape[0] // gates, weight.shape[1]
    blocks = -(-units // block)
    wide = weight.float() if weight.dtype in (torch.float16, torch.bfloat16) else weight
    padded = wide.new_zeros((gates, blocks * block, inputs))
    padded[:, :units] = wide.reshape(gates, units, inputs)
    return padded.reshape(gates, blocks, block, inputs).permute(1, 3, 0, 2).contiguous()


@dataclass(frozen=True)
class Layer:
    """One layer in one direction, being lowered."""

    c: LoweringContext
    operation: Operation
    kind: Kind
    product: Product

    def operand(self, slot: int | None) -> Value | None:
        operands = self.operation.operands
        return operands[slot] if slot is not None and slot < len(operands) else None

    @property
    def dtype(self) -> DType:
        return self.operation.operand(0).type.dtype

    @property
    def working(self) -> str:
        return "float64" if self.dtype is DType.F64 else "float32"

    @cached_property
    def units(self) -> int:
        return self.static(self.operation.operand(self.kind.states).type.shape[1], "units")

    @cached_property
    def outputs(self) -> int:
        return self.static(self.operation.operand(1).type.shape[1], "outputs")

    def static(self, size: Any, what: str) -> int:
        if not isinstance(size, int):
            raise self.c.unsupported(f"needs a static number of {what}")
        return size

    @property
    def width(self) -> int:
        return lanes(self.c.target, self.working)

    @property
    def block(self) -> int:
        return self.width * max(1, self.product.vectors // self.kind.gates)

    @property
    def blocks(self) -> int:
        return -(-self.units // self.block)

    @property
    def reads_directly(self) -> bool:
        """Whether whole vectors of x are what a block of units needs."""
        return self.units % self.block == 0 and tvm_dtype(self.dtype) == self.working

    def rows(self, count: Any) -> int:
        """How many rows of the batch share one pass over the weights: as many as there are registers for."""
        vectors = self.kind.gates * (self.block // self.width)
        most = max(1, (self.c.target.registers - vectors - 1) // vectors)
        known = extent_of(count)
        return max(size for size in (1, 2, 4) if size <= most and known and known % size == 0) if known else 1

    def packed(self, value: Value, gates: int) -> te.Tensor:
        """A matrix (or, as one with a single input, a vector) in blocks; at compile time where it is constant."""
        block, vector = self.block, value.type.rank == 1
        if value.constant is not None:
            return self.c.packed(
                value,
                f"gates[{gates},{block}]",
                lambda tensor: pack_gates(tensor[:, None] if vector else tensor, gates, block),
            )
        source = self.c.tensor(value)
        sizes = [self.static(size, "weights") for size in value.type.shape]
        units, inputs = sizes[0] // gates, 1 if vector else sizes[1]

        def element(part: Any, row: Any, gate: Any, lane: Any) -> Any:
            unit = part * block + lane
            place = gate * units + tirx.min(unit, units - 1)
            item = widened(source(place) if vector else source(place, row)).astype(self.working)
            return tirx.if_then_else(unit < units, item, tirx.const(0, self.working))

        shape = (-(-units // block), inputs, gates, block)
        return te.compute(shape, element, name="gates_pack", attrs=roles.stage())


@contextmanager
def vector_lanes(layer: Layer) -> Iterator[Any]:
    """What is written in the block, for every lane of a block, one vector after the other."""
    with T.unroll(0, layer.block // layer.width) as vector, T.vectorized(0, layer.width) as lane:
        yield vector * layer.width + lane


def _multiply(
    layer: Layer, packed: Any, part: Any, count: int, gates: int, rows: int, read: Callable[[int, Any], Any]
) -> Any:
    """Sums [rows, gates, block] of one block: Σ_k read(row, k) · packed[part, k], kept in registers."""
    sums = T.alloc_buffer((rows, gates, layer.block), layer.working, scope="local", layout=None)
    for row in range(rows):
        for gate in range(gates):
            with vector_lanes(layer) as lane:
                store(sums, [row, gate, lane], tirx.const(0, layer.working))
    with nest([count]) as (k,):
        for row in range(rows):
            factor = read(row, k)
            for gate in range(gates):
                with vector_lanes(layer) as lane:
                    product = factor * load(packed, [part, k, gate, lane])
                    store(sums, [row, gate, lane], load(sums, [row, gate, lane]) + product)
    return sums


@dataclass(frozen=True)
class RealProduct:
    """Σ_k h_k · R_k in floating point."""

    vectors: int = _VECTORS

    def tensors(self, layer: Layer) -> dict[str, te.Tensor]:
        return {"recurrent": layer.packed(layer.operation.operand(layer.kind.weight), layer.kind.gates)}

    def scratch(self, layer: Layer, batch: Any) -> list[tuple[tuple[Any, ...], str]]:
        return []

    def multiply(self, layer: Layer, loop: Loop, part: Any, members: list[Any]) -> Callable[[int, int, Any], Any]:
        sums = _multiply(
            layer, loop.buffers["recurrent"], part, layer.outputs, layer.kind.gates, len(members),
            lambda row, k: load(loop.hidden, [members[row], k]),
        )  # fmt: skip
        return lambda slot, gate, lane: load(sums, [slot, gate, lane])

    def publish(self, layer: Layer, loop: Loop, row: Any) -> None:
        return None


def lower_layer(layer: Layer) -> tuple[te.Tensor, ...]:
    """The kernel of one layer: its results, one after the other."""
    c, kind, operation = layer.c, layer.kind, layer.operation
    length, batch = c.dims(operation.operand(0).type.shape[:2])
    named = {"x": c.tensor(operation.operand(0)), **layer.product.tensors(layer)}
    for slot in range(kind.states):
        named[f"state{slot}"] = c.tensor(operation.operand(1 + slot))
    bias, projection = layer.operand(kind.bias), layer.operand(kind.projection)
    if bias is not None:
        named["recurrent_bias"] = layer.packed(bias, kind.gates)
    if projection is not None:
        named["projection"] = layer.packed(projection, 1)
    padded = layer.blocks * layer.block
    outer = -(-layer.outputs // layer.block) * layer.block
    storage = tvm_dtype(layer.dtype)
    results = [(length, batch, layer.outputs), (batch, layer.outputs), (batch, layer.units)][: 1 + kind.states]
    kept: list[tuple[tuple[Any, ...], str]] = [
        ((batch, outer), layer.working),
        ((batch, padded), layer.working),
        ((batch, padded), layer.working),
    ]
    kept += layer.product.scratch(layer, batch)
    if not layer.reads_directly:
        kept.append(((length, batch, layer.blocks, kind.gates, layer.block), layer.working))

    def body(ins: Sequence[Any], outs: Sequence[Any]) -> None:
        Loop(layer, dict(zip(named, ins, strict=True)), list(outs), len(results)).write(length, batch)

    shapes = [*results, *(shape for shape, _ in kept)]
    dtypes = [storage] * len(results) + [dtype for _, dtype in kept]
    return tuple(loops(shapes, dtypes, list(named.values()), body, operation.name)[: len(results)])


@dataclass(frozen=True)
class Loop:
    """The loop over the steps, with its buffers: those read by name, and the results and scratch memory in order."""

    layer: Layer
    buffers: dict[str, Any]
    written: list[Any]
    results: int
    hidden: Any = field(init=False)
    """The previous output, and its successor before a projection, then the cell."""
    following: Any = field(init=False)
    cell: Any = field(init=False)

    def __post_init__(self) -> None:
        for slot, name in enumerate(("hidden", "following", "cell")):
            object.__setattr__(self, name, self.written[self.results + slot])

    @property
    def kept(self) -> list[Any]:
        """What the product keeps between steps."""
        return self.written[self.results + 3 :]

    def write(self, length: Any, batch: Any) -> None:
        """All steps of some rows of the batch, for all rows in parallel."""
        layer = self.layer
        if not layer.reads_directly:
            self._spread(length, batch)
        rows = layer.rows(batch)
        tiles = tirx.floordiv(batch, rows) if extent_of(batch) is None else batch // rows
        with parallel_nest([tiles], rows * layer.units * layer.outputs) as (tile,):
            members = [tile * rows + row for row in range(rows)]
            for row in members:
                self._start(row)
            with nest([length]) as (step,):
                self._step(step, members)
            for row in members:
                self._end(row)

    def _spread(self, length: Any, batch: Any) -> None:
        """x in blocks of units."""
        layer = self.layer
        gates, units, block = layer.kind.gates, layer.units, layer.block
        with (
            parallel_nest([length, batch], gates * units) as (step, row),
            nest([layer.blocks, gates, block]) as (part, gate, lane),
        ):
            source = gate * units + tirx.min(part * block + lane, units - 1)
            value = widened(load(self.buffers["x"], [step, row, source])).astype(layer.working)
            store(self.written[-1], [step, row, part, gate, lane], value)

    def _start(self, row: Any) -> None:
        layer = self.layer
        with nest([layer.outputs]) as (unit,):
            store(self.hidden, [row, unit], widened(load(self.buffers["state0"], [row, unit])).astype(layer.working))
        layer.product.publish(layer, self, row)
        if layer.kind.states == 2:
            with nest([layer.units]) as (unit,):
                store(self.cell, [row, unit], widened(load(self.buffers["state1"], [row, unit])).astype(layer.working))
            with nest([self.cell.shape[1] - layer.units]) as (unit,):
                store(self.cell, [row, layer.units + unit], tirx.const(0, layer.working))

    def _step(self, step: Any, members: list[Any]) -> None:
        layer = self.layer
        with nest([layer.blocks]) as (part,):
            registers = T.alloc_buffer((len(members), layer.block), layer.working, scope="local", layout=None)
            product = layer.product.multiply(layer, self, part, members)
            for slot, row in enumerate(members):
                with vector_lanes(layer) as lane:
                    self._unit(step, part, slot, row, lane, product, registers)
        for row in members:
            self._publish(step, row)

    def _unit(
        self, step: Any, part: Any, slot: int, row: Any, lane: Any, product: Callable[..., Any], registers: Any
    ) -> None:
        layer = self.layer

        def recurrent(gate: int) -> Any:
            value = product(slot, gate, lane)
            if "recurrent_bias" not in self.buffers:
                return value
            return value + load(self.buffers["recurrent_bias"], [part, 0, gate, lane])

        def inputs(gate: int) -> Any:
            if layer.reads_directly:
                return load(self.buffers["x"], [step, row, gate * layer.units + part * layer.block + lane])
            return load(self.written[-1], [step, row, part, gate, lane])

        unit = [row, part * layer.block + lane]
        place = Place(unit, self.hidden, self.following, self.cell, registers, [slot, lane])
        layer.kind.cell(inputs, recurrent, place)

    def _publish(self, step: Any, row: Any) -> None:
        """The output of a step becomes the previous one of the next."""
        layer = self.layer
        storage = tvm_dtype(layer.dtype)
        if "projection" in self.buffers:
            with nest([-(-layer.outputs // layer.block)]) as (part,):
                sums = _multiply(
                    layer, self.buffers["projection"], part, layer.units, 1, 1,
                    lambda _, k: load(self.following, [row, k]),
                )  # fmt: skip
                with vector_lanes(layer) as lane:
                    store(self.hidden, [row, part * layer.block + lane], load(sums, [0, 0, lane]))
        else:
            with nest([self.hidden.shape[1]]) as (unit,):
                store(self.hidden, [row, unit], load(self.following, [row, unit]))
        layer.product.publish(layer, self, row)
        with nest([layer.outputs]) as (unit,):
            store(self.written[0], [step, row, unit], narrowed(load(self.hidden, [row, unit]), storage))

    def _end(self, row: Any) -> None:
        storage = tvm_dtype(self.layer.dtype)
        for result, state in zip(self.written[1 : self.results], (self.hidden, self.cell), strict=False):
            with nest([result.shape[1]]) as (unit,):
                store(result, [row, unit], narrowed(load(state, [row, unit]), storage))


def lstm_cell(inputs: Sums, recurrent: Sums, place: Place) -> None:
    """Write the new cell and output of one unit of an LSTM."""
    enter, forget, candidate, leave = (inputs(gate) + recurrent(gate) for gate in range(4))
    kept = fast.sigmoid(forget) * load(place.cell, place.unit)
    store(place.cell, place.unit, kept + fast.sigmoid(enter) * fast.tanh(candidate))
    store(place.following, place.unit, fast.sigmoid(leave) * fast.tanh(load(place.cell, place.unit)))


def gru_cell(inputs: Sums, recurrent: Sums, place: Place) -> None:
    """Write the new output of one unit of a GRU."""
    candidate = fast.tanh(inputs(2) + fast.sigmoid(inputs(0) + recurrent(0)) * recurrent(2))
    store(place.registers, place.register, candidate)
    difference = load(place.hidden, place.unit) - load(place.registers, place.register)
    update = fast.sigmoid(inputs(1) + recurrent(1))
    store(place.following, place.unit, load(place.registers, place.register) + update * difference)


def _rnn_cell(activation: Callable[[Any], Any]) -> Callable[[Sums, Sums, Place], None]:
    def cell(inputs: Sums, recurrent: Sums, place: Place) -> None:
        store(place.following, place.unit, activation(inputs(0) + recurrent(0)))

    return cell


def _lower(kind: Callable[[Operation], Kind]) -> Callable[..., tuple[te.Tensor, ...]]:
    def lower(c: LoweringContext, operation: Operation) -> tuple[te.Tensor, ...]:
        layer = Layer(c, operation, kind(operation), RealProduct())
        if layer.operand(layer.kind.weight - 1) is not None:
            raise c.unsupported("its inputs must be multiplied before (HoistRecurrentProjections)")
        return lower_layer(layer)

    return lower


_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "tanh": fast.tanh,
    "relu": lambda x: at_least(x, tirx.const(0, fast.expression_dtype(x))),
}

LOWERINGS: dict[str, Callable[..., Any]] = {
    "lstm": _lower(lambda _: Kind(4, 2, lstm_cell, weight=4, bias=6, projection=7)),
    "gru": _lower(lambda _: Kind(3, 1, gru_cell, weight=3, bias=5)),
    "rnn": _lower(lambda item: Kind(1, 1, _rnn_cell(_ACTIVATIONS[item.attributes["activation"]]), weight=3, bias=5)),
}
