"""k-means of numbers: Lloyd's algorithm on sorted values, where a cluster is a range and its sum a difference."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from whet.errors import PassError

_ITERATIONS: Final = 300
# How often centres without a value are put elsewhere.
_ROUNDS: Final = 16
# Values that k-means++ draws its centres from: enough for 256 of them.
_SEEDING: Final = 1 << 17


def kmeans(values: Tensor, clusters: int, init: str = "linear", seed: int = 0) -> Tensor:
    """At most `clusters` centres of a tensor's elements, ascending, in float64: a local minimum of Σ (v - c(v))².

    Centres start evenly spaced between the smallest and the largest value ("linear", which keeps a few large weights
    apart; Han et al., ICLR 2016), at quantiles ("density"), at values drawn at random ("random"), or drawn far from
    those drawn before ("kmeans++"; Arthur & Vassilvitskii, SODA 2007). No more distinct values than clusters are the
    centres themselves. A centre that ends up without a value moves into the cluster with the largest error.

    Raises PassError for another `init`, for no values, and for values that are not finite.
    """
    if init not in INITS:
        raise PassError(f"init is {init!r}; it must be one of {', '.join(INITS)}")
    ordered = values.detach().double().flatten().sort().values
    if not ordered.numel() or not bool(torch.isfinite(ordered[[0, -1]]).all()):
        raise PassError("k-means takes finite values, and at least one")
    few = _few_distinct(ordered, clusters)
    if few is not None:
        return few
    generator = torch.Generator().manual_seed(seed)
    centres, bounds = _lloyd(ordered, INITS[init](ordered, clusters, generator).sort().values)
    for _ in range(_ROUNDS):
        if len(centres) == clusters:
            break
        centres, bounds = _lloyd(ordered, _split(ordered, bounds, clusters - len(centres)))
    return centres


def nearest(values: Tensor, centres: Tensor) -> Tensor:
    """Index u8 of the nearest of at most 256 ascending centres for each element; ties go to the lower one."""
    middles = ((centres[1:].double() + centres[:-1].double()) / 2).contiguous()
    return torch.searchsorted(middles, values.detach().double().contiguous(), out_int32=True).to(torch.uint8)


def _few_distinct(ordered: Tensor, limit: int) -> Tensor | None:
    changes = ordered[1:] != ordered[:-1]
    if int(changes.sum()) >= limit:
        return None
    return torch.cat([ordered[:1], ordered[1:][changes]])


def _lloyd(ordered: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Centres that have values, and where their ranges begin and end among these."""
    sums = torch.cat([ordered.new_zeros(1), ordered.cumsum(0)])
    bounds = torch.tensor([0])
    for _ in range(_ITERATIONS):
        middles = (centres[1:] + centres[:-1]) / 2
        inner = torch.searchsorted(ordered, middles, right=True)
        found = torch.cat([inner.new_zeros(1), inner, inner.new_full((1,), len(ordered))])
        if torch.equal(found, bounds):
            break
        bounds = found
        counts = bounds.diff()
        centres = torch.where(counts > 0, sums[bounds].diff() / counts.clamp_min(1), centres)
    used = bounds.diff() > 0
    return centres[used], torch.cat([bounds[:1], bounds[1:][used]])


def _split(ordered: Tensor, bounds: Tensor, count: int) -> Tensor:
    """Centres for the ranges: two, a standard deviation to each side of the mean, in the `count` of largest error."""
    sums, squares = (
        torch.cat([ordered.new_zeros(1), power.cumsum(0)])[bounds].diff() for power in (ordered, ordered.square())
    )
    sizes = bounds.diff()
    means = sums / sizes
    errors = (squares - sums * means).clamp_min(0)
    chosen = errors.topk(min(count, len(errors))).indices
    spread = (errors / sizes).sqrt()
    whole = torch.ones_like(means, dtype=torch.bool).index_fill(0, chosen, False)
    halves = torch.cat([means[chosen] - spread[chosen], means[chosen] + spread[chosen]])
    return torch.cat([means[whole], halves]).sort().values


def _linear(ordered: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    return torch.linspace(float(ordered[0]), float(ordered[-1]), clusters, dtype=torch.float64)


def _density(ordered: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    places = (torch.arange(clusters, dtype=torch.float64) + 0.5) / clusters * len(ordered)
    return ordered[places.long()]


def _random(ordered: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    return ordered[torch.randint(len(ordered), (clusters,), generator=generator)]


def _plus_plus(ordered: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    sample = ordered
    if len(ordered) > _SEEDING:
        sample = ordered[torch.randint(len(ordered), (_SEEDING,), generator=generator)]
    centres = sample[torch.randint(len(sample), (1,), generator=generator)]
    distances = (sample - centres).square()
    for _ in range(clusters - 1):
        if not bool(distances.any()):
            break
        centre = sample[torch.multinomial(distances, 1, generator=generator)]
        centres = torch.cat([centres, centre])
        distances = torch.minimum(distances, (sample - centre).square())
    return centres


INITS: Final[Mapping[str, Callable[[Tensor, int, torch.Generator], Tensor]]] = {
    "linear": _linear,
    "density": _density,
    "random": _random,
    "kmeans++": _plus_plus,
}
"""How the centres start: (ascending values, clusters, generator) -> centres."""
