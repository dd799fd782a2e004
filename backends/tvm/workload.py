"""What a kernel computes, in text: equal for regions that one tuning record serves, whatever their constants hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from whet.backends.tvm.lowering.stored import stored_form
from whet.backends.tvm.regions import Region
from whet.ir.graph import Operation, Value
from whet.ir.printer import format_attribute

# Numbers that a kernel adds or multiplies with: they change what it gives, not how long it takes.
_VALUES: Final = frozenset({"zero_point", "x_zero_point", "y_zero_point", "tensor", "key"})


def workload_text(region: Region) -> str:
    """One line an operation: types and the attributes that shape its loops; values numbered in order of first use."""
    names: dict[Value, str] = {}
    return "\n".join(_line(operation, names) for operation in region.operations)


def _line(operation: Operation, names: dict[Value, str]) -> str:
    operands = ", ".join(_operand(value, names) for value in operation.operands)
    results = ", ".join(_operand(value, names) for value in operation.results)
    attributes = ", ".join(_attributes(operation))
    return f"{results} = {operation.name}({operands})" + (f" {{{attributes}}}" if attributes else "")


def _operand(value: Value | None, names: dict[Value, str]) -> str:
    if value is None:
        return "none"
    stored = stored_form(value)
    form = "" if stored is None else f" as {stored.name} of {stored.operand(0).type}"
    return f"{names.setdefault(value, f'%{len(names)}')}: {value.type}{form}"


def _attributes(operation: Operation) -> Iterator[str]:
    for key, value in operation.attributes.items():
        if key not in _VALUES and not _is_real(value):
            yield f"{key}={format_attribute(value)}"


def _is_real(value: Any) -> bool:
    """Whether this is a float, or a tuple of them."""
    if isinstance(value, tuple):
        return bool(value) and all(_is_real(item) for item in value)
    return isinstance(value, float)
