"""Workloads that differ in their extents alone: what was best for one is a good start for the other."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Final

from whet.backends.tvm.kernels.decisions import Decision

_NUMBER: Final = re.compile(r"(?<![\w%])\d+(?!\w)")
_MOST: Final = 2


def alike(text: str, winners: Iterable[tuple[str, Decision]]) -> list[Decision]:
    """Decisions for workloads of the same form, those of the nearest extents first."""
    form, sizes = _form(text), _sizes(text)
    found = []
    for other, decision in winners:
        if other != text and decision.tile is not None and _form(other) == form:
            distance = sum(abs(math.log((a + 1) / (b + 1))) for a, b in zip(sizes, _sizes(other), strict=True))
            found.append((distance, decision))
    found.sort(key=lambda item: item[0])
    return list(dict.fromkeys(decision for _, decision in found))[:_MOST]


def _form(text: str) -> str:
    return _NUMBER.sub("#", text)


def _sizes(text: str) -> list[int]:
    return [int(number) for number in _NUMBER.findall(text)]
