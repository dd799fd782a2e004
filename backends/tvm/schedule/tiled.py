"""What contractions and depthwise convolutions share: a register tile with the epilogue on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tvm import tirx
from tvm.s_tir.schedule import ScheduleError

from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.contraction import flatten_index
from whet.backends.tvm.kernels.cpu import CpuTarget, lanes
from whet.backends.tvm.kernels.decisions import OPPOSITE, decision_for
from whet.backends.tvm.kernels.expressions import extent
from whet.backends.tvm.schedule.blocks import (
    BlockHandle,
    LoopHandle,
    Schedule,
    all_blocks,
    anchors,
    annotation,
    block_name,
    can_vectorize,
    fused,
    integers,
    is_elementwise,
    is_reduction,
    iterator_counts,
    loop_extent,
    new_schedule,
    output_blocks,
    region_bytes,
    static_product,
)
from whet.backends.tvm.schedule.elementwise import inline_elementwise, schedule_elementwise
from whet.backends.tvm.schedule.reduction import schedule_reduction

# Cycles of one core from which on it is worth to wake the others: which costs some thousands, and as many again for the
# activations that then lie in another core's cache.
_WORTH_CYCLES = 16 * 1024
# What a core reads in a cycle where its caches do not hold it, as the weights of a layer with few rows.
_BYTES_PER_CYCLE = 16
MULTIPLY_ADDS_PER_CYCLE = 2
"""Vectors that a core multiplies and adds in a cycle."""


@dataclass(frozen=True)
class Nest:
    """The loops of a tiled anchor, outermost group first; the inner ones are unrolled and vectorized."""

    batch: list[LoopHandle]
    row_outer: list[LoopHandle]
    column_outer: LoopHandle
    reduction: list[LoopHandle]
    row_inner: list[LoopHandle]
    vectors: LoopHandle
    vector: LoopHandle

    @property
    def unrolled(self) -> int:
        """How many loops stand between the reduction and the vector."""
        return len(self.row_inner) + 1


def open_anchor(func: tirx.PrimFunc, kind: str) -> Schedule | None:
    """A schedule with the epilogue in one output over the anchor's axes; None for another form of `func`."""
    sch = new_schedule(func)
    if len(anchors(sch, kind)) != 1 or len(output_blocks(sch)) != 1:
        return None
    inline_elementwise(sch, keep=output_blocks(sch))
    final = output_blocks(sch)[0]
    if not is_elementwise(sch, final):
        return None
    folded = annotation(sch, anchors(sch, kind)[0], roles.FLATTENED)
    if folded is None or int(folded) <= 1:
        return sch
    return _folded(sch, anchors(sch, kind)[0], final, int(folded))


def _folded(sch: Schedule, anchor: BlockHandle, final: BlockHandle, folded: int) -> Schedule:
    """Fold the axes of the output that one row axis of the anchor stands for: then both have the same."""
    iterators = list(sch.get(final).iter_vars)
    first = len(iterators) - 1 - folded
    spatial, _ = iterator_counts(sch, anchor)
    if first < 0 or len(iterators) - folded + 1 != spatial:
        raise ScheduleError("the epilogue has other axes than its anchor")
    shape = [iterator.dom.extent for iterator in iterators[first:-1]]

    def fold(*index: tirx.Var) -> list[object]:
        return [*index[:first], flatten_index(index[first:-1], shape), index[-1]]

    dtype = str(iterators[-1].var.ty.dtype)
    sch.transform_block_layout(final, tirx.IndexMap.from_func(fold, ndim=len(iterators), index_dtype=dtype))
    return new_schedule(sch.mod)


def tile_anchor(sch: Schedule, anchor: BlockHandle, target: CpuTarget, width: int | None = None) -> Nest:
    """Split rows and columns into the tile that the anchor is annotated with; no loop is moved yet.

    `width` is how many columns one vector holds; None for as many as it has lanes.
    """
    rows = integers(sch, anchor, roles.ROWS)
    block = int(annotation(sch, anchor, roles.BLOCK))
    spatial, _ = iterator_counts(sch, anchor)
    loops = list(sch.get_loops(anchor))
    first = spatial - 1 - len(rows)
    width = width or lanes(target, str(sch.get(anchor).writes[0].source.dtype))
    width = width if block % width == 0 else block
    row_outer, row_inner = [], []
    for loop, step in zip(loops[first : spatial - 1], rows, strict=True):
        head, tail = sch.split(loop, [None, step])
        row_outer.append(head)
        row_inner.append(tail)
    column_outer, vectors, vector = sch.split(loops[spatial - 1], [None, block // width, width])
    return Nest(loops[:first], row_outer, column_outer, loops[spatial:], row_inner, vectors, vector)


def rows_outside(sch: Schedule, anchor: BlockHandle, final: BlockHandle | None, target: CpuTarget) -> bool:
    """Whether rows go outside of blocks of columns, which deals them to the cores.

    A core then reads all weights, and the activations of its own rows alone, which it often has computed itself; else
    it reads all activations, and the weights of its own columns. What another core has written comes slower than
    weights, which are prefetched (of ResNet-50's 1x1 convolutions at 14x14 rows outside win with 1.3 times as many
    weights as activations, and lose with 5 times as many); outputs count for what reads them next. Weights that are
    read again for every tile of rows must be a small part of the second cache, for much else passes through it.
    """
    activations, weights = (region_bytes(region) for region in list(sch.get(anchor).reads)[:2])
    outputs = region_bytes(sch.get(anchor if final is None else final).writes[0])
    if activations is None or weights is None or outputs is None:
        return False
    return 2 * weights <= 3 * activations + outputs and 4 * weights <= target.l2_cache_bytes


def ordered_tiles(
    rows: Sequence[LoopHandle], column: LoopHandle, target: CpuTarget, rows_first: bool
) -> list[LoopHandle]:
    """The loops over tiles in the order of the model, or the opposite where that is decided."""
    return [*rows, column] if rows_first != (decision_for(target).order == OPPOSITE) else [column, *rows]


def keep_in_registers(sch: Schedule, nest: Nest, vectorized: bool = True) -> None:
    """Unroll and vectorize the tile: with constant indices LLVM keeps every accumulator in a register."""
    if vectorized:
        sch.vectorize(nest.vector)
    for loop in (*nest.row_inner, nest.vectors):
        sch.unroll(loop)


def fuse_epilogue(
    sch: Schedule, anchor: BlockHandle, final: BlockHandle | None, tile: LoopHandle, target: CpuTarget
) -> None:
    """Compute the output of a tile right behind its accumulators, and keep these off memory.

    Without a `final` block the sums themselves are written to the anchor's buffer, for other stages to read.
    """
    width = lanes(target, str(sch.get(anchor).writes[0].source.dtype))
    # Lanes that all lie inside the tensor or all outside: the test of the last block is then one a vector.
    step = math.gcd(width, _columns(sch, anchor if final is None else final) or 1)
    if final is not None and 2 * step >= width:
        sch.reverse_compute_at(final, tile)
        sch.set_scope(anchor, 0, "local")
        write_out(sch, final, tile, step, unrolled=True)
        return
    copy = sch.cache_write(anchor, 0, "local")
    sch.reverse_compute_at(copy, tile)
    if final is not None:
        # Columns that fill no vectors. Unrolled, the epilogue would be one test an element, slow to compile and to
        # run: the tile goes to the stack in vectors, and the epilogue is a loop over it.
        sch.reverse_compute_at(final, tile)
        sch.set_scope(copy, 0, "local")
    write_out(sch, copy, tile, width, unrolled=True)


def _columns(sch: Schedule, block: BlockHandle) -> int | None:
    """Extent of a block's last spatial iterator."""
    spatial, _ = iterator_counts(sch, block)
    return extent(sch.get(block).iter_vars[spatial - 1].dom.extent)


def write_out(sch: Schedule, block: BlockHandle, tile: LoopHandle, step: int, *, unrolled: bool = False) -> None:
    """Vectorize the loops of a block below the tile loop, `step` lanes at a time, and unroll those over columns.

    With `unrolled` those over rows too: what is in registers has no index that varies.
    """
    loops = list(sch.get_loops(block))
    names = [loop_name(sch, loop) for loop in loops]
    rows, inner = loops[names.index(loop_name(sch, tile)) + 1 : -1], loops[-1]
    step = math.gcd(step, loop_extent(sch, inner) or 1)
    if step > 1 and can_vectorize(sch, inner):
        inner, vector = sch.split(inner, [None, step])
        sch.vectorize(vector)
    for loop in (*(rows if unrolled else ()), inner):
        sch.unroll(loop)


def schedule_producers(sch: Schedule, anchor: BlockHandle, final: BlockHandle, target: CpuTarget) -> None:
    """Schedule every other stage (padding, packing, sums, what comes before) on its own in front of the anchor."""
    own = {block_name(sch, anchor), block_name(sch, final)}
    for block in all_blocks(sch):
        if annotation(sch, block, roles.FOLDED) is not None:
            _fold_lines(sch, block)
    for block in all_blocks(sch):
        if block_name(sch, block) in own:
            continue
        if is_elementwise(sch, block):
            schedule_elementwise(sch, block, target)
        elif is_reduction(sch, block):
            schedule_reduction(sch, block, target)


def _fold_lines(sch: Schedule, block: BlockHandle) -> None:
    """Make one dimension of the two before the last one of what a block writes."""
    *_, size, _ = sch.get(block).writes[0].source.shape

    def flat(*index: tirx.Var) -> list[object]:
        return [*index[:-3], index[-3] * size + index[-2], index[-1]]

    sch.transform_layout(block, ("write", 0), flat)


def initialize(sch: Schedule, anchor: BlockHandle, nest: Nest, vector_loops: int = 1) -> None:
    """Zero the accumulators before the reduction, with the same unrolled and vectorized loops.

    The innermost `vector_loops` make up one vector.
    """
    initial = sch.decompose_reduction(anchor, nest.reduction[0])
    loops = list(sch.get_loops(initial))
    outer, vector = loops[:-vector_loops], loops[-vector_loops:]
    sch.vectorize(fused(sch, vector))
    for loop in outer[-nest.unrolled :]:
        sch.unroll(loop)


def parallel(sch: Schedule, loops: Sequence[LoopHandle], anchor: BlockHandle, products_per_cycle: float) -> LoopHandle:
    """Fuse loops into one, parallel where the anchor's products, or what it moves, pay for waking the threads."""
    statement = sch.get(anchor)
    count = static_product([extent(iterator.dom.extent) for iterator in statement.iter_vars])
    moved = [region_bytes(region) for region in (*statement.reads, *statement.writes)]
    run = fused(sch, loops)
    if count is None or max(count / products_per_cycle, sum(filter(None, moved)) / _BYTES_PER_CYCLE) >= _WORTH_CYCLES:
        sch.parallel(run)
    return run


def loop_name(sch: Schedule, loop: LoopHandle) -> str:
    """The name of a loop's variable, unique on its path."""
    return str(sch.get(loop).loop_var.name)
