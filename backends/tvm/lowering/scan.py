"""Scans: a running value along one dimension, line by line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tvm import te, tirx

from whet.backends.tvm.kernels import math as fast
from whet.backends.tvm.kernels.math import expression_dtype
from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.backends.tvm.lowering.elementwise import maximum, minimum, select
from whet.backends.tvm.lowering.half import narrowed, widened
from whet.backends.tvm.lowering.loops import load, loops, nest, parallel_nest, store
from whet.backends.tvm.lowering.reduction import accumulator_dtype
from whet.ir.graph import Operation

Combine = Callable[[Any, Any], Any]


def _scan(combine: Combine, on_bool: Combine) -> Callable[..., te.Tensor]:
    def lower(c: LoweringContext, operation: Operation) -> te.Tensor:
        """Lines lie side by side where the dimension is not the last: the loop over them is the inner one then."""
        x, dim = c.tensor(operation.operand(0)), operation.attributes["dim"]
        dtype = operation.result.type.dtype
        working = accumulator_dtype(dtype)
        shape = c.dims(operation.result.type.shape)
        step = on_bool if working == "bool" else combine

        def body(ins: Any, outs: Any) -> None:
            (source,), (target,) = ins, outs
            with parallel_nest(shape[:dim], _steps(shape[dim:])) as outer:
                with nest([tirx.min(shape[dim], 1), *shape[dim + 1 :]]) as (_, *inner):
                    first = [*outer, 0, *inner]
                    store(target, first, widened(load(source, first)))
                with nest([shape[dim] - 1, *shape[dim + 1 :]]) as (place, *inner):
                    here, before = [*outer, place + 1, *inner], [*outer, place, *inner]
                    store(target, here, step(load(target, before), widened(load(source, here))))

        (result,) = loops([shape], [working], [x], body, operation.name)
        if working == tvm_dtype(dtype):
            return result
        return te.compute(shape, lambda *index: narrowed(result(*index), tvm_dtype(dtype)), name="rounded")

    return lower


def _steps(extents: list[Any]) -> Any:
    total: Any = 1
    for extent in extents:
        total = total * extent
    return total


def _log_add_exp(x: Any, y: Any) -> Any:
    """log(exp(x) + exp(y)), of infinities too."""
    low, high = minimum(x, y), maximum(x, y)
    infinite = tirx.all(low == high, tirx.abs(low) == tirx.infinity(expression_dtype(x)))
    return select(infinite, high, high + tirx.log1p(fast.exp(low - high)))


LOWERINGS: dict[str, Callable[..., Any]] = {
    "cumsum": _scan(lambda x, y: x + y, tirx.Or),
    "cumprod": _scan(lambda x, y: x * y, tirx.And),
    "cummax": _scan(maximum, tirx.Or),
    "cummin": _scan(minimum, tirx.And),
    "logcumsumexp": _scan(_log_add_exp, tirx.Or),
}
