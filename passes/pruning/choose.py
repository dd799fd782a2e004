"""From the worth of units to those that go: local, global and isomorphic ranking, and rounding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from whet.ir.coupling import Indices, Mask, Strand
from whet.ir.graph import Graph, Value
from whet.passes.pruning.importance import Scores
from whet.passes.pruning.units import Group

SCOPES: Final = ("local", "global", "isomorphic")
_LEAST_REMOVED: Final = 0.75
"""A rounding that nobody asked for by its number must leave that share of the removals."""
_EPSILON: Final = 1e-9


@dataclass(frozen=True)
class Rounding:
    """How many channels are left of a dimension of a weight.

    Attributes:
        multiple: of which number.
        exact: whether smaller powers of two are no way out where too little would go.
    """

    multiple: int
    exact: bool

    def most(self, size: int, wanted: int) -> int:
        """The largest number of at most `wanted` indices to remove of `size`, for a good number to be left."""
        multiple = self.multiple
        while True:
            left = -(-(size - wanted) // multiple) * multiple
            allowed = max(size - left, 0)
            if self.exact or multiple == 1 or allowed >= _LEAST_REMOVED * wanted:
                return allowed
            multiple //= 2


@dataclass(frozen=True)
class Chooser:
    """Chooses units.

    Attributes:
        groups: what can go.
        scores: what each unit is worth.
        channels: dimensions of weights, which are rounded.
        scope: "local": every dimension of every group loses the same share; "global": the units of least worth of all
            groups; "isomorphic": the same within groups of one structure (Fang et al., Isomorphic Pruning, ECCV 2024).
        limit: the largest share of a dimension that may go, in the last two.
        structures: what groups have in common that are ranked together in "isomorphic".
    """

    groups: Sequence[Group]
    scores: Sequence[Scores]
    channels: Collection[Strand]
    rounding: Rounding
    scope: str
    limit: float
    structures: Sequence[Hashable]

    def choose(self, ratio: float) -> list[Mask]:
        """For each group, which units go when `ratio` of the channels shall."""
        if self.scope == "local":
            return [self._local(place, ratio) for place in range(len(self.groups))]
        classes: dict[Hashable, list[int]] = {}
        for place, structure in enumerate(self.structures):
            classes.setdefault(structure if self.scope == "isomorphic" else None, []).append(place)
        masks = [np.zeros(group.size, dtype=np.bool_) for group in self.groups]
        for places in classes.values():
            self._ranked(places, ratio, masks)
        return masks

    def _local(self, place: int, ratio: float) -> Mask:
        group = self.groups[place]
        shares = np.array([int(ratio * count + _EPSILON) for count in group.counts.sum(axis=0)], dtype=np.int64)
        return _greedy(group, np.argsort(self.scores[place], kind="stable"), self._rounded(group, shares))

    def _ranked(self, places: Sequence[int], ratio: float, masks: list[Mask]) -> None:
        """The units of least worth of these groups, as far as no dimension loses more than `limit` of itself."""
        scores = np.concatenate([self.scores[place] for place in places])
        owners = np.concatenate([np.full(self.groups[place].size, place) for place in places])
        units = np.concatenate([np.arange(self.groups[place].size) for place in places])
        wanted = int(ratio * len(scores) + _EPSILON)
        left = {place: _shares(self.groups[place], self.limit) for place in places}
        orders: dict[int, list[int]] = {place: [] for place in places}
        for item in np.argsort(scores, kind="stable"):
            place, unit = int(owners[item]), int(units[item])
            after = left[place] - self.groups[place].counts[unit]
            if wanted and bool((after >= 0).all()):
                left[place] = after
                orders[place].append(unit)
                wanted -= 1
        for place, order in orders.items():
            group = self.groups[place]
            used = group.counts[order].sum(axis=0)
            masks[place] = _greedy(group, np.array(order, dtype=np.int64), self._rounded(group, used))

    def _rounded(self, group: Group, wanted: Indices) -> Indices:
        """How many indices of each strand may go, where `wanted` would without rounding."""
        pairs = zip(group.strands, wanted.tolist(), strict=True)
        return np.array(
            [
                min(self.rounding.most(strand.size, count) if strand in self.channels else count, strand.size - 1)
                for strand, count in pairs
            ],
            dtype=np.int64,
        )


def _shares(group: Group, ratio: float) -> Indices:
    """At most that share of the indices of each strand that are in units, and never all of a strand."""
    shares = [
        min(int(ratio * count + _EPSILON), strand.size - 1)
        for strand, count in zip(group.strands, group.counts.sum(axis=0), strict=True)
    ]
    return np.array(shares, dtype=np.int64)


def _greedy(group: Group, order: Indices, most: Indices) -> Mask:
    """Units in this order, each where no strand loses more than `most` of its indices by it."""
    chosen = np.zeros(group.size, dtype=np.bool_)
    left = most.copy()
    for unit in order:
        after = left - group.counts[unit]
        if bool((after >= 0).all()):
            left = after
            chosen[unit] = True
    return chosen


def structures(graph: Graph, groups: Sequence[Group]) -> list[Hashable]:
    """What makes groups isomorphic: the operations that make and read their dimensions, and how often."""
    values = {value.name: value for value in graph.values()}
    return [
        frozenset(Counter(place for strand in group.strands for place in _places(strand, values)).items())
        for group in groups
    ]


def _places(strand: Strand, values: dict[str, Value]) -> list[Hashable]:
    found: list[Hashable] = []
    for name, dim in strand.members:
        value = values[name]
        found += [(user.name, slot, dim) for user, slot in value.uses]
        if value.producer is not None:
            found.append((value.producer.name, -1, dim))
    return found
