"""Whet's intermediate representation: types, operations, graphs, and what reads and checks them."""

if not __name__.startswith("whet."):
    raise ImportError(
        f"import this package as whet.ir, not as {__name__!r}: a second copy of every class would be made"
    )

from whet.ir import ops
from whet.ir.builder import Builder
from whet.ir.definition import Cost, OpDefinition
from whet.ir.dimensions import Dim, DimRange
from whet.ir.graph import Graph, Location, Operation, StateSlot, Value
from whet.ir.interpreter import Interpreter
from whet.ir.parser import parse_graph
from whet.ir.printer import print_graph
from whet.ir.types import DType, TensorType
from whet.ir.verifier import verify

__all__ = [
    "Builder",
    "Cost",
    "DType",
    "Dim",
    "DimRange",
    "Graph",
    "Interpreter",
    "Location",
    "OpDefinition",
    "Operation",
    "StateSlot",
    "TensorType",
    "Value",
    "ops",
    "parse_graph",
    "print_graph",
    "verify",
]
