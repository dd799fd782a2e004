"""Choosing one option for each layer, under a budget of bytes or of error: a knapsack with groups, solved exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

RESOLUTION: Final = 1 << 16
"""Most steps that the range of sizes is divided into."""


@dataclass(frozen=True)
class Option:
    """What one choice for a layer costs, and what it gains: bytes, and error (additive over layers)."""

    bytes: int
    error: float


@dataclass(frozen=True)
class Allocation:
    """The index of the option chosen for each layer, what they cost together, and whether that is within budget."""

    chosen: tuple[int, ...]
    bytes: int
    error: float
    met: bool


def least_error(layers: Sequence[Sequence[Option]], size: float) -> Allocation:
    """The options with the least sum of errors whose bytes are at most `size`; the fewest bytes where none are.

    Dynamic programming over bytes (Bellman 1957), exact where all sizes are multiples of 1/65536 of their range, which
    those of equal layers are; else sizes are rounded up to that, so that the budget holds anyway.
    """
    table = _Table(layers)
    if size < table.smallest:
        return table.at(0, met=False)
    return table.at(min(math.floor((size - table.smallest) / table.unit), table.steps), met=True)


def least_bytes(layers: Sequence[Sequence[Option]], error: float) -> Allocation:
    """The options with the fewest bytes whose errors sum to at most `error`; the least error where none do."""
    table = _Table(layers)
    enough = np.flatnonzero(table.best <= error)
    if not len(enough):
        return table.at(table.steps, met=False)
    return table.at(int(enough[0]), met=True)


class _Table:
    """best[c] = the least error with at most c units of bytes above the smallest."""

    def __init__(self, layers: Sequence[Sequence[Option]]) -> None:
        self.layers = layers
        self.smallest = sum(min(option.bytes for option in options) for options in layers)
        extras = [[option.bytes - min(item.bytes for item in options) for option in options] for options in layers]
        most = sum(max(extra) for extra in extras)
        common = math.gcd(*(size for extra in extras for size in extra)) or 1
        self.unit = common if most // common <= RESOLUTION else -(-most // RESOLUTION)
        self.costs = [[-(-size // self.unit) for size in extra] for extra in extras]
        self.steps = sum(max(cost) for cost in self.costs)
        self.best = np.zeros(self.steps + 1)
        self.picks: list[npt.NDArray[np.int64]] = []
        for options, cost in zip(layers, self.costs, strict=True):
            self._add(options, cost)

    def _add(self, options: Sequence[Option], cost: Sequence[int]) -> None:
        rows = np.full((len(options), self.steps + 1), np.inf)
        for row, option, steps in zip(rows, options, cost, strict=True):
            row[steps:] = self.best[: self.steps + 1 - steps] + option.error
        # the first of equals, in order of bytes, so that nothing is spent for nothing
        order = np.argsort(cost, kind="stable")
        self.picks.append(order[rows[order].argmin(0)])
        self.best = rows.min(0)

    def at(self, capacity: int, met: bool) -> Allocation:
        """The options behind best[capacity]."""
        chosen = []
        for pick, cost in zip(reversed(self.picks), reversed(self.costs), strict=True):
            index = int(pick[capacity])
            chosen.append(index)
            capacity -= cost[index]
        chosen.reverse()
        taken = [options[index] for options, index in zip(self.layers, chosen, strict=True)]
        return Allocation(
            tuple(chosen), sum(option.bytes for option in taken), math.fsum(option.error for option in taken), met
        )
