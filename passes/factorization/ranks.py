"""Choosing ranks: by number, by share of parameters or of energy, and over all layers by a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from whet.passes.factorization.low_rank import LowRank, Rank


@dataclass(frozen=True)
class Choice:
    """A rank, or None with the reason why the weight stays whole."""

    rank: Rank | None
    reason: str = ""


def by_rank(form: LowRank, rank: int) -> Choice:
    """The given rank, or full rank where that is smaller."""
    return Choice(form.limited(rank))


def by_ratio(form: LowRank, ratio: float) -> Choice:
    """The largest rank with at most `ratio` of the weight's parameters."""
    most = ratio * form.unit.elements
    fitting = [rank for rank in form.chain if form.parameters(rank) <= most]
    if not fitting:
        least = form.parameters(form.chain[0])
        return Choice(None, f"the smallest factors hold {least} parameters, {most:.0f} are {ratio:g} of the weight's")
    return Choice(fitting[-1])


def by_energy(form: LowRank, energy: float) -> Choice:
    """The smallest rank that keeps `energy` of ‖W‖²."""
    return Choice(_first_within(form, 1.0 - energy))


def _first_within(form: LowRank, lost: float) -> Rank:
    chain = form.chain
    low, high = 0, len(chain) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if form.lost(chain[middle]) <= lost else (middle + 1, high)
    return chain[low]


def by_budget(forms: Sequence[LowRank], budget: float) -> list[Choice]:
    """Ranks at which no layer loses more energy than it must for all to have `budget` parameters together.

    All layers lose the same share of their energy, up to a whole rank; one whose factors would then hold no fewer
    parameters than the weight stays whole. The share is found by bisection; where even the smallest ranks have more
    parameters, they are what comes out.
    """
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        fits = sum(_cost(form, middle) for form in forms) <= budget
        low, high = (low, middle) if fits else (middle, high)
    return [_choice_within(form, high) for form in forms]


def _cost(form: LowRank, lost: float) -> int:
    return min(form.parameters(_first_within(form, lost)), form.unit.elements)


def _choice_within(form: LowRank, lost: float) -> Choice:
    rank = _first_within(form, lost)
    if form.parameters(rank) >= form.unit.elements:
        return Choice(None, f"the budget leaves room for all of its {form.unit.elements} parameters")
    return Choice(rank)
