"""Observers: what range of values to give codes to, from what was seen on calibration data.

All see a value batch by batch, once. Those that need the distribution keep a histogram whose bins double in width
when a batch goes beyond them, which merges pairs of bins exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Protocol

import torch
from torch import Tensor

from whet.errors import PassError
from whet.passes.quantization.formats import Format
from whet.passes.quantization.parameters import affine

# Bins on each side of zero.
_BINS: Final = 2048
# The probability of a bin that a level leaves empty.
_LEAST_MASS: Final = 1e-10


@dataclass
class Range:
    """Smallest and largest element seen."""

    minimum: float = float("inf")
    maximum: float = float("-inf")

    @property
    def seen(self) -> bool:
        return self.minimum <= self.maximum

    @property
    def finite(self) -> bool:
        return abs(self.minimum) < float("inf") and abs(self.maximum) < float("inf")

    def update(self, tensor: Tensor) -> None:
        """Widen to a tensor's elements; a NaN among them makes the range infinite, so that it shows."""
        if not tensor.numel():
            return
        low, high = (bound.item() for bound in torch.aminmax(tensor.detach()))
        if low != low:
            low, high = float("-inf"), float("inf")
        self.minimum, self.maximum = min(self.minimum, low), max(self.maximum, high)


class Observer(Protocol):
    """Sees the tensors of one value, then names the range that codes should cover."""

    seen: Range

    def update(self, tensor: Tensor) -> None:
        """Look at one batch."""

    def range(self, form: Format) -> Range:
        """What to cover with codes of `form`; within what was seen."""


@dataclass
class MinMax:
    """All that was seen (Jacob et al., CVPR 2018)."""

    seen: Range = field(default_factory=Range)

    def update(self, tensor: Tensor) -> None:
        self.seen.update(tensor)

    def range(self, form: Format) -> Range:
        return self.seen


@dataclass
class MovingAverage:
    """Exponential average of each batch's smallest and largest element: m ← m + rate · (new - m)."""

    rate: float = 0.1
    seen: Range = field(default_factory=Range)
    average: Range = field(default_factory=Range)

    def update(self, tensor: Tensor) -> None:
        batch = Range()
        batch.update(tensor)
        self.seen.update(tensor)
        if not batch.seen:
            return
        if not self.average.seen:
            self.average = batch
            return
        self.average.minimum += self.rate * (batch.minimum - self.average.minimum)
        self.average.maximum += self.rate * (batch.maximum - self.average.maximum)

    def range(self, form: Format) -> Range:
        return self.average


class Histogram:
    """Counts (float64) in bins of one width, `_BINS` on each side of zero."""

    def __init__(self) -> None:
        self.width = 0.0
        self.counts = torch.zeros(2 * _BINS, dtype=torch.float64)
        self.zeros = 0

    def update(self, tensor: Tensor) -> None:
        """Count the elements, which must be finite."""
        elements = tensor.detach().flatten().float()
        largest = elements.abs().max().item() if elements.numel() else 0.0
        if largest == 0.0:
            self.zeros += elements.numel()
            return
        self._widen(largest)
        limit = self.width * _BINS
        self.counts += torch.histc(elements, 2 * _BINS, -limit, limit).double()

    def _widen(self, largest: float) -> None:
        """Bins that hold `largest`: their width is a power of two times that of the first batch."""
        if self.width == 0.0:
            self.width = largest / _BINS * (1 + 1e-6)
        while largest > self.width * _BINS:
            half = self.counts.reshape(-1, 2).sum(1)
            self.counts = torch.zeros_like(self.counts)
            self.counts[_BINS // 2 : _BINS // 2 + _BINS] = half
            self.width *= 2

    @property
    def complete(self) -> Tensor:
        """The counts, with tensors of zeros alone in the bin of zero."""
        counts = self.counts.clone()
        counts[_BINS] += self.zeros
        return counts

    @property
    def edges(self) -> Tensor:
        """Float64 [2 · bins + 1]."""
        return torch.arange(-_BINS, _BINS + 1, dtype=torch.float64) * self.width

    @property
    def centers(self) -> Tensor:
        """Float64 [2 · bins]."""
        return self.edges[:-1] + self.width / 2


class _Distribution:
    """Base of the observers that choose by the distribution."""

    def __init__(self) -> None:
        self.seen = Range()
        self.histogram = Histogram()

    def update(self, tensor: Tensor) -> None:
        self.seen.update(tensor)
        if self.seen.finite:
            self.histogram.update(tensor)

    def range(self, form: Format) -> Range:
        if self.histogram.width == 0.0:
            return self.seen
        chosen = self._choose(form)
        return Range(max(chosen.minimum, self.seen.minimum), min(chosen.maximum, self.seen.maximum))

    def _choose(self, form: Format) -> Range:
        raise NotImplementedError


class Percentile(_Distribution):
    """Between the quantiles 1 - q and q of all elements (McKinstry et al., 2018)."""

    def __init__(self, quantile: float = 0.9999) -> None:
        super().__init__()
        self.quantile = quantile

    def _choose(self, form: Format) -> Range:
        counts, edges = self.histogram.complete, self.histogram.edges
        share = counts.cumsum(0) / counts.sum()
        low = int(torch.searchsorted(share, torch.tensor(1 - self.quantile, dtype=torch.float64), right=True))
        high = int(torch.searchsorted(share, torch.tensor(self.quantile, dtype=torch.float64)))
        return Range(edges[min(low, len(counts) - 1)].item(), edges[min(high, len(counts) - 1) + 1].item())


class MeanSquaredError(_Distribution):
    """The range whose codes have the smallest squared error (Banner et al., NeurIPS 2019).

    Both ends shrink together first, then each by itself.
    """

    _STEPS: Final = 64
    _SMALLEST: Final = 0.2

    def _choose(self, form: Format) -> Range:
        counts, centers = self.histogram.complete, self.histogram.centers
        counts, centers = counts[counts > 0], centers[counts > 0]
        ratios = torch.linspace(1.0, self._SMALLEST, self._STEPS).tolist()

        def error(found: Range) -> float:
            return _squared_error(counts, centers, found, form)

        full = self.seen
        best = min((Range(full.minimum * r, full.maximum * r) for r in ratios), key=error)
        best = min((Range(full.minimum * r, best.maximum) for r in ratios), key=error)
        return min((Range(best.minimum, full.maximum * r) for r in ratios), key=error)


def _squared_error(counts: Tensor, centers: Tensor, found: Range, form: Format) -> float:
    parameters = affine(found.minimum, found.maximum, form)
    low, high = form.codes
    scale, zero_point = parameters.scale.double(), parameters.zero_point.double()
    restored = (torch.round(centers / scale) + zero_point).clamp(low, high).sub(zero_point) * scale
    return float(((restored - centers).square() * counts).sum())


class Entropy(_Distribution):
    """The threshold on |x| whose codes lose least information: argmin KL(P ‖ Q) (Migacz, GTC 2017).

    P is the histogram up to the threshold with all beyond in its last bin, Q the same in as many levels as there
    are codes for it. Zeros have a code of their own and do not vote.
    """

    _CANDIDATES: Final = 128

    def _choose(self, form: Format) -> Range:
        counts = self.histogram.complete
        folded = counts[_BINS:] + counts[:_BINS].flip(0)
        folded[0] = folded[1]
        low, high = form.codes
        one_sided = self.seen.minimum >= 0 and not form.symmetric
        levels = (high - low) if one_sided else (high - low) // 2
        used = int(folded.nonzero().max()) + 1 if bool(folded.any()) else 0
        if used <= levels:
            return self.seen
        step = max(1, (used - levels) // self._CANDIDATES)
        candidates = [*range(levels, used, step), used]
        threshold = min(candidates, key=lambda size: _divergence(folded, size, levels)) * self.histogram.width
        return Range(-threshold, threshold)


def _divergence(histogram: Tensor, size: int, levels: int) -> float:
    """KL(P ‖ Q) with P clipped to `size` bins and Q in `levels` levels; Q has a little mass everywhere."""
    inside = histogram[:size]
    clipped = inside.clone()
    clipped[-1] += histogram[size:].sum()
    level = torch.arange(size) * levels // size
    sums = torch.zeros(levels, dtype=torch.float64).index_add(0, level, inside)
    filled = torch.zeros(levels, dtype=torch.float64).index_add(0, level, (inside > 0).double())
    spread = torch.where(inside > 0, (sums / filled.clamp_min(1))[level], 0.0)
    p, q = clipped / clipped.sum(), spread / spread.sum().clamp_min(1e-300)
    held = p > 0
    return float((p[held] * (p[held] / q[held].clamp_min(_LEAST_MASS)).log()).sum())


OBSERVERS: Final[Mapping[str, Callable[[], Observer]]] = MappingProxyType(
    {
        "minmax": MinMax,
        "moving_average": MovingAverage,
        "percentile": Percentile,
        "mse": MeanSquaredError,
        "entropy": Entropy,
    }
)
"""Observers by the name that passes take."""


def find_observer(name: str) -> Callable[[], Observer]:
    """What makes an observer. Raises PassError for an unknown name."""
    if name not in OBSERVERS:
        raise PassError(f"there is no observer {name!r}; known are {', '.join(OBSERVERS)}")
    return OBSERVERS[name]
