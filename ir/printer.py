"""The text form of a graph. `parser.parse_graph` reads it back, given the constants' tensors."""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

import sympy
import torch

from whet.ir.dimensions import format_dim
from whet.ir.graph import Graph, Location, Operation, Value
from whet.ir.types import DType

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.]+")


def content_hash(tensor: torch.Tensor) -> str:
    """Eight hexadecimal digits of the tensor's dtype, shape and bytes, so that a changed weight shows in the
    text.
    """
    digest = hashlib.sha256(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
    return digest.hexdigest()[:8]


def constant_keys(graph: Graph) -> dict[Value, str]:
    """The unique name of every constant in the weights file: its key, else its value's name."""
    keys: dict[Value, str] = {}
    taken: set[str] = set()
    for value in graph.constants:
        assert value.producer is not None
        key = value.producer.attributes["key"] or value.name
        while key in taken:
            key += "'"
        taken.add(key)
        keys[value] = key
    for index, slot in enumerate(graph.state):
        keys[slot.input] = f"state.{index}.{slot.input.name}"
    return keys


def graph_tensors(graph: Graph) -> dict[str, torch.Tensor]:
    """Every tensor that the text form refers to, by key: constants and initial states."""
    keys = constant_keys(graph)
    tensors = {keys[value]: value.constant for value in graph.constants}
    tensors |= {keys[slot.input]: slot.initial for slot in graph.state}
    return {key: tensor for key, tensor in tensors.items() if tensor is not None}


def print_graph(graph: Graph, locations: bool = True) -> str:
    """The graph as text; without `locations` the source lines are left out (golden files)."""
    keys = constant_keys(graph)
    lines = [_header(graph, keys)]
    lines += [f"  {_operation(operation, keys, locations)}" for operation in graph.operations]
    lines.append(f"  return {', '.join(f'%{value.name}' for value in graph.outputs)}".rstrip())
    lines.append("}")
    for attribute in ("output_names", "input_structure", "output_structure"):
        value = getattr(graph, attribute)
        if value is not None and value != []:
            lines.append(f"{attribute} {json.dumps(value, separators=(',', ':'))}")
    return "\n".join(lines) + "\n"


def _header(graph: Graph, keys: dict[Value, str]) -> str:
    inputs = ", ".join(f"%{value.name}: {value.type}" for value in graph.inputs)
    name = graph.name if _PLAIN_NAME.fullmatch(graph.name) else json.dumps(graph.name)
    text = f"graph @{name}({inputs})"
    if graph.state:
        slots = ", ".join(
            f"%{slot.input.name}: {slot.input.type} = @{json.dumps(keys[slot.input])} "
            f"#{content_hash(slot.initial)} -> %{slot.output.name}"
            for slot in graph.state
        )
        text += f" state({slots})"
    if graph.dimensions:
        text += f" where({', '.join(f'{name}: {item}' for name, item in graph.dimensions.items())})"
    return text + " {"


def _operation(operation: Operation, keys: dict[Value, str], locations: bool) -> str:
    results = ", ".join(f"%{value.name}" for value in operation.results)
    types = ", ".join(str(value.type) for value in operation.results)
    if operation.name == "constant":
        text = f"{results} = constant {_constant(operation, keys)} : {types}"
    else:
        operands = ", ".join("none" if value is None else f"%{value.name}" for value in operation.operands)
        text = f"{results} = {operation.name}({operands}){_attributes(operation)} : {types}"
    return text + (_location(operation.location) if locations else "")


def _constant(operation: Operation, keys: dict[Value, str]) -> str:
    tensor: torch.Tensor = operation.attributes["tensor"]
    if tensor.dim() == 0 and not operation.attributes["key"]:
        return format_attribute(tensor.item())
    return f"@{json.dumps(keys[operation.result])} #{content_hash(tensor)}"


def _attributes(operation: Operation) -> str:
    """In declared order, so that equal operations print equally however they were made."""
    if not operation.attributes:
        return ""
    order = {name: index for index, name in enumerate(operation.definition.signature.attribute_names)}
    items = sorted(operation.attributes.items(), key=lambda item: order.get(item[0], len(order)))
    return " {" + ", ".join(f"{key} = {format_attribute(item)}" for key, item in items) + "}"


def format_attribute(value: Any) -> str:
    """One attribute as text: none, true, 1, 1.0, inf, "text", f32, [..], or a dimension expression in <>."""
    match value:
        case None:
            return "none"
        case bool():
            return "true" if value else "false"
        case DType():
            return value.value
        case int():
            return str(int(value))
        case float():
            # float() because repr of NumPy's float64, which is one, is not a number's.
            return repr(float(value)) if math.isfinite(value) else str(float(value))
        case str():
            return json.dumps(value)
        case sympy.Integer():
            return str(int(value))
        case sympy.Expr():
            return f"<{format_dim(value)}>"
        case tuple() | list():
            return f"[{', '.join(format_attribute(item) for item in value)}]"
    raise TypeError(f"an attribute cannot be {type(value).__name__}: {value!r}")


def _location(location: Location) -> str:
    if location == Location():
        return ""
    return f" loc({json.dumps(location.module)}, {json.dumps(location.file)}, {location.line})"
