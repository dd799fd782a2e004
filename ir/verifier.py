"""The rules every graph keeps; run after the import and after each pass."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any, Final, NoReturn

import sympy
import torch

from whet.errors import VerifyError
from whet.ir.definition import InferError
from whet.ir.dimensions import Dim, bound_symbols, dim_symbols
from whet.ir.graph import Graph, Operation, Value
from whet.ir.ops import CATALOGUE
from whet.ir.types import DType, TensorType

_NAME: Final = re.compile(r"[A-Za-z0-9_.]+")
_SYMBOL: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def verify(graph: Graph) -> None:
    """Raise VerifyError, naming the operation, its location and the broken rule, unless the graph is well
    formed.

    The rules: every value has a unique name and one definition, before its uses; use lists hold exactly the
    uses; operations are the catalogue's, with all their attributes, and have the types that `infer` gives;
    constants and initial states have the types of their tensors; outputs are defined; every dimension symbol
    follows from the inputs; `output_names`, where given, has a name an output.
    """
    _verify_names(graph)
    defined = set(graph.arguments)
    for operation in graph.operations:
        _verify_operands(operation, defined)
        _verify_definition(operation)
        defined.update(operation.results)
    _verify_returns(graph, defined)
    _verify_uses(graph)
    _verify_state(graph)
    _verify_symbols(graph)


def _fail(graph_part: Operation | str, rule: str) -> NoReturn:
    if isinstance(graph_part, str):
        raise VerifyError(f"{graph_part}: {rule}")
    raise VerifyError(f"{graph_part!r} at {graph_part.location}: {rule}")


def _verify_names(graph: Graph) -> None:
    seen: dict[str, Value] = {}
    for value in graph.values():
        part = value.producer or f"argument {value!r}"
        if not _NAME.fullmatch(value.name):
            _fail(part, f"name {value.name!r} may have only letters, digits, '_' and '.'")
        other = seen.setdefault(value.name, value)
        if other is not value:
            _fail(part, f"name %{value.name} belongs to two values")
    if len(seen) != sum(1 for _ in graph.values()):
        twice = [name for name, count in Counter(value.name for value in graph.values()).items() if count > 1]
        _fail(f"graph @{graph.name}", f"value(s) {twice} are defined twice")
    for value in graph.arguments:
        if value.producer is not None:
            _fail(f"argument {value!r}", f"is also the result of {value.producer!r}")
    for name in graph.dimensions:
        if not _SYMBOL.fullmatch(name):
            _fail(f"dimension {name!r}", "is no identifier")


def _verify_operands(operation: Operation, defined: set[Value]) -> None:
    for index, operand in enumerate(operation.operands):
        if operand is not None and operand not in defined:
            _fail(operation, f"operand {index}, %{operand.name}, is not defined before its use")


def _verify_definition(operation: Operation) -> None:
    if CATALOGUE.get(operation.name) is not operation.definition:
        _fail(operation, f"{operation.name!r} is not an operation of the catalogue")
    for value in operation.results:
        if value.producer is not operation:
            _fail(operation, f"result %{value.name} names another producer, {value.producer!r}")
    declared = operation.definition.signature.attribute_names
    if set(declared) != set(operation.attributes):
        _fail(operation, f"attributes are {sorted(operation.attributes)}, declared are {sorted(declared)}")
    operands = [None if value is None else value.type for value in operation.operands]
    try:
        inferred = operation.definition.result_types(operands, operation.attributes)
    except InferError as error:
        _fail(operation, str(error))
    if len(inferred) != len(operation.results):
        _fail(operation, f"has {len(operation.results)} result(s), its definition gives {len(inferred)}")
    constant = operation.results[0].constant
    if constant is not None and inferred[0].dtype is DType.I4 and not _within(constant, DType.I4):
        _fail(operation, f"its tensor has values outside of i4, {DType.I4.integer_range}")
    for value, expected in zip(operation.results, inferred, strict=True):
        if not value.type.same_as(expected):
            _fail(operation, f"result %{value.name} has type {value.type}, its definition gives {expected}")


def _within(tensor: torch.Tensor, dtype: DType) -> bool:
    low, high = dtype.integer_range
    return tensor.numel() == 0 or bool(tensor.min() >= low and tensor.max() <= high)


def _verify_returns(graph: Graph, defined: set[Value]) -> None:
    for index, value in enumerate(graph.outputs):
        if value not in defined:
            _fail(f"output {index}", f"%{value.name} is not defined")
    for slot in graph.state:
        if slot.output not in defined:
            _fail(f"state %{slot.input.name}", f"its output %{slot.output.name} is not defined")
    if graph.output_names and len(graph.output_names) != len(graph.outputs):
        _fail(
            f"graph @{graph.name}",
            f"{len(graph.output_names)} output name(s) for {len(graph.outputs)} output(s)",
        )


def _verify_uses(graph: Graph) -> None:
    """Operations have no equality of their own, so counting them counts identities."""
    actual: dict[Value, Counter[tuple[Operation, int]]] = {value: Counter() for value in graph.values()}
    for operation in graph.operations:
        for index, operand in enumerate(operation.operands):
            if operand is not None:
                actual[operand][operation, index] += 1
    for value, uses in actual.items():
        if Counter(value.uses) == uses:
            continue
        part = value.producer or f"argument {value!r}"
        wrong = [f"operand {index} of {user!r}" for user, index in (Counter(value.uses) - uses)]
        missing = [f"operand {index} of {user!r}" for user, index in (uses - Counter(value.uses))]
        _fail(part, f"the use list of %{value.name} has {wrong} too much and lacks {missing}")


def _verify_state(graph: Graph) -> None:
    for slot in graph.state:
        part = f"state %{slot.input.name}"
        if not _holds(slot.input.type, slot.initial):
            _fail(
                part,
                f"type {slot.input.type} is not that of its initial tensor, {TensorType.of(slot.initial)}",
            )
        if not slot.output.type.same_as(slot.input.type):
            _fail(part, f"output %{slot.output.name} has type {slot.output.type}, not {slot.input.type}")


def _holds(type: TensorType, tensor: torch.Tensor) -> bool:
    return type.shape == tuple(tensor.shape) and type.dtype.torch is tensor.dtype


def _verify_symbols(graph: Graph) -> None:
    bound = bound_symbols(dim for value in graph.inputs for dim in value.type.shape)
    for value in graph.values():
        part = value.producer or f"argument {value!r}"
        _verify_bound(part, value.type.shape, bound, f"the type {value.type} of %{value.name}")
    for operation in graph.operations:
        for name, attribute in operation.attributes.items():
            _verify_bound(operation, _expressions(attribute), bound, f"attribute {name!r}")


def _expressions(attribute: Any) -> Iterable[Dim]:
    if isinstance(attribute, sympy.Expr):
        yield attribute
    elif isinstance(attribute, tuple | list):
        for item in attribute:
            yield from _expressions(item)


def _verify_bound(part: Operation | str, dims: Iterable[Dim], bound: set[str], where: str) -> None:
    free = {symbol.name for dim in dims for symbol in dim_symbols(dim)} - bound
    if free:
        _fail(part, f"{where} has symbol(s) {sorted(free)} that no input binds")
