"""Tensor expressions of every operation: one table a family, merged here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from whet.backends.tvm.lowering import (
    contraction,
    elementwise,
    gpu,
    indexing,
    integer,
    movement,
    normalization,
    pooling,
    quantized,
    recurrent,
    recurrent_integer,
    reduction,
    resize,
    scan,
    sorting,
    source,
    stored,
)
from whet.backends.tvm.lowering.context import LoweringContext
from whet.ir.graph import Operation

Lowering = Callable[[LoweringContext, Operation], Any]

_FAMILIES = (
    source,
    elementwise,
    quantized,
    stored,
    movement,
    contraction,
    integer,
    reduction,
    normalization,
    pooling,
    scan,
    indexing,
    sorting,
    resize,
    recurrent,
    recurrent_integer,
)


def _merge(tables: tuple[Mapping[str, Lowering], ...]) -> dict[str, Lowering]:
    merged: dict[str, Lowering] = {}
    for table in tables:
        twice = merged.keys() & table.keys()
        if twice:
            raise ValueError(f"two lowerings for {sorted(twice)}")
        merged.update(table)
    return merged


LOWERINGS = _merge(tuple(family.LOWERINGS for family in _FAMILIES))
"""operation name -> lowering(context, operation), which returns a te.Tensor, or a tuple of them."""

LOWERINGS_BY_KIND: Mapping[str, Mapping[str, Lowering]] = {"cpu": LOWERINGS, "cuda": LOWERINGS | gpu.LOWERINGS}
"""The table of each kind of target: GPUs want contractions that their schedules can tile."""
