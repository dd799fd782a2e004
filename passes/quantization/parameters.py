"""Affine quantization parameters from value ranges: q = sat(rne(x / scale) + zero_point) (Jacob et al., CVPR 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from whet.ir.types import DType

# The smallest scale: zero ranges (a channel of zeros) must still divide.
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny * 2**20


@dataclass(frozen=True)
class Affine:
    """Scale (f32, positive) and zero point (i32) of one tensor, of the same shape: [] or [channels]."""

    scale: Tensor
    zero_point: Tensor
    dtype: DType


def asymmetric(minimum: float, maximum: float, dtype: DType) -> Affine:
    """Per tensor, covering [minimum, maximum] and zero, which is exact: scale = range / levels.

    Computed in float64 and rounded once (numerics contract).
    """
    low, high = dtype.integer_range
    bottom, top = min(minimum, 0.0), max(maximum, 0.0)
    scale = torch.tensor(max((top - bottom) / (high - low), float(_SMALLEST_SCALE)), dtype=torch.float64).float()
    zero_point = round(low - bottom / scale.item())
    return Affine(scale, torch.tensor(min(max(zero_point, low), high), dtype=torch.int32), dtype)


def symmetric_per_channel(weight: Tensor, dtype: DType = DType.I8) -> Affine:
    """One scale a row of dimension 0: max |w| / largest integer; zero point 0, the lowest integer unused."""
    _, high = dtype.integer_range
    largest = weight.detach().double().abs().flatten(1).amax(1)
    scale = (largest / high).clamp_min(float(_SMALLEST_SCALE)).float()
    return Affine(scale, torch.zeros(len(scale), dtype=torch.int32), dtype)


def quantize_weight(weight: Tensor, affine: Affine) -> Tensor:
    """The integers of a weight under a symmetric parameter per row of dimension 0."""
    _, high = affine.dtype.integer_range
    scale = affine.scale.double().reshape(-1, *([1] * (weight.dim() - 1)))
    return torch.round(weight.double() / scale).clamp(-high, high).to(affine.dtype.torch)
