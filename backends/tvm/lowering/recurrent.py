"""Recurrent layers: the inputs of all steps are multiplied first, in parallel, then one loop runs over the steps.

Both matrices are packed as [blocks of units, inputs, gates, block], zeros behind the last unit: the sums of one block
of units, for all its gates and some rows of the batch, stay in registers, and the cell turns them into the new state
right away. Of the loop over steps only the batch is parallel: one step is too short to hand to several threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

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
class _Place:
    """One unit: where it is in the states, [row, unit], and in the registers, [row of the tile, gate, lane]."""

    unit: list[Any]
    hidden: Any
    following: Any
    cell: Any
    registers: Any
    sums: tuple[int, Any]


@dataclass(frozen=True)
class _Kind:
    """What tells one kind of layer from another.

    `cell(inputs, recurrent, place)` writes the new state of one unit, given what the gates get from the input and from
    the previous output.
    """

    gates: int
    states: int
    cell: Callable[[Sums, Sums, _Place], None]
    joined: bool
    """Whether the cell only uses the sum of what comes from the input and from the previous output."""


def pack_gates(weight: torch.Tensor, gates: int, block: int) -> torch.Tensor:
    """[gates · units, inputs] as [blocks, inputs, gates, block], zeros behind the last unit; f32 unless it is f64."""
    units, inputs = weight.shape[0] // gates, weight.shape[1]
    blocks = -(-units // block)
    wide = weight if weight.dtype == torch.float64 else weight.float()
    padded = wide.new_zeros((gates, blocks * block, inputs))
    padded[:, :units] = wide.reshape(gates, units, inputs)
    return padded.reshape(gates, blocks, block, inputs).permute(1, 3, 0, 2).contiguous()


@dataclass(frozen=True)
class _Layer:
    """One layer in one direction, being lowered."""

    c: LoweringContext
    operation: Operation
    kind: _Kind

    def operand(self, slot: int) -> Value | None:
        operands = self.operation.operands
        return operands[slot] if slot < len(operands) else None

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
        return self.width * max(1, _VECTORS // self.kind.gates)

    def rows(self, count: Any, gates: int) -> int:
        """How many rows share one pass over the weights: as many as there are registers for, no more than there are."""
        vectors = gates * (self.block // self.width)
        most = max(1, (self.c.target.registers - vectors - 1) // vectors)
        known = extent_of(count)
        return max(size for size in (1, 2, 4) if size <= most and (known is None or size <= known))

    def packed(self, value: Value, gates: int) -> te.Tensor:
        """A matrix (or, as one with a single input, a bias) in blocks; at compile time where it is constant."""
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
def _lanes(layer: _Layer) -> Iterator[Any]:
    """What is written in the block, for every lane of a block, one vector after the other."""
    with T.unroll(0, layer.block // layer.width) as vector, T.vectorized(0, layer.width) as lane:
        yield vector * layer.width + lane


def _multiply(
    layer: _Layer, packed: Any, part: Any, count: int, gates: int, rows: int, read: Callable[[int, Any], Any]
) -> Any:
    """Sums [rows, gates, block] of one block: Σ_k read(row, k) · packed[part, k], kept in registers."""
    sums = T.alloc_buffer((rows, gates, layer.block), layer.working, scope="local", layout=None)
    for row in range(rows):
        for gate in range(gates):
            with _lanes(layer) as lane:
                store(sums, [row, gate, lane], tirx.const(0, layer.working))
    with nest([count]) as (k,):
        for row in range(rows):
            factor = read(row, k)
            for gate in range(gates):
                with _lanes(layer) as lane:
                    product = factor * load(packed, [part, k, gate, lane])
                    store(sums, [row, gate, lane], load(sums, [row, gate, lane]) + product)
    return sums


def _lower(kind: _Kind) -> Callable[..., tuple[te.Tensor, ...]]:
    def lower(c: LoweringContext, operation: Operation) -> tuple[te.Tensor, ...]:
        return _lowered(_Layer(c, operation, kind))

    return lower


def _lowered(layer: _Layer) -> tuple[te.Tensor, ...]:
    c, kind = layer.c, layer.kind
    first = 1 + kind.states
    operands = [layer.operand(slot) for slot in range(first + 5)]
    weight, recurrent, bias, recurrent_bias, projection = operands[first:]
    assert weight is not None and recurrent is not None
    length, batch = c.dims(layer.operation.operand(0).type.shape[:2])
    named = {
        "x": c.tensor(layer.operation.operand(0)),
        "weight": layer.packed(weight, kind.gates),
        "recurrent": layer.packed(recurrent, kind.gates),
    }
    for slot in range(kind.states):
        named[f"state{slot}"] = c.tensor(layer.operation.operand(1 + slot))
    for name, value in (("bias", bias), ("recurrent_bias", recurrent_bias)):
        if value is not None:
            named[name] = layer.packed(value, kind.gates)
    if projection is not None:
        named["projection"] = layer.packed(projection, 1)
    blocks = -(-layer.units // layer.block)
    padded = blocks * layer.block
    outer = -(-layer.outputs // layer.block) * layer.block
    storage = tvm_dtype(layer.dtype)
    results = [(length, batch, layer.outputs), (batch, layer.outputs), (batch, layer.units)][: 1 + kind.states]
    scratch = [(length, batch, blocks, kind.gates, layer.block), (batch, outer), (batch, padded), (batch, padded)]

    def body(ins: Sequence[Any], outs: Sequence[Any]) -> None:
        buffers = dict(zip(named, ins, strict=True))
        projected = outs[len(results)]
        _project(layer, buffers, projected, length, batch)
        _Loop(layer, buffers, list(outs[: len(results)]), projected, list(outs[len(results) + 1 :])).write(
            length, batch
        )

    dtypes = [storage] * len(results) + [layer.working] * len(scratch)
    return tuple(loops([*results, *scratch], dtypes, list(named.values()), body, layer.operation.name)[: len(results)])


def _project(layer: _Layer, buffers: dict[str, Any], projected: Any, length: Any, batch: Any) -> None:
    """W x_t + b of every step, and the recurrent bias where the cell adds it to that anyway."""
    gates, x, weight = layer.kind.gates, buffers["x"], buffers["weight"]
    features = layer.static(layer.operation.operand(0).type.shape[2], "features")
    total = length * batch
    rows = layer.rows(total, gates)
    terms = [buffers[name] for name in ("bias", "recurrent_bias")[: 2 if layer.kind.joined else 1] if name in buffers]
    tiles = tirx.floordiv(total + rows - 1, rows) if extent_of(total) is None else -(-total // rows)
    with parallel_nest([tiles], features * layer.units * gates) as (tile,):
        # the rows of the last tile that are too many repeat the last row
        position = [tirx.min(tile * rows + row, total - 1) for row in range(rows)]
        place = [(tirx.floordiv(item, batch), tirx.floormod(item, batch)) for item in position]
        with nest([-(-layer.units // layer.block)]) as (part,):
            sums = _multiply(
                layer, weight, part, features, gates, rows,
                lambda row, k: widened(load(x, [*place[row], k])).astype(layer.working),
            )  # fmt: skip
            for row in range(rows):
                for gate in range(gates):
                    with _lanes(layer) as lane:
                        value = load(sums, [row, gate, lane])
                        for term in terms:
                            value = value + load(term, [part, 0, gate, lane])
                        store(projected, [*place[row], part, gate, lane], value)


@dataclass(frozen=True)
class _Loop:
    """The loop over the steps, with its buffers: the previous output, its successor before a projection, the cells."""

    layer: _Layer
    buffers: dict[str, Any]
    results: list[Any]
    projected: Any
    scratch: list[Any]

    def write(self, length: Any, batch: Any) -> None:
        """All steps of some rows of the batch, for all rows in parallel."""
        rows = self._rows(batch)
        tiles = tirx.floordiv(batch, rows) if extent_of(batch) is None else batch // rows
        layer = self.layer
        with parallel_nest([tiles], rows * layer.units * layer.outputs) as (tile,):
            members = [tile * rows + row for row in range(rows)]
            for row in members:
                self._start(row)
            with nest([length]) as (step,):
                self._step(step, members)
            for row in members:
                self._end(row)

    def _rows(self, batch: Any) -> int:
        known = extent_of(batch)
        most = self.layer.rows(batch, self.layer.kind.gates)
        return (
            max(size for size in (1, 2, 4) if size <= most and known is not None and known % size == 0) if known else 1
        )

    def _start(self, row: Any) -> None:
        layer, (hidden, _, cell) = self.layer, self.scratch
        with nest([layer.outputs]) as (unit,):
            store(hidden, [row, unit], widened(load(self.buffers["state0"], [row, unit])).astype(layer.working))
        if layer.kind.states == 2:
            with nest([layer.units]) as (unit,):
                store(cell, [row, unit], widened(load(self.buffers["state1"], [row, unit])).astype(layer.working))
            with nest([cell.shape[1] - layer.units]) as (unit,):
                store(cell, [row, layer.units + unit], tirx.const(0, layer.working))

    def _step(self, step: Any, members: list[Any]) -> None:
        layer, hidden = self.layer, self.scratch[0]
        gates = layer.kind.gates
        with nest([-(-layer.units // layer.block)]) as (part,):
            sums = _multiply(
                layer, self.buffers["recurrent"], part, layer.outputs, gates, len(members),
                lambda row, k: load(hidden, [members[row], k]),
            )  # fmt: skip
            for slot, row in enumerate(members):
                with _lanes(layer) as lane:
                    self._unit(step, part, slot, row, lane, sums)
        for row in members:
            self._publish(step, row)

    def _unit(self, step: Any, part: Any, slot: int, row: Any, lane: Any, sums: Any) -> None:
        layer, (hidden, following, cell) = self.layer, self.scratch
        unit = [row, part * layer.block + lane]

        def recurrent(gate: int) -> Any:
            value = load(sums, [slot, gate, lane])
            if layer.kind.joined or "recurrent_bias" not in self.buffers:
                return value
            return value + load(self.buffers["recurrent_bias"], [part, 0, gate, lane])

        def inputs(gate: int) -> Any:
            return load(self.projected, [step, row, part, gate, lane])

        layer.kind.cell(inputs, recurrent, _Place(unit, hidden, following, cell, sums, (slot, lane)))

    def _publish(self, step: Any, row: Any) -> None:
        """The output of a step becomes the previous one of the next."""
        layer, (hidden, following, _) = self.layer, self.scratch
        storage = tvm_dtype(layer.dtype)
        if "projection" in self.buffers:
            with nest([-(-layer.outputs // layer.block)]) as (part,):
                sums = _multiply(
                    layer, self.buffers["projection"], part, layer.units, 1, 1,
                    lambda _, k: load(following, [row, k]),
                )  # fmt: skip
                with _lanes(layer) as lane:
                    store(hidden, [row, part * layer.block + lane], load(sums, [0, 0, lane]))
        else:
            with nest([hidden.shape[1]]) as (unit,):
                store(hidden, [row, unit], load(following, [row, unit]))
        with nest([layer.outputs]) as (unit,):
            store(self.results[0], [step, row, unit], narrowed(load(hidden, [row, unit]), storage))

    def _end(self, row: Any) -> None:
        layer, (hidden, _, cell) = self.layer, self.scratch
        storage = tvm_dtype(layer.dtype)
        for result, state in zip(self.results[1:], (hidden, cell), strict=False):
            with nest([result.shape[1]]) as (unit,):
                store(result, [row, unit], narrowed(load(state, [row, unit]), storage))


def _lstm_cell(inputs: Sums, recurrent: Sums, place: _Place) -> None:
    enter, forget, candidate, leave = (inputs(gate) + recurrent(gate) for gate in range(4))
    kept = fast.sigmoid(forget) * load(place.cell, place.unit)
    store(place.cell, place.unit, kept + fast.sigmoid(enter) * fast.tanh(candidate))
    store(place.following, place.unit, fast.sigmoid(leave) * fast.tanh(load(place.cell, place.unit)))


def _gru_cell(inputs: Sums, recurrent: Sums, place: _Place) -> None:
    # the candidate takes the place of a sum that is not needed any more
    candidate = [*place.sums[:1], 2, place.sums[1]]
    store(place.registers, candidate, fast.tanh(inputs(2) + fast.sigmoid(inputs(0) + recurrent(0)) * recurrent(2)))
    difference = load(place.hidden, place.unit) - load(place.registers, candidate)
    update = fast.sigmoid(inputs(1) + recurrent(1))
    store(place.following, place.unit, load(place.registers, candidate) + update * difference)


def _rnn(c: LoweringContext, operation: Operation) -> tuple[te.Tensor, ...]:
    activation = _ACTIVATIONS[operation.attributes["activation"]]

    def cell(inputs: Sums, recurrent: Sums, place: _Place) -> None:
        store(place.following, place.unit, activation(inputs(0) + recurrent(0)))

    return _lowered(_Layer(c, operation, _Kind(1, 1, cell, joined=True)))


_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "tanh": fast.tanh,
    "relu": lambda x: at_least(x, tirx.const(0, fast.expression_dtype(x))),
}

LOWERINGS: dict[str, Callable[..., Any]] = {
    "lstm": _lower(_Kind(4, 2, _lstm_cell, joined=True)),
    "gru": _lower(_Kind(3, 1, _gru_cell, joined=False)),
    "rnn": _rnn,
}
