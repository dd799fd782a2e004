"""AArch64 assembly of the operations whose inner loops are examined: Whet's kernels, and plain loop nests.

The plain ones are what a compiler makes of the operation written down as loops (at -O3): LLVM
vectorizes and unrolls them, nothing is packed, tiled or padded. Their input is taken as padded already.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

    from whet.ir.target import Target

WHET, REDUCTION_INNERMOST, COLUMNS_INNERMOST = "whet", "plain, reduction innermost", "plain, columns innermost"


@dataclass(frozen=True)
class ArmOp:
    """One operation.

    Attributes:
        name: how tables call it.
        rows: extents of the rows of the result: pixels, or the rows of a matrix.
        inputs: channels that are read, or the length of the sums of a matrix product.
        outputs: channels, or columns, of the result.
        kernel: extent of the window along each axis; 0 for a matrix product.
        depthwise: whether each channel is a sum of its own.
        integer: whether the operands are int8 (and the sums int32), else float32.
    """

    name: str
    rows: tuple[int, ...]
    inputs: int
    outputs: int
    kernel: int = 0
    depthwise: bool = False
    integer: bool = False

    @property
    def macs(self) -> int:
        """Multiply-adds of the whole operation."""
        depth = max(1, self.kernel) ** 2 * (1 if self.depthwise else self.inputs)
        return math.prod(self.rows) * self.outputs * depth

    @property
    def dtype(self) -> str:
        """Of the operands."""
        return "int8" if self.integer else "float32"


def _both(name: str, *extents: Any, **options: Any) -> tuple[ArmOp, ArmOp]:
    return (
        ArmOp(f"{name} f32", *extents, **options),
        ArmOp(f"{name} int8", *extents, **options, integer=True),
    )


OPS: Final[Mapping[str, ArmOp]] = MappingProxyType(
    {
        op.name: op
        for op in (
            *_both("matmul 256x256x256", (256,), 256, 256),
            *_both("conv3x3 64-64 28", (28, 28), 64, 64, 3),
            *_both("conv1x1 64-64 28", (28, 28), 64, 64, 1),
            *_both("depthwise3x3 64 28", (28, 28), 64, 64, 3, depthwise=True),
        )
    }
)


def build(kernel: Any, target: Target) -> Any:
    """The machine code of a scheduled function: a module of TVM's."""

    from whet.backends.tvm.pipeline import build_kernel
    from whet.backends.tvm.targets import tvm_target

    return build_kernel(kernel, tvm_target(target))


def assembly(op: ArmOp, target: Target, source: str = WHET) -> str:
    """The code of one operation, by Whet's kernels or another of `SOURCES`."""
    text: str = build(SOURCES[source](op, target), target).inspect_source("asm")
    return text


def whet_kernel(op: ArmOp, target: Target) -> Any:
    """The one scheduled function that Whet emits for a graph of the operation, with constant weights."""
    import tvm

    from whet.backends.tvm.emit import emit
    from whet.backends.tvm.schedule.rules import schedule_cpu
    from whet.ir import Builder, Graph
    from whet.ir.types import DType, TensorType

    graph = Graph()
    builder = Builder(graph)
    x = builder.input("x", TensorType(_input_shape(op), DType.I8 if op.integer else DType.F32))
    suffix = "_integer" if op.integer else ""
    name = f"conv{suffix}" if op.kernel else f"linear{suffix}"
    graph.outputs += builder.emit(name, [x, builder.constant(_weight(op))], _attributes(op)).results
    emitted = emit(graph, target, schedule_cpu, lambda _: None)
    (kernel,) = (item for item in emitted.module.functions.values() if isinstance(item, tvm.tirx.PrimFunc))
    return kernel


def reduction_innermost(op: ArmOp, target: Target) -> Any:
    """Weights as `[outputs, *window, inputs]`; each sum is finished before the next begins."""
    return _plain(op, weight_by_columns=False)


def columns_innermost(op: ArmOp, target: Target) -> Any:
    """Weights with the columns last, `[*window, inputs, outputs]`; the innermost loop runs over the columns."""
    import tvm

    sch = tvm.s_tir.Schedule(_plain(op, weight_by_columns=True))
    block = sch.get_sblock("sums")
    loops = sch.get_loops(block)
    rows, column, reduction = loops[: len(op.rows)], loops[len(op.rows)], loops[len(op.rows) + 1 :]
    sch.reorder(*rows, *reduction, column)
    sch.decompose_reduction(block, reduction[0])
    return sch.mod["main"]


SOURCES: Final[Mapping[str, Callable[[ArmOp, Target], Any]]] = MappingProxyType(
    {WHET: whet_kernel, REDUCTION_INNERMOST: reduction_innermost, COLUMNS_INNERMOST: columns_innermost}
)


def _input_shape(op: ArmOp) -> tuple[int, ...]:
    return (1, *op.rows, op.inputs) if op.kernel else (*op.rows, op.inputs)


def _attributes(op: ArmOp) -> dict[str, Any]:
    if not op.kernel:
        return {}
    side = op.kernel // 2
    return {
        "layout": "channels_last",
        "padding": ((side, side),) * 2,
        "stride": (1, 1),
        "dilation": (1, 1),
        "groups": op.inputs if op.depthwise else 1,
        **({"x_zero_point": 0} if op.integer else {}),
    }


def _weight(op: ArmOp) -> torch.Tensor:
    import torch

    window = (op.kernel,) * 2 if op.kernel else ()
    shape = (op.outputs, 1 if op.depthwise else op.inputs, *window)
    return torch.zeros(shape, dtype=torch.int8 if op.integer else torch.float32)


def _plain(op: ArmOp, *, weight_by_columns: bool) -> Any:
    """The sums as loops over rows, columns and then the reduction."""
    from tvm import te

    window = (op.kernel,) * 2 if op.kernel else ()
    grown = tuple(extent + op.kernel - 1 for extent in op.rows) if window else op.rows
    depth = () if op.depthwise else (op.inputs,)
    x = te.placeholder((*grown, op.inputs), op.dtype, name="x")
    shape = (*window, *depth, op.outputs) if weight_by_columns else (op.outputs, *window, *depth)
    weight = te.placeholder(shape, op.dtype, name="weight")
    axes = [te.reduce_axis((0, extent), f"r{number}") for number, extent in enumerate((*window, *depth))]

    def element(*index: Any) -> Any:
        *rows, column = index
        position = [row + axis for row, axis in zip(rows, axes, strict=False)] if window else rows
        channel = column if op.depthwise else axes[-1]
        factor = weight[(*axes, column)] if weight_by_columns else weight[(column, *axes)]
        sums = "int32" if op.integer else "float32"
        return te.sum(x[(*position, channel)].astype(sums) * factor.astype(sums), axis=axes)

    sums = te.compute((*op.rows, op.outputs), element, name="sums")
    return te.create_prim_func([x, weight, sums])
