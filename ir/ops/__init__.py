"""The catalogue of operations, by name. Adding one: its class in a family file, a converter, a lowering, a
test row.
"""

from __future__ import annotations

from collections.abc import Iterable

from whet.ir.definition import OpDefinition
from whet.ir.ops import (
    attention,
    contraction,
    elementwise,
    fake_quantize,
    indexing,
    normalization,
    pooling,
    quantized,
    recurrent,
    recurrent_integer,
    reduction,
    resize,
    shape,
    sorting,
    source,
    weights,
)


def _catalogue(families: Iterable[tuple[OpDefinition, ...]]) -> dict[str, OpDefinition]:
    catalogue: dict[str, OpDefinition] = {}
    for definition in (definition for family in families for definition in family):
        if definition.name in catalogue:
            raise ValueError(f"two operations are named {definition.name!r}")
        catalogue[definition.name] = definition
    return catalogue


CATALOGUE = _catalogue(
    family.DEFINITIONS
    for family in (
        source,
        elementwise,
        contraction,
        attention,
        shape,
        normalization,
        reduction,
        indexing,
        sorting,
        pooling,
        quantized,
        fake_quantize,
        recurrent,
        recurrent_integer,
        resize,
        weights,
    )
)

__all__ = ["CATALOGUE"]
