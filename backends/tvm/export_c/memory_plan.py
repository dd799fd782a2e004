"""Offsets of buffers in one arena, so that buffers that are needed at the same time never overlap.

Greedy by size (Pisarchyk and Lee, "Efficient Memory Management for Deep Neural Net Inference", 2020,
arXiv:2001.03288): the largest buffer first, each into the smallest gap that its neighbours in time leave.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

ALIGNMENT: Final = 64
"""Bytes: kernels count on it (a cache line, and the widest vector)."""


@dataclass(frozen=True)
class Buffer:
    """`size` bytes that hold something from step `first` to step `last`, both included."""

    size: int
    first: int
    last: int

    def meets(self, other: Buffer) -> bool:
        """Whether both are needed at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class MemoryPlan:
    """Offsets in bytes, one a buffer and each a multiple of `ALIGNMENT`; `peak` is the size of the arena."""

    offsets: tuple[int, ...]
    peak: int


def align(size: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def plan_memory(buffers: Sequence[Buffer]) -> MemoryPlan:
    """Place every buffer; those of size 0 lie at 0 and take nothing."""
    offsets = [0] * len(buffers)
    placed: list[int] = []
    for index in sorted(range(len(buffers)), key=lambda index: (-buffers[index].size, buffers[index].first)):
        buffer = buffers[index]
        if buffer.size == 0:
            continue
        taken = [(offsets[other], align(buffers[other].size)) for other in placed if buffer.meets(buffers[other])]
        offsets[index] = _smallest_gap(sorted(taken), align(buffer.size))
        placed.append(index)
    peak = max((offsets[index] + align(buffers[index].size) for index in placed), default=0)
    return MemoryPlan(tuple(offsets), peak)


def _smallest_gap(taken: Iterable[tuple[int, int]], size: int) -> int:
    """Where `size` bytes go: into the smallest gap between the (offset, size) that are taken, else behind them."""
    end = 0
    best: tuple[int, int] | None = None
    for offset, length in taken:
        gap = offset - end
        if gap >= size and (best is None or gap < best[0]):
            best = gap, end
        end = max(end, offset + length)
    return end if best is None else best[1]


def most_live(buffers: Sequence[Buffer]) -> int:
    """The most bytes that are needed at one step: no plan can do with less."""
    return max(
        (sum(align(other.size) for other in buffers if other.first <= at.first <= other.last) for at in buffers),
        default=0,
    )
