"""How weights become integers: the protocol of a rounding, and rounding to nearest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from whet.errors import PassError


@dataclass(frozen=True)
class LayerInputs:
    """What a layer reads on the calibration data, as the rows x of y = W x (convolutions: one row an output position).

    With G groups and K = columns of W (in / G · kernel size): all that the squared error of a layer depends on,
    E‖ΔW x‖² = Σ_o ΔW[o] · gram · ΔW[o]ᵀ, and all that the mean of its outputs does.

    Attributes:
        gram: E[x xᵀ], f32 [G, K, K]; [G, 0, 0] where only means were wanted.
        mean: E[x], f32 [G, K].
        rows: how many rows were averaged.
    """

    gram: Tensor
    mean: Tensor
    rows: int


class Rounding(Protocol):
    """Chooses the integers that stand for a weight. Implementations are frozen dataclasses."""

    @property
    def needs_inputs(self) -> bool:
        """Whether `round` takes LayerInputs, which need calibration data (layerwise.layer_inputs)."""
        ...

    def round(
        self, weight: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, inputs: LayerInputs | None
    ) -> Tensor:
        """Integers q in [low, high], i32 and of the weight's shape, with weight ≈ (q - zero_point) · scale.

        A weight that is exactly 0 gets its zero point: what was pruned stays so.

        Args:
            weight: [out, ...] with the contracted dimensions flattened in order: [out, in] of linear, [out,
                in / groups, *kernel] of conv.
            scale: f32, broadcasts to `weight` (per row [out, 1, ...]; per group repeated to [out, in]).
            zero_point: i32, broadcasts likewise.
            low: smallest integer.
            high: largest integer.
            inputs: what the layer reads; None where `needs_inputs` is False.

        Raises PassError where inputs are needed and missing, or do not fit the weight.
        """
        ...


@dataclass(frozen=True)
class Nearest:
    """q = clamp(rne(w / scale) + zero_point, low, high), in float64."""

    needs_inputs: ClassVar[bool] = False

    def round(
        self, weight: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int, inputs: LayerInputs | None = None
    ) -> Tensor:
        return round_nearest(weight, scale, zero_point, low, high)


def round_nearest(weight: Tensor, scale: Tensor, zero_point: Tensor, low: int, high: int) -> Tensor:
    """Integers nearest to weight / scale + zero_point, i32 and of the weight's shape, ties to even."""
    scaled = torch.round(weight.detach().double() / scale.double()) + zero_point
    return scaled.clamp(low, high).to(torch.int32)


def restored(integers: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """(q - zero_point) · scale in float64: the weight that integers stand for."""
    return (integers - zero_point).double() * scale.double()


def output_error(weight: Tensor, other: Tensor, inputs: LayerInputs) -> float:
    """E‖(W - W') x‖² / E‖W x‖²: the relative squared error of a layer's output where W' takes the place of W."""
    reference = float(row_errors(weight, torch.zeros_like(weight), inputs).sum())
    error = float(row_errors(weight, other, inputs).sum())
    return error / reference if reference > 0 else error


def row_errors(weight: Tensor, other: Tensor, inputs: LayerInputs) -> Tensor:
    """E((W - W')[o] x)² of each output channel o: float64 [groups, out / groups]."""
    rows = grouped_rows(weight.detach().double() - other.double(), inputs)
    return ((rows @ inputs.gram.double()) * rows).sum(2)


def better_rows(
    weight: Tensor, integers: Tensor, nearest: Tensor, scale: Tensor, zero_point: Tensor, inputs: LayerInputs
) -> Tensor:
    """Of two roundings of a weight the one with the smaller output error, row by row."""
    first, second = (
        row_errors(weight, restored(item, scale, zero_point), inputs).flatten() for item in (integers, nearest)
    )
    worse = (first > second).reshape(-1, *([1] * (weight.dim() - 1)))
    return torch.where(worse, nearest, integers)


def grouped_rows(weight: Tensor, inputs: LayerInputs) -> Tensor:
    """The weight as [groups, out / groups, columns]. Raises PassError where the inputs are another layer's."""
    groups, columns = inputs.mean.shape
    if weight.shape[0] % groups or weight[0].numel() != columns:
        raise PassError(f"inputs of {groups} group(s) with {columns} columns do not fit a weight {list(weight.shape)}")
    return weight.reshape(groups, -1, columns)


def require_inputs(inputs: LayerInputs | None, name: str) -> LayerInputs:
    """`inputs`, which the rounding called `name` cannot do without. Raises PassError."""
    if inputs is None:
        raise PassError(f"{name} rounds by what the layer reads and was given no inputs: pass calibration data")
    return inputs
