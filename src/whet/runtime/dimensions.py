"""Symbolic dimensions: integer expressions such as "2*s0 + 1", parsed and evaluated without `eval`.

Grammar (the usual precedence, all operators associate to the left):

    sum     := product (("+" | "-") product)*
    product := unary (("*" | "//" | "%") unary)*
    unary   := "-" unary | integer | symbol | ("max" | "min") "(" sum ("," sum)* ")" | "(" sum ")"

`//` and `%` round towards minus infinity, as in Python.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final

_TOKEN: Final = re.compile(r"\s*(?:(?P<number>[0-9]+)|(?P<name>[A-Za-z_][A-Za-z0-9_]*)|(?P<sign>//|[-+*%(),]))")
_BINARY: Final[Mapping[str, Callable[[int, int], int]]] = MappingProxyType(
    {"+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod}
)
_CALLS: Final[Mapping[str, Callable[..., int]]] = MappingProxyType({"max": max, "min": min})
# An expression comes out of a file: without limits a hostile one could exhaust the stack or the clock.
_LONGEST: Final = 1000
_DEEPEST: Final = 50

Evaluate = Callable[[Mapping[str, int]], int]


@dataclass(frozen=True)
class Expression:
    """A parsed dimension: its text, the symbols in it, and its value under bindings of all of them."""

    text: str
    symbols: frozenset[str]
    _evaluate: Evaluate

    def evaluate(self, bindings: Mapping[str, int]) -> int:
        """The value. Raises KeyError for an unbound symbol, ZeroDivisionError for a division by zero."""
        return self._evaluate(bindings)

    def solve(self, value: int, bindings: Mapping[str, int]) -> tuple[str, int] | None:
        """The one unbound symbol and what it must be for the expression to be `value`.

        Solves expressions that are linear in that symbol ("2*s0 + 1"); None where there is no such solution.
        """
        unknown = sorted(self.symbols - set(bindings))
        if len(unknown) != 1:
            return None
        (symbol,) = unknown
        try:
            return self._solve_linear(symbol, value, bindings)
        except ZeroDivisionError:
            return None

    def _solve_linear(self, symbol: str, value: int, bindings: Mapping[str, int]) -> tuple[str, int] | None:
        at_zero = self.evaluate({**bindings, symbol: 0})
        slope = self.evaluate({**bindings, symbol: 1}) - at_zero
        if slope == 0 or (value - at_zero) % slope:
            return None
        solution = (value - at_zero) // slope
        if self.evaluate({**bindings, symbol: solution}) != value:
            return None
        return symbol, solution


@lru_cache(maxsize=1024)
def parse(text: str) -> Expression:
    """Parse one dimension. Raises ValueError that shows the text and the place of the mistake."""
    if len(text) > _LONGEST:
        raise ValueError(f"a dimension of {len(text)} characters is too long: {text[:40]!r}...")
    parser = _Parser(text, _tokens(text))
    evaluate = parser.sum(0)
    if parser.peek():
        raise parser.error(f"unexpected {parser.peek()!r}")
    return Expression(text, frozenset(parser.symbols), evaluate)


def _tokens(text: str) -> list[tuple[str, str, int]]:
    """(kind, token, position) of every token."""
    tokens: list[tuple[str, str, int]] = []
    position = 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None or match.lastgroup is None:
            raise ValueError(f"not a dimension: {text!r} at column {position + 1}")
        tokens.append((match.lastgroup, match.group(match.lastgroup), match.start(match.lastgroup)))
        position = match.end()
    return tokens


class _Parser:
    """Recursive descent over the tokens; every rule returns an evaluator."""

    def __init__(self, text: str, tokens: list[tuple[str, str, int]]) -> None:
        self.text = text
        self.tokens = tokens
        self.next = 0
        self.symbols: set[str] = set()

    def peek(self) -> str:
        return self.tokens[self.next][1] if self.next < len(self.tokens) else ""

    def take(self, expected: str) -> None:
        if self.peek() != expected:
            raise self.error(f"expected {expected!r}")
        self.next += 1

    def error(self, what: str) -> ValueError:
        column = self.tokens[self.next][2] if self.next < len(self.tokens) else len(self.text)
        return ValueError(f"not a dimension: {self.text!r}: {what} at column {column + 1}")

    def sum(self, depth: int) -> Evaluate:
        return self._chain(("+", "-"), self.product, depth)

    def product(self, depth: int) -> Evaluate:
        return self._chain(("*", "//", "%"), self.unary, depth)

    def _chain(self, signs: tuple[str, ...], operand: Callable[[int], Evaluate], depth: int) -> Evaluate:
        if depth > _DEEPEST:
            raise self.error("nested too deeply")
        first = operand(depth)
        rest: list[tuple[Callable[[int, int], int], Evaluate]] = []
        while self.peek() in signs:
            sign = self.peek()
            self.next += 1
            rest.append((_BINARY[sign], operand(depth)))
        if not rest:
            return first

        def evaluate(bindings: Mapping[str, int]) -> int:
            value = first(bindings)
            for combine, term in rest:
                value = combine(value, term(bindings))
            return value

        return evaluate

    def unary(self, depth: int) -> Evaluate:
        if depth > _DEEPEST:
            raise self.error("nested too deeply")
        if self.next == len(self.tokens):
            raise self.error("unexpected end")
        kind, token, _ = self.tokens[self.next]
        if token == "-":
            self.next += 1
            inner = self.unary(depth + 1)
            return lambda bindings: -inner(bindings)
        if token == "(":
            self.next += 1
            inner = self.sum(depth + 1)
            self.take(")")
            return inner
        if kind == "number":
            self.next += 1
            number = int(token)
            return lambda _: number
        if kind == "name":
            self.next += 1
            return self.call(token, depth) if self.peek() == "(" else self.symbol(token)
        raise self.error(f"unexpected {token!r}")

    def symbol(self, name: str) -> Evaluate:
        self.symbols.add(name)
        return lambda bindings: bindings[name]

    def call(self, name: str, depth: int) -> Evaluate:
        function = _CALLS.get(name)
        if function is None:
            raise self.error(f"unknown function {name!r}")
        self.take("(")
        terms = [self.sum(depth + 1)]
        while self.peek() == ",":
            self.next += 1
            terms.append(self.sum(depth + 1))
        self.take(")")
        return lambda bindings: function([term(bindings) for term in terms])
