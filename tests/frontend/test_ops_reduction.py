"""Reductions, scans, order statistics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.frontend.operators import Function, check, integers, operations, randn

X = randn(3, 4, 5)
MATRIX = randn(4, 6)
INTEGERS = integers(3, 4, 5)
TRUTH = INTEGERS > 0
NANS = torch.tensor([[1.0, math.nan, 3.0, 2.0, math.nan], [4.0, -math.inf, math.inf, 0.0, 4.0]])
DISTINCT = torch.stack([torch.randperm(7, generator=torch.Generator().manual_seed(seed)) for seed in range(3)])

CASES: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    "sum": (lambda x: [x.sum(), x.sum(1), x.sum((0, 2), keepdim=True), x.sum(-1)], (X,)),
    "sum_of_bools_is_integer": (lambda p: [p.sum(), p.sum(1), p.cumsum(0)], (TRUTH,)),
    "sum_with_dtype": (lambda i: [i.sum(dtype=torch.float32), i.sum(1, dtype=torch.int32)], (INTEGERS,)),
    "sum_of_narrow_integers": (
        lambda i: [i.sum(), i.sum(0), i.prod(), i.cumsum(0)],
        (INTEGERS.to(torch.int8),),
    ),
    "mean": (lambda x, i: [x.mean(), x.mean((1, 2)), i.mean(dtype=torch.float32)], (X, INTEGERS)),
    "prod": (lambda x, i: [x.prod(), x.prod(1, keepdim=True), i.prod(2)], (X, INTEGERS)),
    "amax": (lambda x, i: [x.amax(), x.amax((0, 1)), x.amin(2, keepdim=True), i.amax(1)], (X, INTEGERS)),
    "max_total": (lambda x, p: [x.max(), x.min(), p.max(), p.min()], (X, TRUTH)),
    "max_dim": (lambda x, y: [*x.max(1), *x.min(2, keepdim=True), *y.max(1), *y.min(0)], (X, NANS)),
    "max_of_bools": (lambda p: [p.max(1).values, p.min(1).values, p.amax(0)], (TRUTH,)),
    "aminmax": (lambda x: [*torch.aminmax(x), *torch.aminmax(x, dim=1)], (X,)),
    "argmax": (
        lambda x, y: [x.argmax(), x.argmax(1), x.argmin(2, keepdim=True), y.argmax(1), y.argmin()],
        (X, NANS),
    ),
    "any_all": (lambda p, x: [p.any(), p.all(1), p.any((0, 2)), x.any(1), x.all()], (TRUTH, X)),
    "any_of_bytes": (lambda i: [i.any(), i.all(1)], (INTEGERS.abs().to(torch.uint8),)),
    "var": (
        lambda x: [x.var(), x.var(1), x.var((0, 2), correction=0, keepdim=True), x.var(unbiased=False)],
        (X,),
    ),
    "std": (
        lambda x: [x.std(), x.std(1), *torch.std_mean(x, 2), *torch.var_mean(x, (0, 1), keepdim=True)],
        (X,),
    ),
    "vector_norm": (
        lambda x: [torch.linalg.vector_norm(x, p, 1) for p in (0, 1, 2, 3, 0.5, math.inf, -math.inf)],
        (X,),
    ),
    "norm": (lambda x: [x.norm(), x.norm(1), x.norm(dim=1), x.norm(3, dim=(0, 1), keepdim=True)], (X,)),
    "normalize": (lambda x: torch.nn.functional.normalize(x, dim=1), (X,)),
    "logsumexp": (
        lambda x, y: [x.logsumexp(1), x.logsumexp((0, 2), keepdim=True), y.logsumexp(1)],
        (X, NANS),
    ),
    "logsumexp_of_infinities": (lambda x: x.logsumexp(1), (torch.full((2, 3), -math.inf),)),
    "count_nonzero": (
        lambda i, p: [i.count_nonzero(), i.count_nonzero(1), p.count_nonzero((0, 1))],
        (INTEGERS, TRUTH),
    ),
    "nansum": (lambda x: [x.nansum(), x[:1].nansum(1), x[:1].nanmean(1)], (NANS,)),
    "cumsum": (lambda x, i: [x.cumsum(1), i.cumsum(-1), x.cumsum(0, dtype=torch.float64)], (X, INTEGERS)),
    "cumprod": (lambda x, i: [x.cumprod(1), i.cumprod(-1)], (X, INTEGERS)),
    "cummax": (lambda x, y: [*x.cummax(1), *x.cummin(2), *y.cummax(1), *y.cummin(1)], (X, NANS)),
    "cummax_of_equals": (lambda i: [*i.cummax(1), *i.cummin(2)], (INTEGERS,)),
    "logcumsumexp": (lambda x: x.logcumsumexp(1), (X,)),
    "trace": (lambda x: x.trace(), (MATRIX,)),
    "diff": (lambda x: [x.diff(), x.diff(dim=0, n=2)], (MATRIX,)),
    "cosine_similarity": (lambda x, y: torch.nn.functional.cosine_similarity(x, y, dim=1), (X, X.flip(0))),
    "cdist": (
        lambda x, y: torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist"),
        (MATRIX, MATRIX.flip(0) + 1),
    ),
    "pdist": (lambda x: [torch.pdist(x), torch.pdist(x, 1.0)], (MATRIX,)),
    "histc": (lambda x: torch.histc(x, 5, -2.0, 2.0), (MATRIX,)),
    "sort": (lambda x: [*x.sort(), *x.sort(0, descending=True), x.msort()], (MATRIX,)),
    "sort_of_equals_is_stable": (
        lambda i: [*torch.sort(i, dim=1, stable=True), torch.argsort(i, dim=2, stable=True)],
        (INTEGERS,),
    ),
    "sort_of_bools": (lambda p: torch.sort(p, dim=1, stable=True), (TRUTH,)),
    "argsort": (lambda x: [x.argsort(), x.argsort(0, descending=True)], (MATRIX,)),
    "topk": (lambda x: [*x.topk(3), *x.topk(2, dim=0, largest=False)], (MATRIX,)),
    "kthvalue": (lambda i: [*i.kthvalue(3), *i.kthvalue(2, 0, keepdim=True)], (DISTINCT,)),
    "median": (lambda x, y: [x.median(), *x.median(1), *y.median(1)], (MATRIX, NANS)),
    "nanmedian": (lambda x: [x.nanmedian(), x.nanmedian(1).values], (NANS,)),
    "quantile": (lambda x: [x.quantile(0.3), x.quantile(0.5, dim=1)], (MATRIX,)),
}


@pytest.mark.parametrize("name", CASES)
def test_reduction(name: str) -> None:
    function, inputs = CASES[name]
    check(function, *inputs)


def test_scalars() -> None:
    check(
        lambda x: [
            x.sum(),
            x.mean(),
            x.amax(0),
            *x.max(0),
            x.argmax(),
            x.cumsum(0),
            *x.sort(),
            *x.cummax(0),
            x.var(),
        ],
        torch.tensor(2.5),
    )


def test_empty_tensors() -> None:
    check(
        lambda x: [x.sum(), x.sum(0), x.prod(1), x.cumsum(1), x.any(), x.all(1), x.logsumexp(1)],
        torch.empty(3, 0),
    )


def test_tensors_that_are_not_contiguous() -> None:
    check(lambda x: [x.sum(0), x.cumsum(1), *x.sort(0), x.argmax(1)], MATRIX.t())


def test_max_along_a_dimension_is_a_reduction_and_its_position() -> None:
    assert operations(check(lambda x: x.max(1), X)) == ["argmax", "amax"]
