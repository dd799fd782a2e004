"""CP: a convolution as 1x1, one depthwise convolution a kernel dimension, and 1x1."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

import torch

from whet.errors import PassError
from whet.ir.graph import Operation, Value
from whet.passes.factorization.low_rank import Factor, LowRank, Rank, Unit
from whet.passes.factorization.matrices import along, bias_of, ones, pointwise, require_ungrouped
from whet.passes.rewrite import MatchFailure, Rewriter

SWEEPS: Final = 200
_CONVERGED: Final = 1e-9
_RIDGE: Final = 1e-12


class CanonicalPolyadic(LowRank):
    """conv(x, W, b) -> conv1x1(depthwise(… depthwise(conv1x1(x, v), d0), d1 …), u, b) (Lebedev et al., ICLR 2015).

    W [o, i, y, x] = Σ_r u[o, r] v[r, i] d0[r, y] d1[r, x], by alternating least squares. Raises MatchFailure for
    groups and for 1x1 kernels. There is no spectrum: a rank or a ratio is asked for, not an energy.
    """

    def __init__(self, unit: Unit, root: torch.Tensor | None = None) -> None:
        require_ungrouped(unit, "cp")
        super().__init__(unit, root)
        if max(unit.tensor.shape[2:]) == 1:
            raise MatchFailure("cp: a 1x1 kernel has nothing to take apart; channel factors it", unit.weights[0])

    @property
    def chain(self) -> Sequence[Rank]:
        """Up to where there is nothing to gain."""
        most = self.unit.elements // sum(self.unit.tensor.shape)
        return [(rank,) for rank in range(1, max(most, 1) + 1)]

    def limited(self, rank: int) -> Rank:
        return (rank,)

    def parameters(self, rank: Rank) -> int:
        return rank[0] * sum(self.unit.tensor.shape)

    def lost(self, rank: Rank) -> float:
        raise PassError("CP has no singular values to choose a rank by: give rank= or a ratio= for each layer")

    def factors(self, rank: Rank) -> dict[str, Factor]:
        u, v, *kernels = cp(self.unit.tensor, rank[0])
        spatial = ones(len(kernels))
        tensors = {"v": v.T.reshape(rank[0], -1, *spatial), "u": u.reshape(*u.shape, *spatial)}
        for dim, kernel in enumerate(kernels):
            size = [*spatial]
            size[dim] = kernel.shape[0]
            tensors[f"d{dim}"] = kernel.T.reshape(rank[0], 1, *size)
        return {role: Factor(tensor, self.unit.key(role)) for role, tensor in tensors.items()}

    def build(self, rewriter: Rewriter, layer: Operation, factors: Mapping[str, Value]) -> Value:
        inner = pointwise(rewriter, layer, layer.operand(0), factors["v"], None, hint="v")
        rank = factors["v"].type.static_shape[0]
        for dim in range(layer.operand(1).type.rank - 2):
            inner = along(rewriter, layer, inner, factors[f"d{dim}"], None, (dim,), groups=rank, hint=f"d{dim}")
        return pointwise(rewriter, layer, inner, factors["u"], bias_of(layer))


def cp(tensor: torch.Tensor, rank: int, sweeps: int = SWEEPS) -> list[torch.Tensor]:
    """One factor [size, rank] a dimension of `tensor`, with T[a, b, ...] ≈ Σ_r A[a, r] B[b, r] ...

    Alternating least squares (Carroll & Chang 1970) from the leading singular vectors of each unfolding, filled up
    with random ones of a fixed seed, until a sweep gains less than 1e-9 of the norm. Components are balanced: each
    has the same norm in every factor.
    """
    generator = torch.Generator().manual_seed(0)
    unfolded = [tensor.movedim(dim, 0).flatten(1) for dim in range(tensor.dim())]
    factors = [_start(matrix, rank, generator) for matrix in unfolded]
    norm = float(tensor.norm()) or 1.0
    before = math.inf
    for _ in range(sweeps):
        for dim, matrix in enumerate(unfolded):
            factors[dim] = _least_squares(matrix, [item for other, item in enumerate(factors) if other != dim])
        error = float((tensor - composed(factors)).norm()) / norm
        if before - error < _CONVERGED:
            break
        before = error
        factors = _balanced(factors)
    return _balanced(factors)


def composed(factors: Sequence[torch.Tensor]) -> torch.Tensor:
    """The tensor that CP factors stand for."""
    product = _khatri_rao(factors[1:])
    return (factors[0] @ product.T).reshape([len(factor) for factor in factors])


def _start(matrix: torch.Tensor, rank: int, generator: torch.Generator) -> torch.Tensor:
    basis = torch.linalg.svd(matrix, full_matrices=False)[0][:, :rank]
    missing = rank - basis.shape[1]
    extra = torch.randn(matrix.shape[0], missing, generator=generator, dtype=matrix.dtype)
    return torch.cat([basis, extra / math.sqrt(matrix.shape[0])], dim=1)


def _khatri_rao(factors: Sequence[torch.Tensor]) -> torch.Tensor:
    """[Π sizes, rank]: column r is the outer product of the factors' columns r."""
    product = factors[0]
    for factor in factors[1:]:
        product = (product[:, None] * factor[None]).flatten(0, 1)
    return product


def _least_squares(matrix: torch.Tensor, others: Sequence[torch.Tensor]) -> torch.Tensor:
    gram = torch.ones(others[0].shape[1], others[0].shape[1], dtype=matrix.dtype)
    for factor in others:
        gram = gram * (factor.T @ factor)
    gram += _RIDGE * gram.diagonal().mean() * torch.eye(len(gram), dtype=matrix.dtype)
    solution: torch.Tensor = torch.linalg.lstsq(gram, (matrix @ _khatri_rao(others)).T).solution
    return solution.T


def _balanced(factors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    norms = [factor.norm(dim=0) for factor in factors]
    common = torch.stack(norms).prod(0).pow(1 / len(factors))
    tiny = torch.finfo(common.dtype).tiny
    return [factor * (common / norm.clamp_min(tiny)) for factor, norm in zip(factors, norms, strict=True)]
