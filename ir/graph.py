"""The graph: values in static single assignment, operations in order, and mutable state at its edge."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from whet.ir.dimensions import DimRange
from whet.ir.types import TensorType

if TYPE_CHECKING:
    from whet.ir.definition import OpDefinition


@dataclass(frozen=True)
class Location:
    """Where an operation comes from: the module path in the model, and the line of source that called it."""

    module: str = ""
    file: str = ""
    line: int = 0

    def __str__(self) -> str:
        source = f"{self.file}:{self.line}" if self.file else ""
        return " ".join(part for part in (self.module, source) if part) or "<unknown>"


class Value:
    """One tensor in the graph: an input, or a result of exactly one operation."""

    __slots__ = ("name", "producer", "type", "uses")

    def __init__(self, name: str, type: TensorType, producer: Operation | None = None) -> None:
        self.name = name
        self.type = type
        self.producer = producer
        self.uses: list[tuple[Operation, int]] = []
        """(operation, operand index) of every use by an operation; graph outputs are not in it."""

    @property
    def constant(self) -> torch.Tensor | None:
        """The tensor, where this value is a constant; None otherwise."""
        if self.producer is None or self.producer.definition.name != "constant":
            return None
        tensor: torch.Tensor = self.producer.attributes["tensor"]
        return tensor

    @property
    def users(self) -> list[Operation]:
        """Operations that use this value, each once, in order of first use."""
        return list(dict.fromkeys(operation for operation, _ in self.uses))

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


class Operation:
    """One application of a definition to operands (None where an optional one is absent)."""

    __slots__ = ("attributes", "definition", "location", "operands", "results")

    def __init__(
        self,
        definition: OpDefinition,
        operands: Sequence[Value | None],
        attributes: Mapping[str, Any],
        location: Location,
    ) -> None:
        self.definition = definition
        self.operands: list[Value | None] = list(operands)
        self.attributes: dict[str, Any] = dict(attributes)
        self.location = location
        self.results: list[Value] = []
        for index, operand in enumerate(self.operands):
            if operand is not None:
                operand.uses.append((self, index))

    @property
    def name(self) -> str:
        """The operation's name, as in the text form."""
        return self.definition.name

    @property
    def result(self) -> Value:
        """The result of an operation that has exactly one."""
        (value,) = self.results
        return value

    def operand(self, index: int) -> Value:
        """The operand at `index`, which must be present."""
        value = self.operands[index]
        if value is None:
            raise ValueError(f"operand {index} of {self.name} is absent")
        return value

    def set_operand(self, index: int, value: Value | None) -> None:
        """Replace one operand, keeping the use lists right."""
        old = self.operands[index]
        if old is not None:
            old.uses.remove((self, index))
        self.operands[index] = value
        if value is not None:
            value.uses.append((self, index))

    def drop_operands(self) -> None:
        """Forget all operands, before the operation is erased."""
        for index in range(len(self.operands)):
            self.set_operand(index, None)

    def __repr__(self) -> str:
        results = ", ".join(f"%{value.name}" for value in self.results)
        operands = ", ".join("none" if value is None else f"%{value.name}" for value in self.operands)
        return f"{results} = {self.name}({operands})"


@dataclass(eq=False)
class StateSlot:
    """A buffer that lives between calls: read as `input`, replaced by `output` after a call."""

    input: Value
    output: Value
    initial: torch.Tensor


@dataclass(eq=False)
class Graph:
    """Inputs, operations in topological order, outputs, and state. Passes work on a `clone`, which shares
    tensors.
    """

    name: str = "main"
    inputs: list[Value] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    state: list[StateSlot] = field(default_factory=list)
    dimensions: dict[str, DimRange] = field(default_factory=dict)
    output_names: list[str] = field(default_factory=list)
    input_structure: Any = None
    """JSON form of the call's (args, kwargs) tree, leaves numbered as `inputs`; None: a flat tuple of all
    inputs.
    """
    output_structure: Any = None
    """JSON form of the result's tree, leaves numbered as `outputs`; None: one tensor, or a flat tuple."""

    @property
    def arguments(self) -> list[Value]:
        """Every value that comes from outside: inputs, then state inputs."""
        return [*self.inputs, *(slot.input for slot in self.state)]

    @property
    def returns(self) -> list[Value]:
        """Every value that leaves: outputs, then state outputs."""
        return [*self.outputs, *(slot.output for slot in self.state)]

    @property
    def constants(self) -> list[Value]:
        return [operation.result for operation in self.operations if operation.name == "constant"]

    def values(self) -> Iterable[Value]:
        """Arguments, then results in order."""
        yield from self.arguments
        for operation in self.operations:
            yield from operation.results

    def replace_value(self, old: Value, new: Value) -> None:
        """Use `new` wherever `old` was used: operands, outputs and state outputs."""
        for operation, index in list(old.uses):
            operation.set_operand(index, new)
        self.outputs = [new if value is old else value for value in self.outputs]
        for slot in self.state:
            if slot.output is old:
                slot.output = new

    def erase(self, operation: Operation) -> None:
        """Remove an operation none of whose results is used."""
        for value in operation.results:
            if value.uses or any(value is item for item in self.returns):
                raise ValueError(f"{operation!r} is still used")
        operation.drop_operands()
        self.operations.remove(operation)

    def clone(self) -> Graph:
        """A copy that shares tensors and nothing else, so that a pass may edit it freely."""
        copies: dict[Value, Value] = {}

        def copy_value(value: Value, producer: Operation | None = None) -> Value:
            copies[value] = Value(value.name, value.type, producer)
            return copies[value]

        inputs = [copy_value(value) for value in self.inputs]
        state_inputs = [copy_value(slot.input) for slot in self.state]
        operations = []
        for operation in self.operations:
            operands = [None if value is None else copies[value] for value in operation.operands]
            twin = Operation(operation.definition, operands, operation.attributes, operation.location)
            twin.results = [copy_value(value, twin) for value in operation.results]
            operations.append(twin)
        state = [
            StateSlot(value, copies[slot.output], slot.initial)
            for value, slot in zip(state_inputs, self.state, strict=True)
        ]
        return Graph(
            name=self.name,
            inputs=inputs,
            operations=operations,
            outputs=[copies[value] for value in self.outputs],
            state=state,
            dimensions=dict(self.dimensions),
            output_names=list(self.output_names),
            input_structure=self.input_structure,
            output_structure=self.output_structure,
        )

    def __str__(self) -> str:
        from whet.ir.printer import print_graph

        return print_graph(self)
