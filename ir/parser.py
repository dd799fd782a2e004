"""Reading the text form of a graph back: the exact inverse of `printer.print_graph`."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn, TypeVar

import torch

from whet.errors import ParseError
from whet.ir.definition import InferError, OpDefinition
from whet.ir.dimensions import Dim, DimRange, parse_dim
from whet.ir.graph import Graph, Location, Operation, StateSlot, Value
from whet.ir.ops import CATALOGUE
from whet.ir.printer import content_hash
from whet.ir.types import DType, TensorType

_SPACE: Final = re.compile(r"\s*")
_VALUE: Final = re.compile(r"%([A-Za-z0-9_.]+)")
_WORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_.]+")
_STRING: Final = re.compile(r'"(?:[^"\\\n]|\\.)*"')
_NUMBER: Final = re.compile(r"-?[0-9]+(\.[0-9]+)?(e[+-]?[0-9]+)?(?![A-Za-z0-9_.])")
_INTEGER: Final = re.compile(r"-?[0-9]+")
_HASH: Final = re.compile(r"#([0-9a-f]{8})")
# "-inf" is the only word with a sign.
_WORDS: Final[Mapping[str, Any]] = {
    "none": None,
    "true": True,
    "false": False,
    "inf": float("inf"),
    "nan": float("nan"),
    **{dtype.value: dtype for dtype in DType},
}
_TRAILERS: Final = ("output_names", "input_structure", "output_structure")
# Attributes are shallow; without a limit a hostile text would exhaust the stack.
_DEEPEST: Final = 20

Item = TypeVar("Item")


def parse_graph(text: str, tensors: Mapping[str, torch.Tensor] | None = None) -> Graph:
    """The graph that `text` writes; `print_graph(parse_graph(text, tensors)) == text`.

    Args:
        text: what `print_graph` gave (line breaks and spaces between the parts may differ).
        tensors: constants and initial states by key, as `printer.graph_tensors` gives them. They are shared,
        not copied.

    Raises ParseError, with line and column, for malformed text, an unknown operation, types that `infer` does
    not give, and a tensor that is missing or is not the one of the text (by its content hash).
    """
    return _Parser(text, tensors or {}).graph()


class _Parser:
    """Recursive descent over the characters; every method reads one rule and leaves `position` behind it."""

    def __init__(self, text: str, tensors: Mapping[str, torch.Tensor]) -> None:
        self.text = text
        self.tensors = tensors
        self.position = 0
        self.values: dict[str, Value] = {}

    def fail(self, message: str, position: int | None = None) -> NoReturn:
        place = self.position if position is None else position
        line = self.text.count("\n", 0, place) + 1
        column = place - (self.text.rfind("\n", 0, place) + 1) + 1
        raise ParseError(f"line {line}, column {column}: {message}")

    def skip(self) -> int:
        """Pass over white space; the position of what follows."""
        match = _SPACE.match(self.text, self.position)
        assert match is not None  # the pattern matches the empty string
        self.position = match.end()
        return self.position

    def sees(self, literal: str) -> bool:
        return self.text.startswith(literal, self.skip())

    def accept(self, literal: str) -> bool:
        if not self.sees(literal):
            return False
        self.position += len(literal)
        return True

    def expect(self, literal: str) -> None:
        if not self.accept(literal):
            found = self.text[self.position : self.position + 20].split("\n")[0]
            self.fail(f"expected {literal!r}, found {found!r}")

    def match(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        found = pattern.match(self.text, self.skip())
        if found is None:
            self.fail(f"expected {what}, found {self.text[self.position : self.position + 20]!r}")
        self.position = found.end()
        return found

    def listed(self, item: Callable[[], Item], end: str) -> list[Item]:
        """item ("," item)* end; the list may be empty."""
        items: list[Item] = []
        if self.accept(end):
            return items
        items.append(item())
        while not self.accept(end):
            self.expect(",")
            items.append(item())
        return items

    # --- the graph

    def graph(self) -> Graph:
        graph = Graph()
        self.expect("graph")
        self.expect("@")
        graph.name = self.string() if self.sees('"') else self.match(_PLAIN_NAME, "the graph's name").group()
        self.expect("(")
        graph.inputs = self.listed(self.argument, ")")
        slots = self.listed(self.state_slot, ")") if self.accept("state(") else []
        if self.accept("where("):
            graph.dimensions = dict(self.listed(self.dimension, ")"))
        self.expect("{")
        while not self.accept("return"):
            graph.operations.append(self.operation())
        graph.outputs = self.listed(self.use, "}")
        graph.state = [
            StateSlot(value, self.resolve(output, place), initial) for value, initial, output, place in slots
        ]
        self.trailers(graph)
        return graph

    def trailers(self, graph: Graph) -> None:
        """Lines `output_names [...]`, `input_structure {...}`, `output_structure {...}` after the closing
        brace.
        """
        while self.skip() < len(self.text):
            name = self.match(_WORD, f"one of {', '.join(_TRAILERS)}").group()
            if name not in _TRAILERS:
                self.fail(f"expected one of {', '.join(_TRAILERS)}, found {name!r}")
            start = self.skip()
            try:
                content, self.position = json.JSONDecoder().raw_decode(self.text, start)
            except (ValueError, RecursionError) as error:
                self.fail(f"{name} is not JSON: {error}", start)
            if name == "output_names" and not _is_names(content):
                self.fail("output_names must be a list of strings", start)
            setattr(graph, name, content)

    def argument(self) -> Value:
        name, place = self.new_name()
        self.expect(":")
        return self.define(name, self.type(), place)

    def state_slot(self) -> tuple[Value, torch.Tensor, str, int]:
        value = self.argument()
        self.expect("=")
        initial = self.tensor(value.type)[1]
        self.expect("->")
        place = self.skip()
        return value, initial, self.match(_VALUE, "a value").group(1), place

    def dimension(self) -> tuple[str, DimRange]:
        name = self.match(_WORD, "a symbol").group()
        self.expect(":")
        minimum = self.integer()
        self.expect("..")
        maximum = None if self.accept("inf") else self.integer()
        self.expect("step")
        place, step = self.skip(), self.integer()
        if step < 1:
            self.fail(f"the step of {name} must be positive", place)
        return name, DimRange(minimum, maximum, step)

    # --- operations

    def operation(self) -> Operation:
        names = [self.new_name()]
        while self.accept(","):
            names.append(self.new_name())
        self.expect("=")
        place = self.skip()
        name = self.match(_WORD, "an operation").group()
        definition = CATALOGUE.get(name)
        if definition is None:
            self.fail(f"unknown operation {name!r}", place)
        if name == "constant":
            return self.constant(definition, names)
        self.expect("(")
        operands = self.listed(self.operand, ")")
        attributes = self.attributes() if self.accept("{") else {}
        types = self.types()
        try:
            attributes = definition.signature.with_defaults(attributes)
            inferred = definition.result_types([None if v is None else v.type for v in operands], attributes)
        except InferError as error:
            self.fail(f"{name}: {error}", place)
        self.check_types(name, types, inferred, place)
        return self.finish(Operation(definition, operands, attributes, self.location()), names, types, place)

    def constant(self, definition: OpDefinition, names: list[tuple[str, int]]) -> Operation:
        """`constant 1.0 : f32[]`, or `constant @"key" #hash : type`."""
        place = self.skip()
        reference = self.constant_reference() if self.sees("@") else None
        number = None if reference is not None else self.attribute()
        types = self.types()
        if len(types) != 1:
            self.fail("a constant has one result", place)
        key = "" if reference is None else reference[0]
        tensor = self.scalar(number, types[0], place) if reference is None else self.lookup(*reference, types[0], place)
        dtype = types[0].dtype if types[0].dtype is not DType.of(tensor.dtype) else None
        attributes = {"tensor": tensor, "key": key, "dtype": dtype}
        return self.finish(Operation(definition, (), attributes, self.location()), names, types, place)

    def scalar(self, number: Any, type: TensorType, place: int) -> torch.Tensor:
        wanted = float if type.dtype.is_float else bool if type.dtype is DType.BOOL else int
        if type.shape or not isinstance(number, wanted) or (wanted is int and isinstance(number, bool)):
            self.fail(f"{number!r} is no constant of type {type}", place)
        try:
            return torch.tensor(number, dtype=type.dtype.torch)
        except (RuntimeError, OverflowError) as error:
            self.fail(f"{number!r} is no constant of type {type}: {error}", place)

    def finish(
        self, operation: Operation, names: list[tuple[str, int]], types: list[TensorType], place: int
    ) -> Operation:
        if len(names) != len(types):
            self.fail(f"{operation.name} defines {len(names)} value(s) of {len(types)} type(s)", place)
        operation.results = [
            self.define(name, type, position, operation) for (name, position), type in zip(names, types, strict=True)
        ]
        return operation

    def types(self) -> list[TensorType]:
        self.expect(":")
        types = [self.type()]
        while self.accept(","):
            types.append(self.type())
        return types

    def check_types(self, name: str, written: list[TensorType], inferred: tuple[TensorType, ...], place: int) -> None:
        if len(written) != len(inferred) or not all(map(TensorType.same_as, written, inferred)):
            found, wanted = (", ".join(map(str, types)) for types in (written, inferred))
            self.fail(f"{name} gives {wanted}, not {found}", place)

    def operand(self) -> Value | None:
        return None if self.accept("none") else self.use()

    def attributes(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for place, name, value in self.listed(self.named_attribute, "}"):
            if name in found:
                self.fail(f"attribute {name!r} is given twice", place)
            found[name] = value
        return found

    def named_attribute(self) -> tuple[int, str, Any]:
        place = self.skip()
        name = self.match(_WORD, "an attribute").group()
        self.expect("=")
        return place, name, self.attribute()

    def location(self) -> Location:
        if not self.accept("loc("):
            return Location()
        module = self.string()
        self.expect(",")
        file = self.string()
        self.expect(",")
        line = self.integer()
        self.expect(")")
        return Location(module, file, line)

    # --- names and values

    def new_name(self) -> tuple[str, int]:
        place = self.skip()
        return self.match(_VALUE, "a value").group(1), place

    def define(self, name: str, type: TensorType, place: int, producer: Operation | None = None) -> Value:
        if name in self.values:
            self.fail(f"%{name} is defined twice", place)
        self.values[name] = Value(name, type, producer)
        return self.values[name]

    def use(self) -> Value:
        place = self.skip()
        return self.resolve(self.match(_VALUE, "a value").group(1), place)

    def resolve(self, name: str, place: int) -> Value:
        value = self.values.get(name)
        if value is None:
            self.fail(f"%{name} is not defined before its use", place)
        return value

    # --- tensors, types, dimensions

    def tensor(self, type: TensorType) -> tuple[str, torch.Tensor]:
        place = self.skip()
        key, digest = self.constant_reference()
        return key, self.lookup(key, digest, type, place)

    def constant_reference(self) -> tuple[str, str]:
        self.expect("@")
        return self.string(), self.match(_HASH, "a content hash such as #0123abcd").group(1)

    def lookup(self, key: str, digest: str, type: TensorType, place: int) -> torch.Tensor:
        tensor = self.tensors.get(key)
        if tensor is None:
            self.fail(f"no tensor is given for {key!r}", place)
        if tuple(tensor.shape) != type.shape or tensor.dtype is not type.dtype.torch:
            self.fail(f"tensor {key!r} is {tensor.dtype} {list(tensor.shape)}, the text says {type}", place)
        if content_hash(tensor) != digest:
            self.fail(f"tensor {key!r} has the content hash {content_hash(tensor)}, the text says {digest}", place)
        return tensor

    def type(self) -> TensorType:
        place = self.skip()
        name = self.match(_WORD, "a type").group()
        dtype = _WORDS.get(name)
        if not isinstance(dtype, DType):
            self.fail(f"unknown element type {name!r}; known are {', '.join(item.value for item in DType)}", place)
        self.expect("[")
        return TensorType(tuple(self.listed(lambda: self.dim(",]"), "]")), dtype)

    def dim(self, ends: str) -> Dim:
        """A dimension up to one of `ends` outside of parentheses, by the grammar of `parse_dim`."""
        start = self.skip()
        depth = 0
        for index in range(start, len(self.text)):
            character = self.text[index]
            if depth == 0 and character in ends:
                self.position = index
                break
            depth += (character == "(") - (character == ")")
        else:
            self.fail("a dimension does not end", start)
        try:
            return parse_dim(self.text[start : self.position])
        except ValueError as error:
            self.fail(str(error), start)

    # --- attributes

    def attribute(self, depth: int = 0) -> Any:
        """One attribute, as `printer.format_attribute` writes it. Lists become tuples."""
        place = self.skip()
        if depth > _DEEPEST:
            self.fail("attributes are nested too deeply")
        if self.accept("["):
            return tuple(self.listed(lambda: self.attribute(depth + 1), "]"))
        if self.accept("<"):
            dim = self.dim(">")
            self.expect(">")
            return dim
        if self.sees('"'):
            return self.string()
        if self.accept("-inf"):
            return -float("inf")
        number = _NUMBER.match(self.text, place)
        if number is not None:
            self.position = number.end()
            return float(number.group()) if number.group(1) or number.group(2) else int(number.group())
        word = self.match(_WORD, "an attribute").group()
        if word not in _WORDS:
            self.fail(f"unknown attribute value {word!r}", place)
        return _WORDS[word]

    def string(self) -> str:
        place = self.skip()
        quoted = self.match(_STRING, "a string").group()
        try:
            return str(json.loads(quoted))
        except ValueError as error:
            self.fail(f"not a string: {error}", place)

    def integer(self) -> int:
        return int(self.match(_INTEGER, "an integer").group())


def _is_names(content: Any) -> bool:
    return isinstance(content, list) and all(isinstance(item, str) for item in content)
