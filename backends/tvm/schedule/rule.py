"""What a schedule rule is."""

from __future__ import annotations

from typing import Protocol

import tvm
from tvm import tirx

from whet.backends.tvm.kernels.cpu import CpuTarget


class Rule(Protocol):
    """Schedules the functions of one kind and declines all others."""

    @property
    def name(self) -> str:
        """Short name, written into the scheduled function's attributes."""

    def apply(self, func: tirx.PrimFunc, target: CpuTarget) -> tvm.s_tir.Schedule | None:
        """The scheduled function, None where the rule does not fit.

        A `ScheduleError` raised inside counts as None too: the next rule starts from the untouched function.
        """
