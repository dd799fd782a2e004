"""The last rule: leaves a function as it is."""

from __future__ import annotations

from dataclasses import dataclass

import tvm
from tvm import tirx

from whet.backends.tvm.kernels.cpu import CpuTarget
from whet.backends.tvm.schedule.blocks import new_schedule


@dataclass(frozen=True)
class Fallback:
    """Accepts every function and changes nothing: serial loops, which LLVM may vectorize."""

    name: str = "fallback"

    def apply(self, func: tirx.PrimFunc, target: CpuTarget) -> tvm.s_tir.Schedule | None:
        """See `Rule`."""
        return new_schedule(func)
