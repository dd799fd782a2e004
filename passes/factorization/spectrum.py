"""Singular values of a (grouped) matrix, plain or weighted by the inputs that it multiplies."""

from __future__ import annotations

import torch

from whet.passes.factorization.low_rank import balanced


class Spectrum:
    """W [groups, m, n] = left [groups, m, r] · right [groups, r, n], best in ‖(W - left · right) L‖.

    Without `root` L is the identity: Eckart & Young 1936. With L Lᵀ = E[x xᵀ] the expected squared error of the
    outputs is the smallest (Wang et al., SVD-LLM, ICLR 2025): U S Vᵀ = svd(W L), right = S Vᵀ L⁻¹.

    Args:
        matrix: W in float64.
        root: L [groups, n, n], lower triangular, in float64.
    """

    def __init__(self, matrix: torch.Tensor, root: torch.Tensor | None = None) -> None:
        self.root = root
        weighted = matrix if root is None else matrix @ root
        self.left, self.values, self.right = torch.linalg.svd(weighted, full_matrices=False)
        energy = self.values.square().sum(0)
        # from the smallest to the largest, so that small tails keep their digits
        tails = energy.flip(0).cumsum(0).flip(0)
        self._tails = torch.cat([tails, tails.new_zeros(1)]) / tails[0].clamp_min(torch.finfo(tails.dtype).tiny)

    @property
    def full(self) -> int:
        """The largest rank."""
        return int(self.values.shape[-1])

    def lost(self, rank: int) -> float:
        """Share of the (weighted) energy in the singular values beyond `rank`."""
        return float(self._tails[min(rank, self.full)])

    def factors(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """left and right, balanced."""
        left = self.left[..., :rank] * self.values[..., None, :rank]
        right = self.right[..., :rank, :]
        if self.root is not None:
            right = torch.linalg.solve_triangular(self.root, right, upper=False, left=False)
        return balanced(left, right)
