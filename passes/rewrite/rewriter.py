"""Editing a graph in place, one matched operation at a time, in constant time an edit."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from whet.ir.builder import Builder
from whet.ir.graph import Graph, Location, Operation, Value


class Rewriter(Builder):
    """A builder that inserts before the matched root: `rewriter.linear(x, w)`, `rewriter.constant(tensor)`.

    New operations get the source line of the matched operation of their kind, else the root's. Operations are
    linked into `graph.operations` by `commit`; until then the uses of values are right, and only their order
    is pending.
    """

    root: Operation
    """The operation that the root of the pattern matched."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.erased: set[Operation] = set()
        self.returned = set(graph.returns)
        self._pending: dict[Operation, list[Operation]] = {}
        self._locations: dict[str, Location] = {}

    def begin(self, root: Operation, matched: Iterable[Operation] = ()) -> None:
        """Start a rewrite at `root`."""
        self.root = root
        self.emitted = []
        self._locations = {}
        for operation in matched:
            self._locations.setdefault(operation.name, operation.location)

    def emit(
        self,
        name: str,
        operands: Sequence[Value | float | None],
        attributes: dict[str, Any],
        name_hint: str = "",
    ) -> Operation:
        """One operation before the root. Raises InternalError where operands and attributes do not fit."""
        self.location = self._locations.get(name, self.root.location)
        return super().emit(name, operands, attributes, name_hint)

    def _insert(self, operation: Operation) -> None:
        self.emitted.append(operation)
        self._pending.setdefault(self.root, []).append(operation)

    def private(self, value: Value) -> bool:
        """Whether the root alone uses `value`."""
        return value not in self.returned and all(user is self.root for user, _ in value.uses)

    def again(self, *operands: Value | float | None, **changes: Any) -> Any:
        """The root's operation on other operands, with its attributes except for `changes`."""
        return getattr(self, self.root.name)(*operands, **{**self.root.attributes, **changes})

    def abandon(self) -> None:
        """Take back what was emitted since `begin`."""
        for operation in reversed(self.emitted):
            self.erase(operation)
        self.emitted = []

    def replace(self, old: Operation, values: Sequence[Value]) -> None:
        """Use `values` in place of the results of `old`, which is erased with all that only it used."""
        made = {value for operation in self.emitted for value in operation.results}
        for before, after in zip(old.results, values, strict=True):
            self.graph.replace_value(before, after)
            if after in made:
                made.discard(after)
                after.name = before.name
        if not self.returned.isdisjoint(old.results):
            self.returned = set(self.graph.returns)
        self.erase_unused([old, *self.emitted])

    def erase_unused(self, operations: Iterable[Operation]) -> None:
        """Erase those of `operations` that nothing uses, then what only they used, and so on."""
        waiting = list(operations)
        while waiting:
            operation = waiting.pop()
            if operation in self.erased or any(v.uses or v in self.returned for v in operation.results):
                continue
            waiting += [value.producer for value in operation.operands if value is not None and value.producer]
            self.erase(operation)

    def erase(self, operation: Operation) -> None:
        operation.drop_operands()
        self.erased.add(operation)

    def commit(self) -> None:
        """Bring `graph.operations` up to date."""
        ordered: list[Operation] = []
        stack: list[tuple[Operation, bool]] = [(operation, False) for operation in reversed(self.graph.operations)]
        while stack:
            operation, placed = stack.pop()
            if placed:
                if operation not in self.erased:
                    ordered.append(operation)
                continue
            stack.append((operation, True))
            stack += [(item, False) for item in reversed(self._pending.get(operation, ()))]
        self.graph.operations = ordered
        self._pending = {}
        self.erased = set()
