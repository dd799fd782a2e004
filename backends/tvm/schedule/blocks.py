"""Reading a scheduled function: its blocks, what they are annotated with, and which of them are outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import tvm
import tvm_ffi
from tvm import tirx

from whet.backends.tvm.kernels import roles
from whet.backends.tvm.kernels.expressions import element_bytes, extent
from whet.backends.tvm.kernels.math import expression_dtype

Schedule: TypeAlias = Any
"""`tvm.s_tir.Schedule`."""
BlockHandle: TypeAlias = Any
"""A block of a schedule (TVM's SBlockRV); it dies when the block is inlined."""
LoopHandle: TypeAlias = Any
"""A loop of a schedule (TVM's LoopRV)."""

IMPORT_LLVM: Final = "pragma_import_llvm"
"""TVM's annotation of a loop: LLVM code that the function with this loop is linked with."""

_SPATIAL = 0
_REDUCTION = 2


def new_schedule(func: tirx.PrimFunc | tvm.IRModule) -> Schedule:
    """A schedule without trace whose errors do not print the whole program."""
    return tvm.s_tir.Schedule(func, error_render_level="none", enable_check=True)


def all_blocks(sch: Schedule) -> list[BlockHandle]:
    """Every block below the root, in program order."""
    return list(sch.get_child_blocks(sch.get_sblock("root")))


def block_name(sch: Schedule, block: BlockHandle) -> str:
    """The block's name, unique in its function."""
    return str(sch.get(block).name_hint)


def annotation(sch: Schedule, block: BlockHandle, key: str) -> Any:
    """An annotation of a block, None where it has not got it."""
    return sch.get(block).annotations.get(key, None)


def integers(sch: Schedule, block: BlockHandle, key: str) -> tuple[int, ...]:
    """An annotation that is a list of integers."""
    value = annotation(sch, block, key)
    return tuple(int(item) for item in value)


def role(sch: Schedule, block: BlockHandle) -> str | None:
    """The stage's role (see `whet.backends.tvm.kernels.roles`), None for element-wise work."""
    value = annotation(sch, block, roles.ROLE)
    return None if value is None else str(value)


def anchors(sch: Schedule, kind: str) -> list[BlockHandle]:
    """The anchor blocks of one kind."""
    return [
        block
        for block in all_blocks(sch)
        if role(sch, block) == roles.ANCHOR and annotation(sch, block, roles.KIND) == kind
    ]


def iterator_counts(sch: Schedule, block: BlockHandle) -> tuple[int, int]:
    """How many spatial and how many reduction iterators a block has."""
    kinds = [iterator.iter_type for iterator in sch.get(block).iter_vars]
    return sum(kind == _SPATIAL for kind in kinds), sum(kind == _REDUCTION for kind in kinds)


def is_elementwise(sch: Schedule, block: BlockHandle) -> bool:
    """Whether every iterator of the block is spatial."""
    spatial, _ = iterator_counts(sch, block)
    return spatial == len(sch.get(block).iter_vars)


def is_reduction(sch: Schedule, block: BlockHandle) -> bool:
    """Whether the block has reduction iterators, and nothing but these and spatial ones."""
    spatial, reduction = iterator_counts(sch, block)
    return reduction > 0 and spatial + reduction == len(sch.get(block).iter_vars)


def output_blocks(sch: Schedule) -> list[BlockHandle]:
    """The blocks that write buffers of the function's own, in program order."""
    return list(sch.get_output_blocks(sch.get_sblock("root")))


def loop_extent(sch: Schedule, loop: LoopHandle) -> int | None:
    """A loop's number of turns, None where it is symbolic."""
    value = sch.get(loop).extent
    return int(value) if isinstance(value, tirx.IntImm) else None


def fused(sch: Schedule, loops: Sequence[LoopHandle]) -> LoopHandle:
    """One loop out of one or several, which follow each other."""
    return sch.fuse(*loops) if len(loops) > 1 else loops[0]


def static_product(extents: Sequence[int | None]) -> int | None:
    """The product of extents, None as soon as one of them is symbolic."""
    product = 1
    for value in extents:
        if value is None:
            return None
        product *= value
    return product


def region_bytes(region: tirx.BufferRegion) -> int | None:
    """Bytes of the whole buffer that a block reads or writes in; None where it has a symbolic extent."""
    count = static_product([extent(size) for size in region.source.shape])
    return None if count is None else count * element_bytes(str(region.source.dtype))


# What TVM's vectorizer computes lane by lane.
_SCALAR_CALLS = frozenset(
    f"tirx.{name}"
    for name in (
        "acos", "acosh", "asin", "asinh", "atan", "atan2", "atanh", "copysign", "erf", "fmod", "hypot", "isfinite",
        "isinf", "ldexp", "log1p", "nextafter", "rsqrt", "call_extern", "call_pure_extern",
    )
)  # fmt: skip


def can_vectorize(sch: Schedule, loop: LoopHandle) -> bool:
    """Whether TVM's vectorizer takes the loop: not where it binds names beside calls without a vector form.

    It visits such an expression twice then, and refuses the names that it meets again; nor where the bits of a truth
    value are bound, which its simplifier wants to be one number. LLVM vectorizes what it can of a loop that is left as
    it is.
    """
    lets: list[tirx.Let] = []
    names: set[str] = set()
    truths: list[tirx.Cast] = []

    def on_call(call: tvm.ir.Call) -> None:
        if isinstance(call.op, tvm.ir.Op):
            names.add(call.op.name)

    def on_cast(cast: tirx.Cast) -> None:
        if expression_dtype(cast.value) == "bool":
            truths.append(cast)

    walked = ((tirx.Let, lets.append), (tvm.ir.Call, on_call), (tirx.Cast, on_cast))
    tvm_ffi.structural_walk(sch.get(loop).body, walked)
    if not lets:
        return True
    return names.isdisjoint(_SCALAR_CALLS) and not (truths and "tirx.reinterpret" in names)
