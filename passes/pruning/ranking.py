"""From scores to masks: how many elements go, and which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import torch

from whet.errors import PassError

SCOPES: Final = ("local", "global")


def require_ratio(owner: str, ratio: float, what: str = "ratio") -> None:
    """Guard: a share of elements to prune. Raises PassError outside of [0, 1)."""
    if not 0 <= ratio < 1:
        raise PassError(f"{owner}'s {what} is the share of elements to prune, in [0, 1); got {ratio}")


def require_scope(owner: str, scope: str) -> None:
    """Guard: "local" (within each weight) or "global" (over all). Raises PassError."""
    if scope not in SCOPES:
        raise PassError(f"{owner}'s scope is one of {', '.join(SCOPES)}, got {scope!r}")


def smallest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """True at exactly `count` elements, those with the smallest scores; of equal scores the first go first."""
    flat = scores.flatten()
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    limit = flat.kthvalue(count).values
    chosen = flat < limit
    ties = (flat == limit).nonzero().flatten()
    chosen[ties[: count - int(chosen.sum())]] = True
    return chosen.reshape(scores.shape)


def kept_locally(scores: torch.Tensor, pruned: torch.Tensor, ratio: float) -> torch.Tensor:
    """The mask that prunes `ratio` of one weight's elements, rounded; those that are `pruned` already count."""
    return ~smallest(_with_pruned_first(scores, pruned), round(ratio * scores.numel()))


def kept_globally(scores: Sequence[torch.Tensor], pruned: Sequence[torch.Tensor], ratio: float) -> list[torch.Tensor]:
    """The masks that prune `ratio` of all elements together, rounded; those that are `pruned` already count."""
    ranked = [_with_pruned_first(*pair).flatten() for pair in zip(scores, pruned, strict=True)]
    kept = kept_locally(torch.cat(ranked), torch.cat([item.flatten() for item in pruned]), ratio)
    parts = torch.split(kept, [score.numel() for score in scores])
    return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]


def _with_pruned_first(scores: torch.Tensor, pruned: torch.Tensor) -> torch.Tensor:
    return scores.masked_fill(pruned, -math.inf)
