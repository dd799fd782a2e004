"""Pictures and filters channels-last in memory where CPU kernels run fastest on that; shapes and values stay.

Channels-last kernels vectorize over channels: with 16 of them a training step of ResNet-20 takes 0.7 of the time that
it takes channels-first, with 8, 11 or 20 of them 1.4 to 3 times as long (bf16, AVX-512).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from whet.ir.graph import Graph, Value

FORMS: Final = {"masked": 0, "lookup": 0, "fake_quantize": 0, "cast": 0, "transpose": 0, "reshape": 0}
"""Operation that may stand between a weight and its layer -> the operand that is learned."""

VECTOR: Final = 16
"""Channels that fill a vector of 512 bits with float32."""
_FEW: Final = 4
"""Input channels of a picture, or of a depthwise filter, which have kernels of their own."""


def arranged_inputs(layout: torch.memory_format, tensors: Sequence[Tensor]) -> list[Tensor]:
    """A graph's inputs; those of rank 4 in the memory format of its filters (`filter_format`)."""
    return [tensor.contiguous(memory_format=layout) if tensor.dim() == 4 else tensor for tensor in tensors]


def arranged_filters(graph: Graph, layout: torch.memory_format) -> dict[str, Tensor]:
    """Filters of 2-d convolutions in a memory format, by the name of their constant."""
    return {
        value.name: value.constant.contiguous(memory_format=layout)
        for value in graph.constants
        if value.constant is not None and is_filter(value)
    }


def filter_format(graph: Graph) -> torch.memory_format:
    """Channels-last where most 2-d convolutions read and write whole vectors of channels."""
    shapes = [value.type.static_shape for value in graph.constants if is_filter(value)]
    whole = sum(shape[0] % VECTOR == 0 and (shape[1] % VECTOR == 0 or shape[1] < _FEW) for shape in shapes)
    return torch.channels_last if 2 * whole > len(shapes) else torch.contiguous_format


def is_filter(value: Value) -> bool:
    """Whether this is the weight of a 2-d convolution, or what it is made of element by element."""
    if value.type.rank != 4:
        return False
    return any(
        (operation.name == "conv" and index == 1)
        or (index == FORMS.get(operation.name) and is_filter(operation.result))
        for operation, index in value.uses
    )
