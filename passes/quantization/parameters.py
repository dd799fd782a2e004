"""Affine quantization parameters from value ranges: q = sat(rne(x / scale) + zero_point) (Jacob et al., CVPR 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from whet.ir.types import DType
from whet.passes.quantization.formats import Format, weight_format
from whet.passes.quantization.rounding import LayerInputs, Nearest, Rounding

# The smallest scale: zero ranges (a channel of zeros) must still divide.
SMALLEST_SCALE = float(torch.finfo(torch.float32).tiny * 2**20)
# How far, and in how many steps, the search for the best clip shrinks a range.
_SMALLEST_CLIP, _CLIP_STEPS = 0.4, 61
CLIPS: Final = ("minmax", "mse")


@dataclass(frozen=True)
class Affine:
    """Scale (f32, positive) and zero point (i32) of one tensor, of the same shape: [] or [channels].

    `bits` of the codes are used where they are fewer than the type's (None: all of them).
    """

    scale: Tensor
    zero_point: Tensor
    dtype: DType
    bits: int | None = None

    @property
    def format(self) -> Format:
        return Format(self.dtype, self.dtype.bits if self.bits is None else self.bits)


def asymmetric(minimum: float, maximum: float, dtype: DType) -> Affine:
    """Per tensor, covering [minimum, maximum] and zero, which is exact: scale = range / levels.

    Computed in float64 and rounded once (numerics contract).
    """
    return affine(minimum, maximum, Format(dtype, dtype.bits))


def affine(minimum: float, maximum: float, form: Format) -> Affine:
    """Per tensor, covering [minimum, maximum] and zero, which is exact; in float64, rounded once.

    Asymmetric: scale = (maximum - minimum) / (codes - 1). Symmetric: scale = max |x| / the codes above the middle.
    """
    low, high = form.codes
    bottom, top = min(minimum, 0.0), max(maximum, 0.0)
    if form.symmetric:
        step = max(-bottom, top) / (high - form.middle)
        return Affine(_scale(step), torch.tensor(form.middle, dtype=torch.int32), form.dtype, form.bits)
    scale = _scale((top - bottom) / (high - low))
    zero_point = round(low - bottom / scale.item())
    return Affine(scale, torch.tensor(min(max(zero_point, low), high), dtype=torch.int32), form.dtype, form.bits)


def _scale(step: float) -> Tensor:
    return torch.tensor(max(step, SMALLEST_SCALE), dtype=torch.float64).float()


def symmetric_per_channel(weight: Tensor, dtype: DType = DType.I8) -> Affine:
    """One scale a row of dimension 0: max |w| / largest integer; zero point 0, the lowest integer unused."""
    return weight_parameters(weight, dtype.bits)


def weight_parameters(weight: Tensor, bits: int = 8, *, per_channel: bool = True, clip: str = "minmax") -> Affine:
    """Symmetric parameters of a weight, one a row of dimension 0 or one in all; zero point 0.

    scale = clip · max |w| / (2ᵇ⁻¹ - 1), with clip 1 ("minmax"), or that in [0.4, 1] with the smallest squared
    error ("mse", as in Banner et al., NeurIPS 2019).
    """
    form = weight_format(bits)
    rows = weight.detach().double().reshape(weight.shape[0] if per_channel else 1, -1)
    scale = row_scales(rows, form, clip)
    if not per_channel:
        scale = scale.reshape(())
    return Affine(scale, torch.zeros(scale.shape, dtype=torch.int32), form.dtype, form.bits)


def group_scales(weight: Tensor, group_size: int, bits: int, clip: str = "minmax") -> Tensor:
    """Symmetric scales f32 [out, in / group_size] of a weight [out, in], one a group of neighbouring inputs.

    `in` must be a multiple of `group_size`.
    """
    rows = weight.detach().double().reshape(-1, group_size)
    return row_scales(rows, weight_format(bits), clip).reshape(weight.shape[0], -1)


def row_scales(rows: Tensor, form: Format, clip: str = "minmax") -> Tensor:
    """One scale f32 for each row of a float64 matrix, by the rule `clip` of `weight_parameters`."""
    _, high = form.codes
    largest = rows.abs().amax(1) if rows.numel() else rows.new_zeros(len(rows))
    full = (largest / high).clamp_min(SMALLEST_SCALE).float()
    return full if clip == "minmax" else _best_clip(rows, full, high)


def _best_clip(rows: Tensor, full: Tensor, high: int) -> Tensor:
    best, least = full, torch.full_like(full, torch.inf, dtype=torch.float64)
    for ratio in torch.linspace(1.0, _SMALLEST_CLIP, _CLIP_STEPS).tolist():
        scale = (full.double() * ratio).clamp_min(SMALLEST_SCALE).float()
        step = scale.double()[:, None]
        error = (torch.round(rows / step).clamp(-high, high) * step - rows).square().sum(1)
        best = torch.where(error < least, scale, best)
        least = torch.minimum(error, least)
    return best


def quantize_weight(
    weight: Tensor, affine: Affine, rounding: Rounding | None = None, inputs: LayerInputs | None = None
) -> Tensor:
    """The integers of a weight under symmetric parameters, one a row of dimension 0 or one in all.

    To nearest, or by a `rounding`, which may look at what the layer reads (`inputs`).
    """
    _, high = weight_format(affine.format.bits).codes
    scale = affine.scale.double().reshape(-1, *([1] * (weight.dim() - 1))) if affine.scale.dim() else affine.scale
    zero_point = torch.zeros((), dtype=torch.int32)
    codes = (rounding or Nearest()).round(weight, scale, zero_point, -high, high, inputs)
    return codes.to(affine.dtype.torch)
