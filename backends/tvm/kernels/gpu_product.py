"""Contractions for GPUs as three stages: tiles of both operands, copied with bounds, and sums over whole tiles.

The copies are the schedule's to put into shared memory; nothing of their full size is ever in memory. A convolution is
such a product too: its copy of a computes where in the picture each tap of a row lies (implicit GEMM).
"""

from __future__ import annotations

from collections.abc import Callable

from tvm import te

from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.expressions import Expression, element_bytes
from whet.backends.tvm.kernels.gpu_plan import GpuPlan, Product
from whet.backends.tvm.kernels.windows import ceil_to

_MOST_FILLED = 4
"""Bytes of one copy that may be filled in: TVM cannot write more of them as one number."""

Element = Callable[[Expression, Expression, Expression], Expression]


def staged_product(
    product: Product,
    plan: GpuPlan,
    activation: Element,
    weight: Element,
    *,
    filled: tuple[bool, bool],
    asynchronous: bool = True,
    name: str,
) -> te.Tensor:
    """`sums[group, row, column]`, with rows and columns up to whole tiles: read only those that there are.

    Args:
        product: the sizes and types.
        plan: how it is tiled.
        activation: (group, row, k) -> an element of a, readable at every place of the padded tile.
        weight: (group, column, k) -> an element of b likewise; one of the two is zero where k is past the end.
        filled: whether reading a, and b, tests for what lies outside, and gives something else there.
        asynchronous: whether what lies outside of the operands is zero, so that the copies may be made by `cp.async`.
        name: of the stages.
    """
    tile = plan.tile
    rows, columns = ceil_to(product.rows, tile.rows), ceil_to(product.columns, tile.columns)
    inner = ceil_to(product.inner, tile.depth)
    groups = product.groups
    types = (product.activation, product.weight)
    vectors = [
        min(vector, _MOST_FILLED) if tested and element_bytes(dtype) == 1 else vector
        for vector, tested, dtype in zip(plan.vectors, filled, types, strict=True)
    ]
    of_a, of_b = map(roles.operand, vectors, product.by_lines)
    a = te.compute((groups, rows, inner), activation, name=f"{name}_a", attrs=of_a)
    b = te.compute((groups, columns, inner), weight, name=f"{name}_b", attrs=of_b)
    k = te.reduce_axis((0, inner), name="k")

    def element(group: Expression, row: Expression, column: Expression) -> Expression:
        left = a(group, row, k.var).astype(product.accumulator)
        return te.sum(left * b(group, column, k.var).astype(product.accumulator), axis=k)

    kind = roles.THREAD_TILES if plan.instruction is None else roles.TENSOR_CORE
    attributes = roles.gpu_product(
        kind,
        (tile.rows, tile.columns, tile.depth),
        tile.across,
        types,
        plan.grouped,
        asynchronous,
        [str(item) for item in plan.declined],
    )
    return te.compute((groups, rows, columns), element, name=f"{name}_sums", attrs=attributes)
