"""Converters from ATen operators to Whet's operations: one table a family, merged here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from whet.frontend.converters import (
    attention,
    composite,
    contraction,
    convolution,
    creation,
    elementwise,
    embedding,
    indexing,
    movement,
    normalization,
    pooling,
    recurrent,
    reduction,
    resize,
    shape,
    sorting,
)

Converter = Callable[..., Any]
aten = torch.ops.aten


def _merge(tables: tuple[Mapping[Any, Converter], ...]) -> dict[Any, Converter]:
    merged: dict[Any, Converter] = {}
    for table in tables:
        twice = merged.keys() & table.keys()
        if twice:
            raise ValueError(f"two converters for {sorted(map(str, twice))}")
        merged.update(table)
    return merged


CONVERTERS = _merge(
    (
        elementwise.CONVERTERS,
        composite.CONVERTERS,
        creation.CONVERTERS,
        contraction.CONVERTERS,
        convolution.CONVERTERS,
        attention.CONVERTERS,
        shape.CONVERTERS,
        movement.CONVERTERS,
        indexing.CONVERTERS,
        sorting.CONVERTERS,
        embedding.CONVERTERS,
        normalization.CONVERTERS,
        reduction.CONVERTERS,
        pooling.CONVERTERS,
        recurrent.CONVERTERS,
        resize.CONVERTERS,
    )
)
"""operator -> converter(context, *arguments in the schema's order)."""

BY_NAME: dict[str, Converter] = {**contraction.BY_NAME}
"""The same for operators of other libraries, which exist only once those are imported."""


def converter_of(target: Any) -> Converter | None:
    """The converter of an operator; None where there is none."""
    return CONVERTERS.get(target) or BY_NAME.get(str(target))


IGNORED = frozenset(
    {
        aten._assert_tensor_metadata.default,
        aten._assert_scalar.default,
        aten._assert_async.msg,
        aten._assert_async.default,
        aten.sym_constrain_range.default,
        aten.sym_constrain_range_for_size.default,
        torch.ops.higher_order.print,
    }
)
"""Run-time assertions of the program: shapes are checked by the runtime, values by nobody."""
