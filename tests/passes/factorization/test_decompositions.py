"""What the decompositions promise, for any tensor: exact at full rank, no worse than their bound below."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.equality import weight
from whet.passes.factorization.canonical_polyadic import composed, cp
from whet.passes.factorization.low_rank import balanced
from whet.passes.factorization.spectrum import Spectrum
from whet.passes.factorization.tucker import tucker2

QUICK = settings(max_examples=40, deadline=None)
SIZES = st.tuples(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9))


def error(out: torch.Tensor, ref: torch.Tensor) -> float:
    return float((out - ref).norm() / ref.norm())


@QUICK
@given(sizes=SIZES, seed=st.integers(0, 99), rooted=st.booleans(), share=st.floats(0, 1))
def test_svd_loses_what_it_says_in_the_norm_of_the_root(
    sizes: tuple[int, int, int], seed: int, rooted: bool, share: float
) -> None:
    groups, _, n = sizes
    matrix = weight(*sizes, seed=seed).double()
    samples = weight(groups, 3 * n, n, seed=seed + 1).double()
    root = torch.linalg.cholesky(samples.transpose(1, 2) @ samples) if rooted else None
    spectrum = Spectrum(matrix, root)
    left, right = spectrum.factors(spectrum.full)
    assert error(left @ right, matrix) < 1e-8
    rank = max(1, round(share * spectrum.full))
    left, right = spectrum.factors(rank)
    lost, whole = matrix - left @ right, matrix
    if root is not None:
        lost, whole = lost @ root, whole @ root
    assert abs(float(lost.square().sum() / whole.square().sum()) - spectrum.lost(rank)) < 1e-8


@QUICK
@given(sizes=SIZES, seed=st.integers(0, 99))
def test_balancing_keeps_the_product_and_evens_the_norms(sizes: tuple[int, int, int], seed: int) -> None:
    groups, m, n = sizes
    rank = 3
    left, right = weight(groups, m, rank, seed=seed).double() * 50, weight(groups, rank, n, seed=seed).double()
    u, v = balanced(left, right)
    assert error(u @ v, left @ right) < 1e-10
    assert torch.allclose(u.norm(dim=1), v.norm(dim=2))


def test_components_of_zero_stay_finite() -> None:
    u, v = balanced(torch.zeros(1, 3, 2), torch.zeros(1, 2, 3))
    assert bool(torch.isfinite(u).all() and torch.isfinite(v).all())


@QUICK
@given(
    sizes=st.tuples(st.integers(1, 7), st.integers(1, 7), st.integers(1, 3), st.integers(1, 3)),
    ranks=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    seed=st.integers(0, 99),
)
def test_tucker_is_within_the_bound_of_both_tails(
    sizes: tuple[int, int, int, int], ranks: tuple[float, float], seed: int
) -> None:
    tensor = weight(*sizes, seed=seed).double()
    spectra = Spectrum(tensor.flatten(1)[None]), Spectrum(tensor.transpose(0, 1).flatten(1)[None])
    p, q = (max(1, round(share * size)) for share, size in zip(ranks, sizes[:2], strict=True))
    u, core, v = tucker2(tensor, (p, q))
    assert (u.shape, core.shape, v.shape) == ((sizes[0], p), (p, q, *sizes[2:]), (q, sizes[1]))
    lost = error(torch.einsum("op,pqyx,qi->oiyx", u, core, v), tensor) ** 2
    assert lost <= spectra[0].lost(p) + spectra[1].lost(q) + 1e-9


@pytest.mark.parametrize("shape", [(6, 5, 3, 3), (8, 4, 5), (4, 3, 2, 3, 2)])
def test_cp_finds_a_tensor_of_that_rank(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(3)
    tensor = composed([torch.randn(size, 3, generator=generator, dtype=torch.float64) for size in shape])
    factors = cp(tensor, 3)
    assert error(composed(factors), tensor) < 1e-5
    norms = torch.stack([factor.norm(dim=0) for factor in factors])
    assert torch.allclose(norms, norms[:1].expand_as(norms))


def test_cp_of_more_components_fits_better() -> None:
    tensor = weight(5, 4, 3, 3).double()
    errors = [error(composed(cp(tensor, rank, sweeps=20)), tensor) for rank in (2, 6, 18)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.6
