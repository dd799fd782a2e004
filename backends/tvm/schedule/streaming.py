"""Which contractions have their weights prefetched (`whet.backends.tvm.prefetches`), and how far ahead."""

from __future__ import annotations

from typing import Final

from whet.backends.tvm.kernels.cpu import CpuTarget
from whet.backends.tvm.prefetches import PRAGMA
from whet.backends.tvm.schedule.blocks import BlockHandle, LoopHandle, Schedule, region_bytes

# Which operand of the product a contraction reads second.
_WEIGHTS: Final = 1

# 4 KiB ahead came late, from 8 to 32 KiB made no difference.
_AHEAD_BYTES: Final = 8192


def bytes_ahead(sch: Schedule, anchor: BlockHandle, target: CpuTarget) -> int:
    """How far ahead of their use the weights of a contraction are to be fetched; 0: the second cache keeps them.

    x86-64 alone: elsewhere nothing was measured.
    """
    size = region_bytes(sch.get(anchor).reads[_WEIGHTS])
    if size is None or not target.triple.startswith("x86_64"):
        return 0
    return _AHEAD_BYTES if size > target.l2_cache_bytes // 2 else 0


def stream_weights(sch: Schedule, anchor: BlockHandle, step: LoopHandle, target: CpuTarget) -> None:
    """Mark the loop over the steps of a reduction whose weights are to be prefetched."""
    ahead = bytes_ahead(sch, anchor, target)
    if ahead:
        sch.annotate(step, PRAGMA, ahead)
