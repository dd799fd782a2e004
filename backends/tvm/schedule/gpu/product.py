"""What both rules for products share: finding the stages, copies into shared memory, and the work behind the sums."""

from __future__ import annotations

from dataclasses import dataclass

from tvm import tirx

from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.expressions import element_bytes
from whet.backends.tvm.schedule.blocks import (
    BlockHandle,
    LoopHandle,
    Schedule,
    all_blocks,
    anchors,
    annotation,
    integers,
    is_elementwise,
    new_schedule,
    output_blocks,
    role,
)
from whet.backends.tvm.schedule.elementwise import inline_elementwise
from whet.backends.tvm.schedule.gpu.rule import ROW, THREAD, Declines

_ASYNC_BYTES = (4, 8, 16)
"""What one `cp.async` can copy."""
_ASYNC_CAPABILITY = 80
_SKEW_BYTES = 16
"""Added to each row of a tile in shared memory: eight rows then begin in eight different groups of banks."""


@dataclass(frozen=True)
class Parts:
    """The stages of a product and what its annotations say (see `roles`)."""

    operands: tuple[BlockHandle, BlockHandle]
    sums: BlockHandle
    final: BlockHandle
    tile: tuple[int, ...]
    across: tuple[int, ...]
    types: tuple[str, ...]
    vectors: tuple[int, ...]
    grouped: int
    asynchronous: bool


def open_product(func: tirx.PrimFunc, kind: str) -> tuple[Schedule, Parts]:
    """A schedule in which a product of this kind is followed by one stage, over [group, row, column].

    Raises Declines for other functions.
    """
    sch = new_schedule(func)
    found = anchors(sch, kind)
    if len(found) != 1:
        raise Declines(f"{len(found)} products of this kind")
    outputs = output_blocks(sch)
    if len(outputs) != 1 or not is_elementwise(sch, outputs[0]):
        raise Declines("the product is followed by more than element-wise work with one result")
    inline_elementwise(sch, keep=outputs)
    (sums,), (final,) = anchors(sch, kind), output_blocks(sch)
    operands = [block for block in all_blocks(sch) if role(sch, block) == roles.OPERAND]
    if len(operands) != 2 or len(all_blocks(sch)) != 4:
        raise Declines("stages beside the product cannot be computed where they are read")
    _by_rows(sch, sums, final)
    parts = Parts(
        (operands[0], operands[1]),
        sums,
        final,
        integers(sch, sums, roles.TILE),
        integers(sch, sums, roles.ACROSS),
        tuple(str(item) for item in annotation(sch, sums, roles.TYPES)),
        tuple(int(annotation(sch, block, roles.VECTOR)) for block in operands),
        int(annotation(sch, sums, roles.DOT)),
        bool(annotation(sch, sums, roles.ASYNCHRONOUS)),
    )
    return sch, parts


def _by_rows(sch: Schedule, sums: BlockHandle, final: BlockHandle) -> None:
    """Let `final` iterate over the sums that it reads, in place of its own dimensions."""
    buffer = sch.get(sums).writes[0].source
    block = sch.get(final)
    regions = [read.region for read in block.reads if read.source.same_as(buffer)]
    if len(regions) != 1 or not all(
        isinstance(axis.extent, tirx.IntImm) and axis.extent.value == 1 for axis in regions[0]
    ):
        raise Declines("each result needs more than one sum")
    variables = [iterator.var for iterator in block.iter_vars]
    read = [axis.min for axis in regions[0]]
    sch.transform_block_layout(final, tirx.IndexMap(variables, read, None))


def runs_asynchronously(parts: Parts, capability: int, steps: int | None) -> bool:
    """Whether copies overlap with arithmetic: the device can, every copy is one it has, and there are two tiles."""
    copied = [count * element_bytes(dtype) for count, dtype in zip(parts.vectors, parts.types, strict=True)]
    return (
        parts.asynchronous
        and capability >= _ASYNC_CAPABILITY
        and all(size in _ASYNC_BYTES for size in copied)
        and steps is not None
        and steps > 1
    )


def overlap(sch: Schedule, loop: LoopHandle) -> None:
    """Copy the next two tiles (the loop's first statements) while this one (the third) is multiplied."""
    sch.annotate(loop, "software_pipeline_stage", [0, 0, 1])
    sch.annotate(loop, "software_pipeline_order", [0, 1, 2])
    sch.annotate(loop, "software_pipeline_async_stages", [0])


def copy_tile(sch: Schedule, block: BlockHandle, vector: int, threads: tuple[int, ...]) -> None:
    """Share a tile's copy between (rows, lanes) of threads: neighbours copy what lies side by side."""
    line, k = list(sch.get_loops(block))[-2:]
    if annotation(sch, block, roles.BY_LINES):
        sch.reorder(k, line)
        line, k = k, line
    copied = sch.fuse(line, k)
    _, row, lane, inner = sch.split(copied, [None, *threads, vector])
    sch.bind(row, ROW)
    sch.bind(lane, THREAD)
    if vector > 1:
        sch.vectorize(inner)


def skew(sch: Schedule, block: BlockHandle, depth: int, dtype: str) -> None:
    """Let rows of a tile begin in different banks."""
    sch.storage_align(block, 0, axis=-2, factor=depth, offset=_SKEW_BYTES // element_bytes(dtype))
