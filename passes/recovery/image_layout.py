"""Pictures and filters channels-last in memory, which CPU kernels run fastest on; shapes and values stay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from whet.ir.graph import Graph, Value

FORMS: Final = {"masked": 0, "lookup": 0, "fake_quantize": 0, "cast": 0, "transpose": 0, "reshape": 0}
"""Operation that may stand between a weight and its layer -> the operand that is learned."""


def arranged_inputs(graph: Graph, tensors: Sequence[Tensor]) -> list[Tensor]:
    """A graph's inputs; those of rank 4 channels-last in memory, where the graph has 2-d convolutions."""
    if not any(value.type.rank == 4 and is_picture(value) for value in graph.values()):
        return list(tensors)
    return [tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor for tensor in tensors]


def arranged_filters(graph: Graph) -> dict[str, Tensor]:
    """Filters of 2-d convolutions, channels-last in memory, by the name of their constant."""
    return {
        value.name: value.constant.contiguous(memory_format=torch.channels_last)
        for value in graph.constants
        if value.constant is not None and is_filter(value)
    }


def is_picture(value: Value) -> bool:
    """Whether a convolution reads this value."""
    return any(operation.name == "conv" and index == 0 for operation, index in value.uses)


def is_filter(value: Value) -> bool:
    """Whether this is the weight of a 2-d convolution, or what it is made of element by element."""
    if value.type.rank != 4:
        return False
    return any(
        (operation.name == "conv" and index == 1)
        or (index == FORMS.get(operation.name) and is_filter(operation.result))
        for operation, index in value.uses
    )
