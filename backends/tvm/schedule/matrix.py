"""Contractions by a matrix unit: sums in its registers over the whole reduction, the epilogue on the tile behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import tvm_ffi
from tvm import tirx

from whet.backends.tvm.intrinsics.instructions import DotInstruction
from whet.backends.tvm.intrinsics.matrix_unit import (
    CONFIGURE,
    RELEASE,
    matrix_code,
    matrix_function,
    register_matrix,
)
from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.cpu import CpuTarget, lanes
from whet.backends.tvm.kernels.expressions import extent
from whet.backends.tvm.schedule.blocks import (
    IMPORT_LLVM,
    BlockHandle,
    LoopHandle,
    Schedule,
    annotation,
    integers,
    iterator_counts,
)
from whet.backends.tvm.schedule.streaming import bytes_ahead
from whet.backends.tvm.schedule.tiled import ordered_tiles, parallel, rows_outside, write_out

SURROUND: Final = "whet.surround"
"""Annotation of a loop over tiles: functions to call before and after a run of them, on the thread that computes it."""

# Each run configures the unit once, which costs as much as some twenty multiplications; threads share runs equally.
_MOST_RUNS: Final = 32
# Vectors of products that a core forms in a cycle where the sums are so few that waking others is in question: moving
# operands and results takes longer than the matrix unit, which forms sixteen.
_VECTORS_PER_CYCLE: Final = 4


def schedule_matrix(
    sch: Schedule, anchor: BlockHandle, final: BlockHandle | None, target: CpuTarget, instruction: DotInstruction
) -> None:
    """Tile a contraction with the block behind it, or (None) on its own: its sums are then written as they are."""
    tile = instruction.matrix
    assert tile is not None
    instruction = replace(instruction, matrix=replace(tile, ahead=bytes_ahead(sch, anchor, target)))
    rows, block = integers(sch, anchor, roles.ROWS), int(annotation(sch, anchor, roles.BLOCK))
    spatial, _ = iterator_counts(sch, anchor)
    loops = list(sch.get_loops(anchor))
    first = spatial - 1 - len(rows)
    outer_rows, inner_rows = _split(sch, loops[first : spatial - 1], rows)
    (outer_column,), (columns,) = _split(sch, [loops[spatial - 1]], [block])
    *taps, groups, products = loops[spatial:]
    (steps,), (group,) = _split(sch, [groups], [tile.depth // instruction.group])
    by_rows = rows_outside(sch, anchor, final, target)
    outer = [*loops[:first], *ordered_tiles(outer_rows, outer_column, target, by_rows)]
    planes = len(rows) > 1 and rows[-2] > 1
    tiled = inner_rows[-2 if planes else -1 :]
    sch.reorder(*outer, *inner_rows[: len(inner_rows) - len(tiled)], *taps, steps, *tiled, columns, group, products)

    stored = sch.cache_write(anchor, 0, "local")
    sch.reverse_compute_at(stored, outer[-1])
    if final is not None:
        sch.reverse_compute_at(final, outer[-1])
        sch.set_scope(stored, 0, "local")
        write_out(sch, final, outer[-1], lanes(target, instruction.total))
    run = parallel(sch, outer, anchor, _VECTORS_PER_CYCLE * instruction.lanes * instruction.group)
    zeroed = sch.decompose_reduction(anchor, taps[0] if taps else steps)
    sch.annotate(run, IMPORT_LLVM, matrix_code(instruction))
    sch.annotate(run, SURROUND, [matrix_function(instruction, part) for part in (CONFIGURE, RELEASE)])
    names = register_matrix(instruction, planes, "global" if final is None else "local")
    axes = len(tiled) + 1
    sch.tensorize(sch.get_loops(zeroed)[-axes], names.zero)
    sch.tensorize(tiled[0], names.step)
    sch.tensorize(sch.get_loops(stored)[-axes], names.store)


def _split(
    sch: Schedule, loops: Sequence[LoopHandle], steps: Sequence[int]
) -> tuple[list[LoopHandle], list[LoopHandle]]:
    pairs = [sch.split(loop, [None, step]) for loop, step in zip(loops, steps, strict=True)]
    return [outer for outer, _ in pairs], [inner for _, inner in pairs]


def with_runs(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """Cut loops over tiles into runs, each between the calls that the loop is annotated with.

    Not by primitives of the schedule: it has none for a call, and finds no blocks below a loop that was both fused and
    split.
    """

    def cut(loop: tirx.For) -> Any:
        names = loop.annotations.get(SURROUND, None)
        if names is None:
            return loop
        before, after = (tirx.Evaluate(tirx.call_extern("int32", str(name))) for name in names)
        kept = {key: value for key, value in loop.annotations.items() if key != SURROUND}
        count = extent(loop.extent)
        if count is None:
            # Each tile is a run.
            return tirx.For(
                loop.loop_var, loop.min, loop.extent, loop.kind, _sequence(before, loop.body, after), None, kept
            )
        most = _MOST_RUNS if loop.kind == tirx.ForKind.PARALLEL else 1
        runs = max(size for size in range(1, most + 1) if count % size == 0)
        run, turn = (tirx.Var(name, str(loop.loop_var.ty.dtype)) for name in ("run", "tile"))
        place = run * (count // runs) + turn
        body = tvm_ffi.structural_map(
            loop.body, (type(loop.loop_var), lambda variable: place if variable.same_as(loop.loop_var) else variable)
        )
        tiles = tirx.For(turn, loop.min, count // runs, tirx.ForKind.SERIAL, body)
        return tirx.For(run, loop.min, runs, loop.kind, _sequence(before, tiles, after), None, kept)

    return func.with_body(tvm_ffi.structural_map(func.body, (tirx.For, cut)))


def _sequence(*statements: Any) -> tirx.SeqStmt:
    return tirx.SeqStmt(list(statements))
