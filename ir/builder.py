"""Appending operations to a graph, or inserting them before one."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch

from whet.errors import InternalError
from whet.ir.definition import InferError
from whet.ir.graph import Graph, Location, Operation, Value
from whet.ir.ops import CATALOGUE
from whet.ir.types import DType, TensorType

Emitter = Callable[..., Value]


class Names:
    """Unique value names of one graph."""

    def __init__(self, taken: Sequence[str] = ()) -> None:
        self._taken = set(taken)
        self._counters: dict[str, itertools.count[int]] = {}

    def unique(self, hint: str) -> str:
        name = re.sub(r"[^A-Za-z0-9_.]", "_", hint) or "v"
        if name not in self._taken:
            self._taken.add(name)
            return name
        counter = self._counters.setdefault(name, itertools.count(1))
        while (candidate := f"{name}_{next(counter)}") in self._taken:
            continue
        self._taken.add(candidate)
        return candidate


class Builder:
    """Emits operations by name: `builder.linear(x, w)`, `builder.reshape(x, shape=(1, 2))`.

    The result is the Value; operations with several give a tuple of them. A Python number among the
    operands of an elementwise operation becomes a constant of the other operand's dtype. `before` inserts
    there instead of appending.
    """

    def __init__(self, graph: Graph, before: Operation | None = None, location: Location | None = None) -> None:
        self.graph = graph
        self.before = before
        self.location = location or (before.location if before else Location())
        self.names = Names([value.name for value in graph.values()])
        self.emitted: list[Operation] = []

    def __getattr__(self, name: str) -> Emitter:
        if name not in CATALOGUE:
            raise AttributeError(f"there is no operation {name!r}")

        def emit(*operands: Value | float | None, name_hint: str = "", **attributes: Any) -> Any:
            results = self.emit(name, operands, attributes, name_hint).results
            return results[0] if len(results) == 1 else tuple(results)

        return emit

    def constant(self, tensor: torch.Tensor, key: str = "", dtype: DType | None = None) -> Value:
        """A constant that holds `tensor` itself, without a copy."""
        attributes = {"tensor": tensor.detach(), "key": key, "dtype": dtype}
        return self.emit("constant", (), attributes, key or "c").result

    def scalar(self, number: float | bool, dtype: DType) -> Value:
        """A constant without dimensions."""
        return self.constant(torch.tensor(number, dtype=dtype.torch))

    def emit(
        self,
        name: str,
        operands: Sequence[Value | float | None],
        attributes: dict[str, Any],
        name_hint: str = "",
    ) -> Operation:
        """One operation with inferred result types. Raises InternalError with the location where they do not
        fit.
        """
        definition = CATALOGUE[name]
        values = self._lift_numbers(operands)
        try:
            attributes = definition.signature.with_defaults(attributes)
            types = definition.result_types([None if v is None else v.type for v in values], attributes)
        except InferError as error:
            raise InternalError(f"{name} at {self.location}: {error}") from error
        operation = Operation(definition, values, attributes, self.location)
        operation.results = [
            Value(self.names.unique(name_hint or name), result_type, operation) for result_type in types
        ]
        self._insert(operation)
        return operation

    def _insert(self, operation: Operation) -> None:
        self.emitted.append(operation)
        if self.before is None:
            self.graph.operations.append(operation)
        else:
            self.graph.operations.insert(self.graph.operations.index(self.before), operation)

    def _lift_numbers(self, operands: Sequence[Value | float | None]) -> list[Value | None]:
        typed: list[TensorType] = [operand.type for operand in operands if isinstance(operand, Value)]
        return [
            operand
            if operand is None or isinstance(operand, Value)
            else self.scalar(operand, typed[-1].dtype if typed else DType.F32)
            for operand in operands
        ]

    def input(self, name: str, type: TensorType) -> Value:
        """A new graph input."""
        value = Value(self.names.unique(name), type)
        self.graph.inputs.append(value)
        return value
