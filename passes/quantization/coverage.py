"""Which precision every operation of a graph runs in, and why not in integers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from whet.ir.dimensions import DimRange, dim_symbols, substitute
from whet.ir.graph import Graph, Operation, Value
from whet.ir.types import DType
from whet.passes.quantization.integer_forms import obstacle

_MULTIPLIES: Final = frozenset(
    {"conv", "linear", "matmul", "conv_transpose", "einsum", "attention", "lstm", "gru", "rnn"}
)
_MULTIPLIES_INTEGERS: Final = frozenset(
    {"conv_integer", "linear_integer", "matmul_integer", "lstm_integer", "gru_integer", "rnn_integer"}
)
_CODES: Final = frozenset({DType.U8, DType.I8, DType.I4, DType.I32})
_BETWEEN: Final = frozenset({"quantize", "dequantize", "requantize"})


@dataclass(frozen=True)
class Row:
    """One operation: where it is from, what it computes in, its multiply-adds, and why it is not in integers."""

    operation: str
    module: str
    precision: str
    macs: int
    integer: bool
    reason: str


@dataclass(frozen=True)
class Coverage:
    """The operations of a graph but its constants, in order."""

    rows: tuple[Row, ...]

    @property
    def macs(self) -> int:
        return sum(row.macs for row in self.rows)

    @property
    def integer_share(self) -> float:
        """Of all multiply-adds, those that integer operations do; 0 where there are none."""
        return sum(row.macs for row in self.rows if row.integer) / self.macs if self.macs else 0.0

    def __str__(self) -> str:
        """A table of all rows, and a line with the share."""
        head = ("operation", "precision", "MACs", "module", "why not integer")
        lines = [
            (row.operation, row.precision, f"{row.macs:,}" if row.macs else "", row.module, row.reason)
            for row in self.rows
        ]
        widths = [max(len(line[column]) for line in [head, *lines]) for column in range(len(head))]
        table = [
            "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in [head, *lines]
        ]
        total = f"{self.integer_share:.1%} of {self.macs:,} multiply-adds in integer operations"
        return "\n".join([*(line.rstrip() for line in table), total])


def coverage(graph: Graph, sizes: Mapping[str, int] | None = None) -> Coverage:
    """The table of a graph. `sizes` gives symbolic dimensions a number; else they count with their maximum, or their
    minimum where they have none.
    """
    bindings = {name: _size(extent) for name, extent in graph.dimensions.items()} | dict(sizes or {})
    rows = (_row(operation, graph, bindings) for operation in graph.operations if operation.name != "constant")
    return Coverage(tuple(rows))


def _size(extent: DimRange) -> int:
    return max(extent.minimum, 1) if extent.maximum is None else extent.maximum


def _row(operation: Operation, graph: Graph, bindings: Mapping[str, int]) -> Row:
    integer = operation.name in _MULTIPLIES_INTEGERS or _is_on_codes(operation)
    reason = "" if integer or operation.name in _BETWEEN else _reason(operation, graph)
    macs = _macs(operation, bindings)
    return Row(operation.name, operation.location.module, precision_of(operation), macs, integer, reason)


def _macs(operation: Operation, bindings: Mapping[str, int]) -> int:
    if operation.name not in _MULTIPLIES | _MULTIPLIES_INTEGERS:
        return 0
    flops: Any = operation.definition.cost(operation).flops
    unbound = {item.name: 1 for item in dim_symbols(flops)} | dict(bindings)
    return int(substitute(flops, unbound)) // 2


def _is_on_codes(operation: Operation) -> bool:
    values = [*_present(operation.operands[:1]), *operation.results]
    return operation.name not in _BETWEEN and all(value.type.dtype in _CODES for value in values)


def precision_of(operation: Operation) -> str:
    """Operands to result, each type once: "u8 x i8 -> i32", or the one type there is."""
    operands = list(dict.fromkeys(value.type.dtype.value for value in _present(operation.operands[:2])))
    result = operation.results[0].type.dtype.value
    if operation.name in _BETWEEN:
        return f"{operands[0]} -> {result}"
    return result if operands in ([], [result]) else f"{' x '.join(operands)} -> {result}"


def _present(values: Iterable[Value | None]) -> list[Value]:
    return [value for value in values if value is not None]


def _reason(operation: Operation, graph: Graph) -> str:
    if operation.name in _MULTIPLIES:
        return obstacle(operation, graph.dimensions) or "its operands are real: excluded, or not asked for"
    if not operation.results[0].type.dtype.is_float:
        return "not arithmetic on activations"
    codes = any(
        value.producer is not None and value.producer.name == "dequantize" for value in _present(operation.operands)
    )
    return "defined on real numbers: reads codes dequantized" if codes else "defined on real numbers"
