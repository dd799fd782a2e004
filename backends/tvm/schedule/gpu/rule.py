"""What a schedule rule for GPUs is, and how it declines."""

from __future__ import annotations

from typing import Any, Final, Protocol

import tvm
from tvm import tirx

BLOCK: Final = "blockIdx.x"
THREAD: Final = "threadIdx.x"
ROW: Final = "threadIdx.y"


class Declines(Exception):
    """A rule does not fit a function; the text says why."""


class GpuRule(Protocol):
    """Binds all loops of the functions of one kind to blocks and threads, and declines all others."""

    @property
    def name(self) -> str:
        """Short name, written into the scheduled function's attributes."""

    def apply(self, func: tirx.PrimFunc, target: Any) -> tvm.s_tir.Schedule:
        """The scheduled function. Raises Declines, or a ScheduleError of TVM, where the rule does not fit."""
