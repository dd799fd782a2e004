"""Matching a pattern against the operations behind a value, with backtracking over commuted operands."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from whet.ir.graph import Operation, Value
from whet.passes.rewrite.pattern import (
    AnyOf,
    AttributeVariable,
    Literal,
    Node,
    OpNode,
    Rest,
    ResultNode,
    Variable,
)

COMMUTATIVE: Final = frozenset(
    {
        "add",
        "mul",
        "maximum",
        "minimum",
        "eq",
        "ne",
        "bitwise_and",
        "bitwise_or",
        "bitwise_xor",
        "logical_and",
        "logical_or",
        "logical_xor",
    }
)
"""Operations whose two operands may change places."""


@dataclass(frozen=True)
class Match:
    """What the names of a pattern stand for, and which operation each of its nodes took."""

    bindings: Mapping[str, Any] = field(default_factory=dict)
    operations: Mapping[OpNode, Operation] = field(default_factory=dict)

    def bind(self, name: str, value: Any) -> Match:
        return Match({**self.bindings, name: value}, self.operations)

    def take(self, node: OpNode, operation: Operation) -> Match:
        return Match(self.bindings, {**self.operations, node: operation})


@dataclass
class Failure:
    """The failure deepest inside of a pattern: the one that tells most about why it did not match."""

    depth: int = -1
    reason: str = ""
    values: tuple[Value, ...] = ()

    def note(self, depth: int, reason: str, *values: Value | None) -> None:
        if depth > self.depth:
            self.depth, self.reason = depth, reason
            self.values = tuple(value for value in values if value is not None)


def matches(roots: Iterable[OpNode], operation: Operation, failure: Failure) -> Iterator[Match]:
    """Every way in which one of `roots` matches at `operation`, the written order of operands first."""
    for root in roots:
        yield from _match_operation(root, operation, Match(), 0, failure)


def _match_operation(node: OpNode, operation: Operation, match: Match, depth: int, failure: Failure) -> Iterator[Match]:
    taken = match.operations.get(node)
    if taken is not None:
        if taken is operation:
            yield match
        return
    if operation.name != node.name:
        failure.note(depth, f"is {operation.name}, not {node.name}", *operation.results[:1])
        return
    matched = _match_attributes(node, operation, match.take(node, operation), depth, failure)
    if matched is None:
        return
    orders: list[Sequence[Value | None]] = [operation.operands]
    if node.name in COMMUTATIVE and operation.operands[0] is not operation.operands[1]:
        orders.append(operation.operands[::-1])
    for operands in orders:
        yield from _match_operands(node.operands, operands, matched, depth + 1, failure)


def _match_attributes(node: OpNode, operation: Operation, match: Match, depth: int, failure: Failure) -> Match | None:
    for name, wanted in node.attributes.items():
        actual = operation.attributes[name]
        if isinstance(wanted, AttributeVariable):
            if wanted.name in match.bindings and match.bindings[wanted.name] != actual:
                failure.note(
                    depth,
                    f"{name} is {actual!r}, elsewhere {match.bindings[wanted.name]!r}",
                    operation.results[0],
                )
                return None
            match = match.bind(wanted.name, actual)
        elif wanted != actual:
            failure.note(depth, f"{name} is {actual!r}, not {wanted!r}", operation.results[0])
            return None
    return match


def _match_operands(
    nodes: tuple[Node | None, ...],
    operands: Sequence[Value | None],
    match: Match,
    depth: int,
    failure: Failure,
) -> Iterator[Match]:
    if not nodes:
        extra = [operand for operand in operands if operand is not None]
        if extra:
            failure.note(depth, "has operands that the pattern has not", *extra)
        else:
            yield match
        return
    first, rest = nodes[0], nodes[1:]
    if isinstance(first, Rest):
        bound = match.bindings.get(first.name)
        if bound is None or bound == tuple(operands):
            yield match.bind(first.name, tuple(operands))
        return
    head = operands[0] if operands else None
    for matched in _match_value(first, head, match, depth, failure):
        yield from _match_operands(rest, operands[1:], matched, depth, failure)


def _match_value(node: Node | None, value: Value | None, match: Match, depth: int, failure: Failure) -> Iterator[Match]:
    if isinstance(node, AnyOf):
        for alternative in node.alternatives:
            yield from _match_value(alternative, value, match, depth, failure)
        return
    if isinstance(node, Variable):
        yield from _match_variable(node, value, match, depth, failure)
        return
    if node is None or value is None:
        if node is None and value is None:
            yield match
        else:
            failure.note(depth, "an operand must be absent" if node is None else "an operand is absent", value)
        return
    if isinstance(node, Literal):
        if _scalar(value) == node.number:
            yield match
        else:
            failure.note(depth, f"is not the constant {node.number}", value)
        return
    operation, index = (node.operation, node.index) if isinstance(node, ResultNode) else (node, 0)
    assert isinstance(operation, OpNode)
    producer = value.producer
    if producer is None:
        failure.note(depth, f"is an input of the graph, not {operation.name}", value)
    elif len(producer.results) <= index or producer.results[index] is not value:
        failure.note(depth, f"is not result {index} of {producer.name}", value)
    else:
        yield from _match_operation(operation, producer, match, depth, failure)


def _match_variable(node: Variable, value: Value | None, match: Match, depth: int, failure: Failure) -> Iterator[Match]:
    if value is None and not node.optional:
        failure.note(depth, f"operand {node.name!r} is absent")
    elif node.name in match.bindings and match.bindings[node.name] is not value:
        failure.note(depth, f"{node.name!r} stands for two values", match.bindings[node.name], value)
    else:
        yield match.bind(node.name, value)


def _scalar(value: Value) -> float | None:
    tensor = value.constant
    return tensor.item() if tensor is not None and tensor.dim() == 0 else None


def shared_value(match: Match, root: Operation, returned: Collection[Value]) -> Value | None:
    """A result inside of the match, other than the root's, that something outside of it uses."""
    inside = set(match.operations.values())
    for operation in inside:
        if operation is root:
            continue
        for value in operation.results:
            if value in returned or any(user not in inside for user, _ in value.uses):
                return value
    return None
