"""Contractions for GPUs: products of matrices in tiles where a plan fits, plain sums otherwise."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from tvm import te, tirx

from whet.backends.tvm.kernels.contraction import flatten_index, unflatten_index
from whet.backends.tvm.kernels.expressions import extent
from whet.backends.tvm.kernels.gpu_plan import GpuPlan, Product, plan_product
from whet.backends.tvm.kernels.gpu_product import staged_product
from whet.backends.tvm.kernels.integer import compensation
from whet.backends.tvm.kernels.math import expression_dtype
from whet.backends.tvm.kernels.windows import ceil_to, clamped
from whet.backends.tvm.lowering.context import LoweringContext, tvm_dtype
from whet.backends.tvm.lowering.reduction import accumulator_dtype
from whet.ir.dimensions import same_dim
from whet.ir.graph import Operation, Value
from whet.ir.ops.contraction import CHANNELS_LAST, channel_dim, spatial_dims
from whet.ir.types import DType

_log = logging.getLogger(__name__)


def _planned(c: LoweringContext, operation: Operation, product: Product) -> GpuPlan | None:
    """The plan for a product, None where plain sums are left; the log (debug level) has the reasons."""
    plan = plan_product(c.target, product)
    if isinstance(plan, GpuPlan):
        return plan
    for reason in plan:
        _log.debug("%s at %s: %s", operation.name, operation.location, reason)
    return None


def _count(sizes: Sequence[Any]) -> Any:
    total: Any = 1
    for size in sizes:
        known, so_far = extent(size), extent(total)
        total = total * size if known is None or so_far is None else known * so_far
    return total


def _linear(c: LoweringContext, operation: Operation) -> te.Tensor:
    """Rows flattened to one dimension. A pointwise convolution is one too."""
    value = operation.operand(1)
    x, weight = c.tensor(operation.operand(0)), value.type.shape
    lead = list(x.shape[:-1])
    product = Product(
        1,
        _count(lead),
        c.dim(weight[0]),
        c.dim(weight[1]),
        str(x.dtype),
        tvm_dtype(value.type.dtype),
        _accumulator(operation),
        (extent(x.shape[-1]) or 1, 0 if value.constant is not None else extent(weight[1]) or 1),
    )
    plan = None if _shifted(operation) else _planned(c, operation, product)
    if plan is None or not lead:
        return _plain_linear(c, operation)

    def activation(_: Any, row: Any, k: Any) -> Any:
        place = unflatten_index(clamped(row, product.rows, ceil_to(product.rows, plan.tile.rows)), lead)
        item = x(*place, _wrapped(k, product, plan))
        return _zero_beyond(k, product, item) if _tested(product, plan) else item

    weight_of = _weight(c, value, product, plan)
    filled = (_tested(product, plan), value.constant is None and _tail(product, plan))
    sums = staged_product(product, plan, activation, weight_of, filled=filled, name=operation.name)
    corrections = _corrections(c, operation)

    def element(*index: Any) -> Any:
        total = sums(0, flatten_index(index[:-1], lead), index[-1])
        return _finished(c, operation, _corrected(total, corrections, index[-1]), index[-1])

    return te.compute((*lead, weight[0]), element, name=f"{operation.name}_end")


def _shifted(operation: Operation) -> bool:
    """Whether the zero point of the activations would need sums of a weight that is no constant."""
    return bool(operation.attributes.get("x_zero_point", 0)) and operation.operand(1).constant is None


def _corrections(c: LoweringContext, operation: Operation) -> list[te.Tensor]:
    """What takes the zero point out of the sums: one integer a column, where the weight is a constant."""
    zero_point = operation.attributes.get("x_zero_point", 0)
    if not zero_point or _shifted(operation):
        return []
    recipe = f"compensation[{zero_point},0]"
    return [c.packed(operation.operand(1), recipe, lambda tensor: compensation(tensor, zero_point))]


def _corrected(total: Any, corrections: Sequence[te.Tensor], column: Any) -> Any:
    for correction in corrections:
        total = total + correction(column)
    return total


def _tail(product: Product, plan: GpuPlan) -> bool:
    """Whether the last tile reaches beyond the products that there are."""
    return int(product.inner) % plan.tile.depth != 0


def _tested(product: Product, plan: GpuPlan) -> bool:
    """Whether a must be zero beyond the products that there are, as b is: NaN times zero is not zero."""
    return _tail(product, plan) and "float" in product.activation


def _wrapped(k: Any, product: Product, plan: GpuPlan) -> Any:
    """k, or where an integer may stand in for any other beyond the products that there are, a place that exists."""
    if not _tail(product, plan) or _tested(product, plan):
        return k
    # whole vectors are moved, which TVM then sees to lie side by side
    vector = plan.vectors[0]
    return tirx.indexmod(tirx.indexdiv(k, vector), int(product.inner) // vector) * vector + tirx.indexmod(k, vector)


def _zero_beyond(k: Any, product: Product, item: Any) -> Any:
    return tirx.if_then_else(k < product.inner, item, tirx.const(0, expression_dtype(item)))


def _weight(c: LoweringContext, value: Value, product: Product, plan: GpuPlan) -> Callable[..., Any]:
    """(group, column, k) -> an element of a weight [columns, inner, *taps], k running over [*taps, inner].

    A constant is laid out so, and padded with zeros, at compile time.
    """
    columns, inner = int(ceil_to(product.columns, plan.tile.columns)), int(ceil_to(product.inner, plan.tile.depth))
    groups = int(product.groups)
    if value.constant is not None:

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            rows = tensor.movedim(1, -1).reshape(groups, int(product.columns), int(product.inner))
            wide = torch.zeros(groups, columns, inner, dtype=tensor.dtype, device=tensor.device)
            wide[:, : rows.shape[1], : rows.shape[2]] = rows
            return wide

        packed = c.packed(value, f"tiles[{groups},{columns},{inner}]", pack)
        return lambda group, column, k: packed(group, column, k)
    weight = c.tensor(value)
    per_tap, taps = int(value.type.static_shape[1]), list(value.type.static_shape[2:])

    def element(group: Any, column: Any, k: Any) -> Any:
        held = clamped(column, product.columns, columns)
        place = unflatten_index(tirx.indexdiv(k, per_tap), taps) if taps else []
        item = weight(group * int(product.columns) + held, tirx.indexmod(k, per_tap), *place)
        return _zero_beyond(k, product, item) if _tail(product, plan) else item

    return element


def _plain_linear(c: LoweringContext, operation: Operation) -> te.Tensor:
    """Rows flattened to one dimension: the form that matrix schedules know. A pointwise convolution is one too.

    Integers are multiplied as they are stored, and the zero point is taken out of the sum: nvcc then finds four
    products at a time (dp4a).
    """
    value = operation.operand(1)
    x, weight = c.tensor(operation.operand(0)), c.tensor(value)
    lead = list(x.shape[:-1])
    rows: Any = tirx.IntImm("int64", 1)
    for size in lead:
        rows = rows * size
    corrections = _corrections(c, operation)
    subtracted = 0 if corrections else operation.attributes.get("x_zero_point", 0)
    working = _accumulator(operation)
    inner = te.reduce_axis((0, weight.shape[1]), name="k")
    taps = [0] * (len(weight.shape) - 2)

    def product(row: Any, column: Any) -> Any:
        item = x(*unflatten_index(row, lead), inner.var) if lead else x(inner.var)
        factor = weight(column, inner.var, *taps).astype(working)
        return te.sum(_centered(item, subtracted, working) * factor, axis=inner)

    flat = te.compute((rows, weight.shape[0]), product, name=operation.name)

    def element(*index: Any) -> Any:
        row = flatten_index(index[:-1], lead) if lead else tirx.IntImm("int64", 0)
        return _finished(c, operation, _corrected(flat(row, index[-1]), corrections, index[-1]), index[-1])

    return te.compute((*lead, weight.shape[0]), element, name=f"{operation.name}_end")


def _plain_matmul(c: LoweringContext, operation: Operation) -> te.Tensor:
    a, b = c.tensor(operation.operand(0)), c.tensor(operation.operand(1))
    zero_points = (operation.attributes.get(f"{name}_zero_point", 0) for name in ("x", "y"))
    a_zero, b_zero = zero_points
    working = _accumulator(operation)
    inner = te.reduce_axis((0, a.shape[-1]), name="k")
    shape = c.dims(operation.result.type.shape)

    def product(*index: Any) -> Any:
        left = a(*_batch(index, a), index[-2], inner.var)
        right = b(*_batch(index, b), inner.var, index[-1])
        return te.sum(_centered(left, a_zero, working) * _centered(right, b_zero, working), axis=inner)

    total = te.compute(shape, product, name=operation.name)
    dtype = tvm_dtype(operation.result.type.dtype)
    if dtype == working:
        return total
    return te.compute(shape, lambda *index: total(*index).astype(dtype), name="rounded")


def _matmul(c: LoweringContext, operation: Operation) -> te.Tensor:
    a, b = c.tensor(operation.operand(0)), c.tensor(operation.operand(1))
    shape = c.dims(operation.result.type.shape)
    batch = shape[:-2]
    centered = any(operation.attributes.get(f"{name}_zero_point", 0) for name in ("x", "y"))
    product = Product(
        _count(batch),
        a.shape[-2],
        b.shape[-1],
        a.shape[-1],
        str(a.dtype),
        str(b.dtype),
        _accumulator(operation),
        (extent(a.shape[-1]) or 1, 1),
        (False, True),
    )
    plan = None if centered or extent(product.groups) is None else _planned(c, operation, product)
    if plan is None:
        return _plain_matmul(c, operation)
    tile = plan.tile

    def index_of(group: Any) -> list[Any]:
        return [*unflatten_index(group, batch), 0, 0] if batch else [0, 0]

    def activation(group: Any, row: Any, k: Any) -> Any:
        held = clamped(row, product.rows, ceil_to(product.rows, tile.rows))
        item = a(*_batch(index_of(group), a), held, _wrapped(k, product, plan))
        return _zero_beyond(k, product, item) if _tested(product, plan) else item

    def weight(group: Any, column: Any, k: Any) -> Any:
        held = clamped(column, product.columns, ceil_to(product.columns, tile.columns))
        item = b(*_batch(index_of(group), b), k, held)
        return _zero_beyond(k, product, item) if _tail(product, plan) else item

    filled = (_tested(product, plan), _tail(product, plan))
    sums = staged_product(product, plan, activation, weight, filled=filled, name=operation.name)
    dtype = tvm_dtype(operation.result.type.dtype)

    def element(*index: Any) -> Any:
        group = flatten_index(index[:-2], batch) if batch else 0
        return sums(group, *index[-2:]).astype(dtype)

    return te.compute(shape, element, name=f"{operation.name}_end")


def _batch(index: Sequence[Any], tensor: te.Tensor) -> list[Any]:
    """Leading indices of a batched operand, its own dimensions of one held at zero."""
    lead = len(tensor.shape) - 2
    taken = index[len(index) - 2 - lead : len(index) - 2]
    return [
        tirx.IntImm("int64", 0) if isinstance(size, (int, tirx.IntImm)) and int(size) == 1 else item
        for item, size in zip(taken, tensor.shape[:lead], strict=True)
    ]


def _is_pointwise(operation: Operation) -> bool:
    """Whether a convolution is a product of matrices: each output reads the channels of one place."""
    attributes = operation.attributes
    return (
        all(same_dim(size, 1) for size in operation.operand(1).type.shape[2:])
        and all(step == 1 for step in attributes["stride"])
        and not any(amount for pair in attributes["padding"] for amount in pair)
        and attributes["groups"] == 1
        and attributes["layout"] == CHANNELS_LAST
    )


def _plain_conv(c: LoweringContext, operation: Operation) -> te.Tensor:
    value, weight_value = operation.operand(0), operation.operand(1)
    attributes = operation.attributes
    x, weight = c.tensor(value), c.tensor(weight_value)
    rank, shape = value.type.rank, value.type.shape
    dims, channel = list(spatial_dims(rank, attributes["layout"])), channel_dim(rank, attributes["layout"])
    zero_point = attributes.get("x_zero_point", 0)
    working = _accumulator(operation)
    outputs, per_group = weight_value.type.shape[0], weight_value.type.shape[1]
    inner = te.reduce_axis((0, c.dim(per_group)), name="ic")
    taps = [te.reduce_axis((0, c.dim(size)), name=f"k{i}") for i, size in enumerate(weight_value.type.shape[2:])]

    def product(*index: Any) -> Any:
        source, inside = list(index), []
        for i, dim in enumerate(dims):
            low, high = attributes["padding"][i]
            source[dim] = index[dim] * attributes["stride"][i] + taps[i].var * attributes["dilation"][i] - low
            inside += [source[dim] >= 0, source[dim] < c.dim(shape[dim])] if low or high else []
        group = tirx.indexdiv(index[channel], c.dim(outputs // attributes["groups"]))
        source[channel] = group * c.dim(per_group) + inner.var
        item = _centered(x(*source), zero_point, working)
        if inside:
            item = tirx.if_then_else(tirx.all(*inside), item, tirx.const(0, working))
        factor = weight(index[channel], inner.var, *(tap.var for tap in taps)).astype(working)
        return te.sum(item * factor, axis=[inner, *taps])

    total = te.compute(c.dims(operation.result.type.shape), product, name=operation.name)

    def element(*index: Any) -> Any:
        return _finished(c, operation, total(*index), index[channel])

    return te.compute(total.shape, element, name=f"{operation.name}_end")


def _conv(c: LoweringContext, operation: Operation) -> te.Tensor:
    """A product whose rows are places of the result, and whose k runs over [*taps, channel] (implicit GEMM)."""
    if _is_pointwise(operation):
        return _linear(c, operation)
    value, weight_value = operation.operand(0), operation.operand(1)
    attributes, x = operation.attributes, c.tensor(value)
    rank, groups = value.type.rank, attributes["groups"]
    dims, channel = list(spatial_dims(rank, attributes["layout"])), channel_dim(rank, attributes["layout"])
    outputs, per_group, *kernel = (c.dim(size) for size in weight_value.type.shape)
    result = c.dims(operation.result.type.shape)
    places = [result[0], *(result[dim] for dim in dims)]
    last = attributes["layout"] == CHANNELS_LAST
    known = all(extent(size) is not None for size in (outputs, per_group, *kernel))
    product = Product(
        groups,
        _count(places),
        int(outputs) // groups if known else outputs,
        _count((per_group, *kernel)),
        str(x.dtype),
        tvm_dtype(weight_value.type.dtype),
        _accumulator(operation),
        (int(per_group) if known and last else 1, 0 if weight_value.constant is not None else 1),
        (not last, False),
        groups > 1,
    )
    plan = None if _shifted(operation) else _planned(c, operation, product)
    if plan is None:
        return _plain_conv(c, operation)
    tile, fill = plan.tile, attributes.get("x_zero_point", 0)
    padded = any(amount for pair in attributes["padding"] for amount in pair)
    tested = _tested(product, plan)

    def activation(group: Any, row: Any, place: Any) -> Any:
        k = _wrapped(place, product, plan)
        held = clamped(row, product.rows, ceil_to(product.rows, tile.rows))
        sample, *at = unflatten_index(held, places)
        taps = unflatten_index(tirx.indexdiv(k, per_group), kernel)
        index: list[Any] = [sample] * rank
        inside = [k < product.inner] if tested else []
        for axis, dim in enumerate(dims):
            low, high = attributes["padding"][axis]
            index[dim] = at[axis] * attributes["stride"][axis] + taps[axis] * attributes["dilation"][axis] - low
            inside += [index[dim] >= 0] if low else []
            inside += [index[dim] < x.shape[dim]] if high else []
        index[channel] = group * per_group + tirx.indexmod(k, per_group)
        item = x(*index)
        return tirx.if_then_else(tirx.all(*inside), item, tirx.const(fill, x.dtype)) if inside else item

    sums = staged_product(
        product,
        plan,
        activation,
        _weight(c, weight_value, product, plan),
        filled=(tested or padded, weight_value.constant is None and _tail(product, plan)),
        asynchronous=not (padded and fill),
        name=operation.name,
    )
    corrections = _corrections(c, operation)

    def element(*index: Any) -> Any:
        column = index[channel]
        row = flatten_index([index[0], *(index[dim] for dim in dims)], places)
        total = sums(tirx.indexdiv(column, product.columns), row, tirx.indexmod(column, product.columns))
        return _finished(c, operation, _corrected(total, corrections, column), column)

    return te.compute(result, element, name=f"{operation.name}_end")


def _accumulator(operation: Operation) -> str:
    dtype = operation.result.type.dtype
    return accumulator_dtype(dtype) if dtype.is_float else tvm_dtype(DType.I32)


def _centered(item: Any, zero_point: int, working: str) -> Any:
    item = item.astype(working)
    return item - tirx.const(zero_point, working) if zero_point else item


def _finished(c: LoweringContext, operation: Operation, total: Any, channel: Any) -> Any:
    """The bias is added to the accumulator, then the result is rounded to its dtype."""
    value = operation.operands[2] if len(operation.operands) > 2 else None
    if value is not None:
        total = total + c.tensor(value)(channel).astype(_accumulator(operation))
    return total.astype(tvm_dtype(operation.result.type.dtype))


LOWERINGS: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    "linear_integer": _linear,
    "matmul": _matmul,
    "matmul_integer": _matmul,
    "conv": _conv,
    "conv_integer": _conv,
}
