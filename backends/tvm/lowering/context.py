"""What a lowering works with: tensors of the region, packed constants, dimensions as TVM expressions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sympy
import torch
import tvm
from torch.utils._sympy.functions import FloorDiv, Max, Min, Mod, PythonMod
from tvm import te, tirx

from whet.backends.tvm.dtypes import TVM_DTYPES
from whet.backends.tvm.lowering.half import binding, widened
from whet.errors import BackendError
from whet.ir.dimensions import Dim
from whet.ir.graph import Operation, Value
from whet.ir.types import DType, TensorType


@dataclass(frozen=True)
class Packing:
    """A constant as a kernel wants it: made by `pack` at compile time, once for every (value, recipe)."""

    value: Value
    recipe: str
    pack: Callable[[torch.Tensor], torch.Tensor]

    @property
    def identity(self) -> tuple[Value, str]:
        return self.value, self.recipe

    @cached_property
    def tensor(self) -> torch.Tensor:
        """What the kernel reads; packed once, for its type and for the bundle."""
        assert self.value.constant is not None
        return self.pack(self.value.constant).contiguous()


class LoweringContext:
    """One region being lowered. Placeholders appear in `arguments` in the order in which they are first asked for.

    `target` is a Target, or one that comes with the decisions for this kernel (`kernels.decisions.Decided`).
    """

    def __init__(self, target: Any, symbols: dict[str, tirx.Var]) -> None:
        self.target = target
        self.symbols = symbols
        self.tensors: dict[Value, te.Tensor] = {}
        self.arguments: list[tuple[te.Tensor, Value | Packing]] = []
        self.packed_tensors: dict[tuple[Value, str], te.Tensor] = {}
        self.operation: Operation | None = None

    def tensor(self, value: Value) -> te.Tensor:
        """The tensor of a value: computed in this region, or a new argument of it."""
        if value not in self.tensors:
            placeholder = self._placeholder(value.type, f"p{len(self.arguments)}")
            self.tensors[value] = placeholder
            self.arguments.append((placeholder, value))
        return self.tensors[value]

    def read(self, value: Value, index: Sequence[Any]) -> Any:
        """One element; a constant without dimensions is the number itself."""
        number = self.number(value)
        if number is not None:
            return tirx.const(number, TVM_DTYPES[value.type.dtype])
        return self.tensor(value)(*index)

    def shared(self, values: Sequence[Value], index: Sequence[Sequence[Any]], body: Callable[..., Any]) -> Any:
        """body(elements of `values` at `index`, 16-bit floats as f32), with what this region computes written once.

        What is computed here is inlined later. `body` may use an element more than once, and what it would repeat may
        bind names, which TVM's vectorizer refuses to see twice.
        """
        elements = [widened(self.read(value, place)) for value, place in zip(values, index, strict=True)]
        bindings = [
            binding(f"x{slot}", element) if self.is_computed(value) else (None, element, element)
            for slot, (value, element) in enumerate(zip(values, elements, strict=True))
        ]
        result = body(*(held for _, _, held in bindings))
        for variable, bound, _ in reversed(bindings):
            result = result if variable is None else tirx.Let(variable, bound, result)
        return result

    def is_computed(self, value: Value) -> bool:
        """Whether this region computes the value; else it is an argument."""
        return value in self.tensors and not isinstance(self.tensors[value].op, te.PlaceholderOp)

    def number(self, value: Value) -> float | int | None:
        """The number that a constant with one element and no dimensions holds."""
        constant = value.constant
        if constant is None or constant.dim() > 0:
            return None
        return constant.item()

    def packed(self, value: Value, recipe: str, pack: Callable[[torch.Tensor], torch.Tensor]) -> te.Tensor:
        """A constant packed at compile time. `recipe` names what `pack` does: equal recipes share one tensor."""
        packing = Packing(value, recipe, pack)
        if packing.identity not in self.packed_tensors:
            packed_type = TensorType.of(packing.tensor)
            placeholder = self._placeholder(packed_type, f"w{len(self.arguments)}")
            self.packed_tensors[packing.identity] = placeholder
            self.arguments.append((placeholder, packing))
        return self.packed_tensors[packing.identity]

    def _placeholder(self, type: TensorType, name: str) -> te.Tensor:
        return te.placeholder(self.dims(type.shape), TVM_DTYPES[type.dtype], name=name)

    def dims(self, shape: Sequence[Dim]) -> list[Any]:
        """A shape as ints and TVM expressions."""
        return [self.dim(dim) for dim in shape]

    def dim(self, dim: Dim) -> Any:
        """A dimension as an int or a TVM int64 expression over the region's symbols."""
        return dim if isinstance(dim, int) else lower_dim(dim, self.symbols)

    def unsupported(self, reason: str) -> BackendError:
        """An error that names the operation and its source line."""
        operation = self.operation
        where = "" if operation is None else f"{operation.name} at {operation.location}: "
        return BackendError(f"{where}{reason} (target {self.target.name})")


def lower_dim(dim: Dim, symbols: dict[str, tirx.Var]) -> Any:
    """A dimension expression as a TVM int64 expression."""
    expression = sympy.sympify(dim)
    if expression.is_Integer:
        return tirx.IntImm("int64", int(expression))
    if expression.is_Symbol:
        return symbols[expression.name]
    arguments = [lower_dim(item, symbols) for item in expression.args]
    for kind, combine in _COMBINE:
        if isinstance(expression, kind):
            result = arguments[0]
            for item in arguments[1:]:
                result = combine(result, item)
            return result
    if expression.is_Pow and expression.exp.is_Integer and expression.exp > 0:
        result = arguments[0]
        for _ in range(int(expression.exp) - 1):
            result = result * arguments[0]
        return result
    raise BackendError(f"the dimension {dim} cannot be lowered ({type(expression).__name__})")


_COMBINE: tuple[tuple[tuple[type, ...], Callable[[Any, Any], Any]], ...] = (
    ((sympy.Add,), lambda left, right: left + right),
    ((sympy.Mul,), lambda left, right: left * right),
    ((FloorDiv,), tvm.tirx.floordiv),
    ((Mod, PythonMod, sympy.Mod), tvm.tirx.floormod),
    ((Max, sympy.Max), tvm.tirx.max),
    ((Min, sympy.Min), tvm.tirx.min),
)


def tvm_dtype(dtype: DType) -> str:
    """The element type in TVM's words."""
    return TVM_DTYPES[dtype]
