"""Which candidate to measure next: those that the machine's model ranks first, then what is near the best so far."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from whet.backends.tvm.kernels.decisions import DEFAULT, ORDERS, UNROLLS, Decision
from whet.backends.tvm.kernels.tiles import Tile

_MOST_TILES: Final = 64
_MODELLED: Final = 12
"""Candidates taken in the model's order before those near the best come in."""
_RECENT: Final = 8
"""Candidates over which progress is measured."""


class Search:
    """The candidates of one kernel.

    Args:
        space: algorithm -> tiles that it may have, the best first by the model; the first algorithm is the default.
        start: what to try first, besides the default: winners of kernels that are like it.
    """

    def __init__(self, space: Mapping[str, Sequence[Tile]], start: Sequence[Decision] = ()) -> None:
        self.space = {algorithm: list(tiles[:_MOST_TILES]) for algorithm, tiles in space.items()}
        self.measured: dict[Decision, float | None] = {}
        self.best: Decision = DEFAULT
        self.best_seconds = float("inf")
        self.stale = 0
        self._recent: list[float] = []
        modelled = self._modelled()
        self._queue = itertools.chain([DEFAULT], self._like(start), itertools.islice(modelled, _MODELLED))
        self._rest = itertools.chain(modelled, self._everything())

    def propose(self) -> Decision | None:
        """A candidate that was not measured yet; None when all were."""
        for candidate in itertools.chain(self._queue, self._near_best(), self._rest):
            if self._plain(candidate) not in self.measured:
                return candidate
        return None

    def tell(self, decision: Decision, seconds: float | None) -> None:
        """The result of a candidate: seconds of a call, None for a failure."""
        self.measured[self._plain(decision)] = seconds
        before = self.best_seconds
        if seconds is not None and seconds < before:
            self.best, self.best_seconds = decision, seconds
        gained = 1 - self.best_seconds / before if before < float("inf") else 0.0
        self._recent = [*self._recent[1 - _RECENT :], gained]
        self.stale = 0 if self.best_seconds < before * 0.995 else self.stale + 1

    @property
    def promise(self) -> float:
        """The share of its time that a few more candidates may be expected to save."""
        return max(sum(self._recent), 0.05 / (1 + self.stale))

    def _like(self, start: Sequence[Decision]) -> Iterator[Decision]:
        """The nearest that this kernel has to each of these decisions."""
        for item in start:
            tile = nearest(self.space.get(item.algorithm, ()), item.tile)
            if tile is not None:
                yield replace(item, tile=tile)

    def _modelled(self) -> Iterator[Decision]:
        """In the model's order, the algorithms in turn: the model compares tiles, not algorithms."""
        for tiles in itertools.zip_longest(*self.space.values()):
            for algorithm, tile in zip(self.space, tiles, strict=True):
                if tile is not None:
                    yield Decision(tile, algorithm=algorithm)

    def _near_best(self) -> Iterator[Decision]:
        """Other orders and unrolling of the best tile, then tiles of one row or block more or less."""
        best = self._plain(self.best)
        if best.tile is None or self.best_seconds == float("inf"):
            return
        for order, unroll in itertools.product(ORDERS, UNROLLS):
            yield replace(best, order=order, unroll=unroll)
        for other in self.space[best.algorithm]:
            if _apart(best.tile, other) == 1:
                yield replace(best, tile=other)

    def _everything(self) -> Iterator[Decision]:
        for algorithm, tiles in self.space.items():
            for tile, order, unroll in itertools.product(tiles, ORDERS, UNROLLS):
                yield Decision(tile, order, unroll, algorithm)

    def _plain(self, decision: Decision) -> Decision:
        """The default tile by its numbers: one candidate must not be measured under two names."""
        tiles = self.space.get(decision.algorithm, [])
        return decision if decision.tile is not None or not tiles else replace(decision, tile=tiles[0])


def _apart(one: Tile, other: Tile) -> int:
    """In how many numbers two tiles differ."""
    return sum(a != b for a, b in zip((*one.rows, one.block), (*other.rows, other.block), strict=True))


def nearest(tiles: Sequence[Tile], wanted: Tile | None) -> Tile | None:
    """The tile most like `wanted`; the first of equals."""
    if wanted is None or not tiles:
        return None
    same = [tile for tile in tiles if len(tile.rows) == len(wanted.rows)]
    if not same:
        return None

    def distance(tile: Tile) -> float:
        pairs = zip((*tile.rows, tile.block), (*wanted.rows, wanted.block), strict=True)
        return sum(abs(a - b) / (a + b) for a, b in pairs)

    return min(same, key=distance)
