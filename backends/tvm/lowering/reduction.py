"""Reductions over dimensions, arg-reductions and scans."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from tvm import te, tirx

from whet.backends.tvm.kernels.math import expression_dtype
from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.backends.tvm.lowering.elementwise import select, truth
from whet.backends.tvm.lowering.half import narrowed, widened
from whet.ir.dimensions import Dim, product
from whet.ir.graph import Operation
from whet.ir.types import DType

_HALF = (DType.F16, DType.BF16)

_LONG_SUM = 8192
"""Terms from which a sum is taken in two stages."""


def accumulator_dtype(dtype: DType) -> str:
    """16-bit floats are summed in float32 (numerics contract)."""
    return "float32" if dtype in _HALF else tvm_dtype(dtype)


def reduce_over(
    c: LoweringContext,
    source_shape: Sequence[Dim],
    dims: Sequence[int],
    keepdims: bool,
    element: Callable[..., Any],
    combine: Callable[..., Any],
    name: str,
) -> te.Tensor:
    """combine(element(*index)) over `dims`: one stage with the reduced shape, or two where a sum is long."""
    inner = _inner_dims(source_shape, dims) if combine is te.sum else []
    if not inner:
        return _reduce(c, source_shape, dims, keepdims, element, combine, name)
    partial = _reduce(c, source_shape, inner, True, element, combine, f"{name}_partial")
    shape = [1 if dim in inner else size for dim, size in enumerate(source_shape)]

    def sums(*index: Any) -> Any:
        return partial(*(0 if dim in inner else i for dim, i in enumerate(index)))

    return _reduce(c, shape, dims, keepdims, sums, combine, name)


def _inner_dims(shape: Sequence[Dim], dims: Sequence[int]) -> list[int]:
    """The trailing dimensions to sum first, so that no chain of additions is long: rounding errors grow with it.

    Empty where a sum is short, of one dimension, or of unknown length.
    """
    sizes = [shape[dim] for dim in sorted(dims)]
    known = [size for size in sizes if isinstance(size, int)]
    if len(sizes) < 2 or len(known) < len(sizes) or math.prod(known) < _LONG_SUM:
        return []
    split = min(range(1, len(known)), key=lambda at: max(math.prod(known[:at]), math.prod(known[at:])))
    return sorted(dims)[split:]


def _reduce(
    c: LoweringContext,
    source_shape: Sequence[Dim],
    dims: Sequence[int],
    keepdims: bool,
    element: Callable[..., Any],
    combine: Callable[..., Any],
    name: str,
) -> te.Tensor:
    axes = {dim: te.reduce_axis((0, c.dim(source_shape[dim])), name=f"r{dim}") for dim in sorted(dims)}
    kept = [dim for dim in range(len(source_shape)) if dim not in axes]
    shape = (
        [1 if dim in axes else source_shape[dim] for dim in range(len(source_shape))]
        if keepdims
        else [source_shape[dim] for dim in kept]
    )

    def body(*index: Any) -> Any:
        outer = dict(zip(range(len(source_shape)) if keepdims else kept, index, strict=True))
        full = [axes[dim].var if dim in axes else outer[dim] for dim in range(len(source_shape))]
        return combine(element(*full), axis=list(axes.values()))

    return te.compute(c.dims(shape), body, name=name)


def _reduction(
    combine: Callable[..., Any], finish: Callable[..., Any] | None = None, empty: int = 0
) -> Callable[..., te.Tensor]:
    """A reduction; `empty` is what nothing reduces to, for which TVM forgets the initial value."""

    def lower(c: LoweringContext, operation: Operation) -> te.Tensor:
        value = operation.operand(0)
        if value.type.dtype is DType.BOOL:
            return _as_truth(_ON_BOOLS[operation.name])(c, operation)
        x = c.tensor(value)
        dims, keepdims = operation.attributes["dims"], operation.attributes["keepdims"]
        dtype = operation.result.type.dtype
        working = accumulator_dtype(value.type.dtype)
        if not dims:
            return te.compute(c.dims(value.type.shape), lambda *index: x(*index), name=operation.name)
        nothing = any(value.type.shape[dim] == 0 for dim in dims)
        result = (
            te.compute(c.dims(operation.result.type.shape), lambda *_: tirx.const(empty, working), name=operation.name)
            if nothing
            else reduce_over(c, value.type.shape, dims, keepdims, lambda *i: widened(x(*i)), combine, operation.name)
        )
        if finish is None and working == tvm_dtype(dtype):
            return result
        count = c.dim(product(value.type.shape[dim] for dim in dims))
        ended = finish or (lambda total, _: total)
        return te.compute(
            result.shape, lambda *i: narrowed(ended(result(*i), count), tvm_dtype(dtype)), name=f"{operation.name}_end"
        )

    return lower


def _divide(total: Any, count: Any) -> Any:
    """total / count; TVM refuses to divide by a zero that it sees, so this is a product with infinity then."""
    dtype = expression_dtype(total)
    if not isinstance(count, int | float):
        return total / count.astype(dtype)
    return total / tirx.const(float(count), dtype) if count else total * tirx.infinity(dtype)


def nan_aware(better: Callable[[Any, Any], Any], lowest: Callable[[str], Any], name: str) -> Callable[..., Any]:
    """A reducer that keeps NaN, as torch does."""

    def combine(x: Any, y: Any) -> Any:
        if "float" not in expression_dtype(x):
            return select(better(x, y), x, y)
        return select(tirx.isnan(x), x, select(better(x, y), x, y))

    reducer: Callable[..., Any] = te.comm_reducer(combine, lowest, name=name)
    return reducer


def lowest(dtype: str) -> Any:
    """What every element of the type is at least."""
    return -tirx.infinity(dtype) if "float" in dtype else tirx.min_value(dtype)


def highest(dtype: str) -> Any:
    """What every element of the type is at most."""
    return tirx.infinity(dtype) if "float" in dtype else tirx.max_value(dtype)


def _var(c: LoweringContext, operation: Operation) -> te.Tensor:
    value = operation.operand(0)
    x = c.tensor(value)
    dims, keepdims = operation.attributes["dims"], operation.attributes["keepdims"]
    correction = float(operation.attributes["correction"])
    working = accumulator_dtype(value.type.dtype)
    shape = value.type.shape
    count = c.dim(product(shape[dim] for dim in dims))
    total = reduce_over(c, shape, dims, True, lambda *i: widened(x(*i)), te.sum, "var_total")

    def deviation(*index: Any) -> Any:
        mean_index = [tirx.IntImm("int64", 0) if dim in dims else i for dim, i in enumerate(index)]
        centered = widened(x(*index)) - _divide(total(*mean_index), count)
        return centered * centered

    squares = reduce_over(c, shape, dims, keepdims, deviation, te.sum, "var_squares")

    def finish(*index: Any) -> Any:
        if isinstance(count, int):
            return narrowed(_divide(squares(*index), max(count - correction, 0)), tvm_dtype(value.type.dtype))
        degrees = tirx.max(count.astype(working) - tirx.const(correction, working), tirx.const(0, working))
        return narrowed(squares(*index) / degrees, tvm_dtype(value.type.dtype))

    return te.compute(squares.shape, finish, name="var")


def first_extreme(better: Callable[[Any, Any], Any], lowest: Callable[[str], Any], name: str) -> Callable[..., Any]:
    """A reducer of (index, element) pairs: the first of equal elements, and NaN before all numbers."""

    def combine(left: Any, right: Any) -> Any:
        (i, x), (j, y) = left, right
        first, same = better(x, y), x == y
        if "float" in expression_dtype(x):
            x_nan, y_nan = tirx.isnan(x), tirx.isnan(y)
            first = tirx.any(tirx.all(x_nan, tirx.Not(y_nan)), tirx.all(tirx.Not(y_nan), first))
            same = tirx.any(same, tirx.all(x_nan, y_nan))
        chosen = tirx.any(first, tirx.all(same, i < j))
        return select(chosen, i, j), select(chosen, x, y)

    def identity(index: str, dtype: str) -> Any:
        return tirx.const(2**62, index), lowest(dtype)

    reducer: Callable[..., Any] = te.comm_reducer(combine, identity, name=name)
    return reducer


def _argument(better: Callable[[Any, Any], Any], lowest: Callable[[str], Any], name: str) -> Callable[..., Any]:
    """Index of the extreme element; bools count as numbers."""
    reducer = first_extreme(better, lowest, name)

    def lower(c: LoweringContext, operation: Operation) -> te.Tensor:
        value, dim, keepdims = operation.operand(0), operation.attributes["dim"], operation.attributes["keepdims"]
        x, shape = c.tensor(value), operation.operand(0).type.shape
        axis = te.reduce_axis((0, c.dim(shape[dim])), name="r")
        reduced = [size for d, size in enumerate(shape) if d != dim or keepdims]
        if keepdims:
            reduced[dim] = 1

        def body(*index: Any) -> Any:
            outer = [i for d, i in enumerate(index) if d != dim] if keepdims else list(index)
            full = [*outer[:dim], axis.var, *outer[dim:]]
            item = widened(x(*full))
            item = item.astype("int8") if expression_dtype(item) == "bool" else item
            return reducer((axis.var.astype("int64"), item), axis=axis)

        index_and_value = te.compute(c.dims(reduced), body, name=name)
        return te.compute(c.dims(reduced), lambda *i: index_and_value[0](*i), name=f"{name}_index")

    return lower


def _sum_integer(c: LoweringContext, operation: Operation) -> te.Tensor:
    """i32 sums of codes less their zero point (numerics: Q11)."""
    value, attributes = operation.operand(0), operation.attributes
    x, zero_point = c.tensor(value), attributes["x_zero_point"]
    dims, shape = attributes["dims"], c.dims(operation.result.type.shape)
    if any(value.type.shape[dim] == 0 for dim in dims):
        return te.compute(shape, lambda *_: tirx.const(0, "int32"), name="empty_sum")

    def centered(*index: Any) -> Any:
        return x(*index).astype("int32") - tirx.const(zero_point, "int32")

    return reduce_over(c, value.type.shape, dims, attributes["keepdims"], centered, te.sum, operation.name)


_PRODUCT = te.comm_reducer(lambda x, y: x * y, lambda dtype: tirx.const(1, dtype), name="prod")
_ANY = te.comm_reducer(lambda x, y: tirx.Or(x, y), lambda dtype: tirx.const(False, "bool"), name="any")
_ALL = te.comm_reducer(lambda x, y: tirx.And(x, y), lambda dtype: tirx.const(True, "bool"), name="all")


# A sum that is not zero, a product that is not, and extremes, of bools as numbers.
_ON_BOOLS = {"sum": _ANY, "amax": _ANY, "prod": _ALL, "amin": _ALL}


def _as_truth(combine: Callable[..., Any]) -> Callable[..., te.Tensor]:
    def lower(c: LoweringContext, operation: Operation) -> te.Tensor:
        value = operation.operand(0)
        x = c.tensor(value)
        dims, keepdims = operation.attributes["dims"], operation.attributes["keepdims"]

        def element(*index: Any) -> Any:
            return truth(widened(x(*index)))

        if not dims:
            return te.compute(c.dims(value.type.shape), element, name=operation.name)
        if any(value.type.shape[dim] == 0 for dim in dims):
            nothing = tirx.const(combine is _ALL, "bool")
            return te.compute(c.dims(operation.result.type.shape), lambda *_: nothing, name=operation.name)
        return reduce_over(c, value.type.shape, dims, keepdims, element, combine, operation.name)

    return lower


LOWERINGS: dict[str, Callable[..., Any]] = {
    "sum": _reduction(te.sum),
    "sum_integer": _sum_integer,
    "mean": _reduction(te.sum, _divide),
    "prod": _reduction(_PRODUCT, empty=1),
    "amax": _reduction(nan_aware(lambda x, y: x > y, lowest, "amax")),
    "amin": _reduction(nan_aware(lambda x, y: x < y, highest, "amin")),
    "any": _as_truth(_ANY),
    "all": _as_truth(_ALL),
    "var": _var,
    "argmax": _argument(lambda x, y: x > y, lowest, "argmax"),
    "argmin": _argument(lambda x, y: x < y, highest, "argmin"),
}
