"""Contractions: a register tile under a broadcast-multiply-add loop, the epilogue on the same tile."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import tvm
from tvm import tirx

from whet.backends.tvm.intrinsics.dot_product import register
from whet.backends.tvm.intrinsics.instructions import DotInstruction, instruction_of
from whet.backends.tvm.intrinsics.llvm_code import imported_code
from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.cpu import CpuTarget, lanes
from whet.backends.tvm.kernels.decisions import decision_for
from whet.backends.tvm.schedule.blocks import (
    IMPORT_LLVM,
    BlockHandle,
    LoopHandle,
    Schedule,
    anchors,
    annotation,
    block_name,
    iterator_counts,
    loop_extent,
    output_blocks,
)
from whet.backends.tvm.schedule.elementwise import schedule_elementwise
from whet.backends.tvm.schedule.matrix import schedule_matrix
from whet.backends.tvm.schedule.streaming import stream_weights
from whet.backends.tvm.schedule.tiled import (
    MULTIPLY_ADDS_PER_CYCLE,
    Nest,
    fuse_epilogue,
    initialize,
    keep_in_registers,
    open_anchor,
    ordered_tiles,
    parallel,
    rows_outside,
    schedule_producers,
    tile_anchor,
)

# Which operand of the product a contraction reads first.
_ACTIVATIONS = 0


@dataclass(frozen=True)
class Contraction:
    """Rule for functions with one contraction anchor and one element-wise output."""

    name: str = "contraction"

    def apply(self, func: tirx.PrimFunc, target: CpuTarget) -> tvm.s_tir.Schedule | None:
        """See `Rule`."""
        sch = open_anchor(func, roles.CONTRACTION)
        if sch is None:
            return None
        anchor, final = anchors(sch, roles.CONTRACTION)[0], output_blocks(sch)[0]
        schedule_producers(sch, anchor, final, target)
        if _reads_only(sch, final, anchor):
            schedule_contraction(sch, anchor, final, target)
            return sch
        # What is behind the sums waits for others too: TVM cannot move it into the tile, so they go through memory.
        schedule_elementwise(sch, final, target)
        schedule_contraction(sch, anchor, None, target)
        return sch


def _reads_only(sch: Schedule, block: BlockHandle, producer: BlockHandle) -> bool:
    """Whether nothing else that the function computes is read by `block`."""
    return {block_name(sch, other) for other in sch.get_producers(block)} == {block_name(sch, producer)}


def schedule_contraction(sch: Schedule, anchor: BlockHandle, final: BlockHandle | None, target: CpuTarget) -> None:
    """Tile a contraction with the block behind it, or (None) on its own: its sums are then written as they are."""
    name = annotation(sch, anchor, roles.INTRINSIC)
    if name is None:
        _schedule_products(sch, anchor, final, target)
        return
    instruction = instruction_of(str(name))
    if instruction.matrix is None:
        _schedule_dots(sch, anchor, final, target, instruction)
    else:
        schedule_matrix(sch, anchor, final, target, instruction)


def _schedule_products(sch: Schedule, anchor: BlockHandle, final: BlockHandle | None, target: CpuTarget) -> None:
    """One activation is multiplied with a vector of columns at a time."""
    nest = tile_anchor(sch, anchor, target)
    outer, steps = _outer(sch, anchor, final, nest, target), _unrolled(sch, nest.reduction, target)
    nest = replace(nest, reduction=steps)
    sch.reorder(*outer, *steps, *nest.row_inner, nest.vectors, nest.vector)
    keep_in_registers(sch, nest)
    fuse_epilogue(sch, anchor, final, outer[-1], target)
    _parallel_tiles(sch, anchor, nest, outer, lanes(target))
    stream_weights(sch, anchor, steps[-1], target)
    initialize(sch, anchor, nest)


def _schedule_dots(
    sch: Schedule, anchor: BlockHandle, final: BlockHandle | None, target: CpuTarget, instruction: DotInstruction
) -> None:
    """One instruction multiplies a group of activations of each of its rows with a group of weights of each column."""
    gathered = sch.reindex(anchor, ("read", _ACTIVATIONS)) if instruction.rows > 1 else None
    nest = tile_anchor(sch, anchor, target, instruction.columns)
    *sums, products = nest.reduction
    outer, steps = _outer(sch, anchor, final, nest, target), _unrolled(sch, sums, target)
    nest = replace(nest, reduction=[*steps, products])
    vector = [nest.vector, products]
    if instruction.rows > 1:
        pairs, row = sch.split(nest.row_inner[-1], [None, instruction.rows])
        nest, vector = replace(nest, row_inner=[*nest.row_inner[:-1], pairs]), [row, *vector]
    sch.reorder(*outer, *steps, *nest.row_inner, nest.vectors, *vector)
    keep_in_registers(sch, nest, vectorized=False)
    fuse_epilogue(sch, anchor, final, outer[-1], target)
    if gathered is not None:
        _gather_rows(sch, gathered, anchor, nest.row_inner[-1])
        sch.transform_layout(anchor, ("write", 0), functools.partial(_by_vectors, instruction))
    _parallel_tiles(sch, anchor, nest, outer, instruction.lanes * instruction.group)
    stream_weights(sch, anchor, steps[-1], target)
    initialize(sch, anchor, nest, vector_loops=len(vector) - 1)
    code = imported_code(instruction)
    if code is not None:
        sch.annotate(sch.get_loops(anchor)[0], IMPORT_LLVM, code)
    sch.tensorize(vector[0], register(instruction))


def _outer(
    sch: Schedule, anchor: BlockHandle, final: BlockHandle | None, nest: Nest, target: CpuTarget
) -> list[LoopHandle]:
    by_rows = rows_outside(sch, anchor, final, target)
    return [*nest.batch, *ordered_tiles(nest.row_outer, nest.column_outer, target, by_rows)]


def _parallel_tiles(sch: Schedule, anchor: BlockHandle, nest: Nest, outer: Sequence[LoopHandle], products: int) -> None:
    """Deal tiles to the cores, of which each forms some vectors of `products` products in a cycle."""
    tiles = outer[:-1] if len(nest.row_outer) > 1 else outer
    parallel(sch, tiles, anchor, MULTIPLY_ADDS_PER_CYCLE * products)


def _unrolled(sch: Schedule, reduction: Sequence[LoopHandle], target: CpuTarget) -> list[LoopHandle]:
    """The loops over the reduction, as many steps of the innermost written out as is decided and divides it."""
    count, size = decision_for(target).unroll, loop_extent(sch, reduction[-1])
    if count == 1 or size is None or size % count:
        return list(reduction)
    turns, step = sch.split(reduction[-1], [None, count])
    sch.unroll(step)
    return [*reduction[:-1], turns, step]


def _gather_rows(sch: Schedule, gathered: BlockHandle, anchor: BlockHandle, pairs: LoopHandle) -> None:
    """Bring the activations of one vector together, row by row: they may lie anywhere."""
    sch.set_scope(gathered, 0, "local")
    axes = len(sch.get(gathered).iter_vars)
    row = axes - iterator_counts(sch, anchor)[1] - 1
    order = [*range(row), *range(row + 1, axes - 1), row, axes - 1]
    sch.transform_layout(gathered, ("write", 0), lambda *index: [index[axis] for axis in order])
    sch.compute_at(gathered, pairs)
    *_, rows, group = sch.get_loops(gathered)
    sch.unroll(rows)
    sch.vectorize(group)


def _by_vectors(instruction: DotInstruction, *index: tirx.Var) -> list[object]:
    """Where the sum of a row and a column lies: those of one vector side by side."""
    *outer, row, column = index
    rows, columns = instruction.rows, instruction.columns
    return [*outer, row // rows, column // columns, row % rows, column % columns]
