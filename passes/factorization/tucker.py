"""Tucker-2: a small convolution between two 1x1 convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Final

import torch

from whet.ir.graph import Operation, Value
from whet.passes.factorization.low_rank import Factor, LowRank, Rank, Unit, balanced
from whet.passes.factorization.matrices import along, bias_of, ones, pointwise, require_ungrouped
from whet.passes.factorization.spectrum import Spectrum
from whet.passes.rewrite import Rewriter

SWEEPS: Final = 5
"""Alternating updates after the HOSVD; the fit hardly changes after the second."""


class Tucker2(LowRank):
    """conv(x, W, b) -> conv1x1(conv(conv1x1(x, v), core), u, b) (Kim et al., ICLR 2016), rank (outputs, inputs).

    W [o, i, *k] = Σ u[o, p] core[p, q, *k] v[q, i]. By HOSVD, then higher-order orthogonal iteration (De Lathauwer
    et al. 2000). Raises MatchFailure for groups.
    """

    def __init__(self, unit: Unit, root: torch.Tensor | None = None) -> None:
        require_ungrouped(unit, "tucker")
        super().__init__(unit, root)

    @cached_property
    def spectra(self) -> tuple[Spectrum, Spectrum]:
        """Of the unfoldings along outputs and along inputs."""
        tensor = self.unit.tensor
        return Spectrum(tensor.flatten(1)[None]), Spectrum(tensor.transpose(0, 1).flatten(1)[None])

    @cached_property
    def chain(self) -> Sequence[Rank]:
        """For every tail of energy that either unfolding can lose, the smallest rank of both that loses no more."""
        tails = [[spectrum.lost(rank) for rank in range(1, spectrum.full + 1)] for spectrum in self.spectra]
        levels = sorted({level for found in tails for level in found}, reverse=True)
        ranks = [tuple(_smallest(found, level) for found in tails) for level in levels if level >= max(map(min, tails))]
        return list(dict.fromkeys(ranks))

    def limited(self, rank: int) -> Rank:
        outputs, inputs = self.unit.tensor.shape[:2]
        return min(rank, outputs), min(rank, inputs)

    def parameters(self, rank: Rank) -> int:
        shape = self.unit.tensor.shape
        positions = shape[2:].numel()
        return shape[0] * rank[0] + rank[0] * rank[1] * positions + rank[1] * shape[1]

    def lost(self, rank: Rank) -> float:
        """The sum of both tails, which bounds the loss of the HOSVD and so that of what comes after it."""
        return min(1.0, sum(spectrum.lost(size) for spectrum, size in zip(self.spectra, rank, strict=True)))

    def factors(self, rank: Rank) -> dict[str, Factor]:
        u, core, v = tucker2(self.unit.tensor, rank)
        spatial = ones(core.dim() - 2)
        tensors = {"v": v.reshape(*v.shape, *spatial), "core": core, "u": u.reshape(*u.shape, *spatial)}
        return {role: Factor(tensor, self.unit.key(role)) for role, tensor in tensors.items()}

    def build(self, rewriter: Rewriter, layer: Operation, factors: Mapping[str, Value]) -> Value:
        dims = range(layer.operand(1).type.rank - 2)
        inner = pointwise(rewriter, layer, layer.operand(0), factors["v"], None, hint="v")
        inner = along(rewriter, layer, inner, factors["core"], None, dims, hint="core")
        return pointwise(rewriter, layer, inner, factors["u"], bias_of(layer))


def _smallest(tails: Sequence[float], level: float) -> int:
    return next(index for index, tail in enumerate(tails, start=1) if tail <= level)


def tucker2(tensor: torch.Tensor, rank: Rank, sweeps: int = SWEEPS) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """u [o, p], core [p, q, *k] and v [q, i] with W ≈ Σ u core v; exact at full rank.

    Norms are balanced: between u and the core by output component, between the core and v by input component.
    """
    flat = tensor.flatten(2)
    p, q = rank
    v = _leading(flat.transpose(0, 1), q)
    u = _leading(flat, p)
    for _ in range(sweeps):
        u = _leading(torch.einsum("oik,iq->oqk", flat, v), p)
        v = _leading(torch.einsum("oik,op->ipk", flat, u), q)
    core = torch.einsum("oik,op,iq->pqk", flat, u, v)
    u, rows = balanced(u, core.flatten(1))
    core = rows.reshape(core.shape).movedim(1, 0)
    columns, v = balanced(core.flatten(1).T, v.T)
    core = columns.T.reshape(core.shape).movedim(0, 1)
    return u, core.reshape(p, q, *tensor.shape[2:]), v


def _leading(tensor: torch.Tensor, rank: int) -> torch.Tensor:
    """[n, rank]: an orthonormal basis of what the first dimension mostly spans, its size n >= rank."""
    unfolded = tensor.flatten(1)
    basis: torch.Tensor = torch.linalg.svd(unfolded, full_matrices=unfolded.shape[1] < rank)[0]
    return basis[:, :rank]
