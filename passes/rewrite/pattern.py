"""Patterns: small graphs over named values, made by calling a Python function with variables."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from whet.errors import PassError
from whet.ir.graph import Value


class MatchFailure(Exception):
    """Raised in `rewrite` to decline a match: the reason (the tracer prints it) and the values to blame."""

    def __init__(self, reason: str, *values: Value | None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.values = tuple(value for value in values if value is not None)


class Node:
    """Base of what a pattern is made of."""


@dataclass(frozen=True, eq=False)
class Variable(Node):
    """Any value, everywhere the same one. `optional` also takes an absent operand, as None."""

    name: str
    optional: bool = False


@dataclass(frozen=True, eq=False)
class Rest(Node):
    """All remaining operands of a variadic operation, as a tuple."""

    name: str


@dataclass(frozen=True, eq=False)
class AttributeVariable:
    """Any value of an attribute; the same variable twice is an equal value twice."""

    name: str


@dataclass(frozen=True, eq=False)
class Literal(Node):
    """A constant without dimensions that has this value."""

    number: float


@dataclass(frozen=True, eq=False)
class OpNode(Node):
    """An operation over patterns; stands for its first result, `node[i]` for the i-th."""

    name: str
    operands: tuple[Node | None, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def __getitem__(self, index: int) -> ResultNode:
        return ResultNode(self, index)


@dataclass(frozen=True, eq=False)
class ResultNode(Node):
    """One result of an operation that has several."""

    operation: OpNode
    index: int


class AnyOf(Node):
    """The first of several patterns that matches (and whose `rewrite` does not decline)."""

    def __init__(self, *alternatives: Node | float) -> None:
        self.alternatives = tuple(node for node in map(as_node, alternatives) if node is not None)


def as_node(operand: Node | float | None) -> Node | None:
    """A number as the literal that it stands for. Raises TypeError for what no pattern can be."""
    if operand is None or isinstance(operand, Node):
        return operand
    if isinstance(operand, int | float):
        return Literal(operand)
    raise TypeError(
        f"an operand of a pattern is a pattern, a number or None, not {type(operand).__name__}: {operand!r}"
    )


class RewritePattern:
    """One rewrite rule: `pattern` draws what to look for, `rewrite` gives what takes its place.

        class FoldScaleIntoLinear(RewritePattern):
            def pattern(self, x, w, s):
                return ops.mul(ops.linear(x, w), s)

            def rewrite(self, rewriter, x, w, s):
                if w.constant is None or s.constant is None:
                    raise MatchFailure("weight and scale must be constants", w, s)
                return rewriter.linear(x, rewriter.constant(w.constant * s.constant))

    The parameters of `pattern` are what it binds, by name: positional ones are values (with the default None:
    or an absent operand), `*xs` the remaining operands of a variadic operation, keyword-only ones attributes.
    `rewrite` takes any of them again, as Value, tuple of Values or attribute value, and returns the Value (or
    Values) in place of the root's results, of the same type; `rewriter.root` is the operation that the
    pattern's root matched.
    """

    allow_shared: ClassVar[bool] = False
    """Whether operations inside of the match may have other users; they then stay beside the rewritten ones.
    """

    pattern: Callable[..., Node]
    rewrite: Callable[..., Any]

    @property
    def name(self) -> str:
        return type(self).__name__


class CompiledPattern:
    """A rewrite rule with its pattern drawn once. Raises PassError for one that is not well formed."""

    def __init__(self, rule: RewritePattern) -> None:
        if not callable(getattr(rule, "pattern", None)) or not callable(getattr(rule, "rewrite", None)):
            raise PassError(f"{rule.name} must define pattern(self, ...) and rewrite(self, rewriter, ...)")
        self.rule = rule
        self.parameters: dict[str, inspect.Parameter] = dict(inspect.signature(rule.pattern).parameters)
        self.roots: dict[str, list[OpNode]] = {}
        for root in self._roots(self._draw()):
            self.roots.setdefault(root.name, []).append(root)
        self._rewrite_parameters = list(inspect.signature(rule.rewrite).parameters.values())[1:]
        unknown = [item.name for item in self._rewrite_parameters if item.name not in self.parameters]
        if unknown:
            raise PassError(f"{rule.name}.rewrite asks for {unknown}, pattern binds {list(self.parameters)}")

    def _draw(self) -> Node:
        positional: list[Node] = []
        keywords: dict[str, AttributeVariable] = {}
        for parameter in self.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                positional.append(Rest(parameter.name))
            elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                keywords[parameter.name] = AttributeVariable(parameter.name)
            else:
                positional.append(Variable(parameter.name, optional=parameter.default is None))
        return self.rule.pattern(*positional, **keywords)

    def _roots(self, node: Node) -> Iterator[OpNode]:
        if isinstance(node, OpNode):
            yield node
        elif isinstance(node, AnyOf):
            for alternative in node.alternatives:
                yield from self._roots(alternative)
        else:
            raise PassError(f"{self.rule.name}.pattern must return an operation of whet.passes.ops, got {node!r}")

    def call_rewrite(self, rewriter: Any, bindings: Mapping[str, Any]) -> Any:
        """`rewrite` with the bound names that it asks for."""
        positional: list[Any] = []
        keywords: dict[str, Any] = {}
        for parameter in self._rewrite_parameters:
            bound = bindings.get(parameter.name)
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                positional.extend(bound or ())
            elif parameter.kind is inspect.Parameter.KEYWORD_ONLY:
                keywords[parameter.name] = bound
            else:
                positional.append(bound)
        return self.rule.rewrite(rewriter, *positional, **keywords)
