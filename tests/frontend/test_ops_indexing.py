"""Reading and writing at indices, masks and embeddings."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.frontend.operators import Function, check, imported, integers, operations, randn
from whet.errors import CaptureError, UnsupportedOpError, WhetError
from whet.ir import Interpreter

X = randn(4, 5, 6)
INTEGERS = integers(4, 5, 6)
ROWS = torch.tensor([3, -1, 0])
COLUMNS = torch.tensor([1, 4, -2])
GRID = torch.tensor([[0, 1], [2, -1]])
POSITIONS = integers(4, 5, 6, low=0, high=4)
FEW = integers(2, 3, 4, low=0, high=4)
MASK = X > 0
PLANE_MASK = torch.arange(20).reshape(4, 5) % 3 == 0
SOURCE = randn(4, 5, 6, seed=3)
EDGES = torch.tensor([-1.0, 0.0, 0.5, 2.0])

CASES: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    "index_one": (lambda x, i, g: [x[i], x[:, i], x[..., i], x[g], x[:, g]], (X, ROWS, GRID)),
    "index_neighbours": (lambda x, i, j: [x[i, j], x[:, i, j], x[i[:, None], j]], (X, ROWS, COLUMNS)),
    "index_apart": (lambda x, i, j: [x[i, :, j], x[i[:, None], :, j]], (X, ROWS, COLUMNS)),
    "index_all": (lambda x, i, j: x[i, j, i], (X, ROWS, COLUMNS)),
    "index_constant": (lambda x: [x[[0, -1]], x[:, [1, 1, -3], [0, 2, 5]], x[None, [1]]], (X,)),
    "index_int32": (lambda x, i: x[i], (X, ROWS.to(torch.int32))),
    "index_nothing": (lambda x, i: x[i], (X, torch.empty(0, dtype=torch.int64))),
    "index_put": (lambda x, i, v: torch.index_put(x, (i,), v), (X, ROWS, SOURCE[:3])),
    "index_put_apart": (lambda x, i, j, v: _put_apart(x, i, j, v), (X, ROWS, COLUMNS, SOURCE[:3, :, 0])),
    "index_put_inner": (lambda x, i, v: _put_inner(x, i, v), (X, ROWS, randn(6))),
    "index_put_accumulate": (
        lambda x, v: torch.index_put(x, (torch.tensor([1, 1, 2]), torch.tensor([0, 0, -1])), v, accumulate=True),
        (X, SOURCE[:3, 0]),
    ),
    "index_put_mask": (lambda x, m: [_masked(x, m, 2.0), _masked(x, m[:, 0, 0], 3.0)], (X, MASK)),
    "index_put_constant_mask": (lambda x: _masked(x, PLANE_MASK, 1.5), (X,)),
    "slice_assignment": (lambda x, v: _assigned(x, v), (X, SOURCE)),
    "take": (lambda x, i: [torch.take(x, i), torch.put(x, i, torch.ones(3))], (X, ROWS)),
    "take_along_dim": (lambda x: torch.take_along_dim(x, x.argsort(1), 1), (X,)),
    "index_select": (
        lambda x, i: [x.index_select(0, i), x.index_select(-1, i)],
        (X, torch.tensor([0, 2, 2])),
    ),
    "embedding": (
        lambda w, i: F.embedding(i, w, padding_idx=0),
        (randn(7, 3), integers(2, 4, low=0, high=7)),
    ),
    "embedding_bag": (
        lambda w, i: [F.embedding_bag(i, w, mode=mode) for mode in ("sum", "mean", "max")],
        (randn(7, 3), integers(2, 4, low=0, high=7)),
    ),
    "embedding_bag_offsets": (
        lambda w, i, o: [F.embedding_bag(i, w, o, mode=mode) for mode in ("sum", "mean", "max")],
        (randn(7, 3), integers(8, low=0, high=7), torch.tensor([0, 3, 3])),
    ),
    "gather": (lambda x, i, f: [x.gather(0, i), x.gather(2, f)], (X, POSITIONS, FEW)),
    "gather_nothing": (
        lambda x, e: [x.gather(0, e), x.scatter_add(1, e, x)],
        (X[0], torch.empty(0, dtype=torch.int64)),
    ),
    "scatter": (
        lambda x, i, s: [x.scatter(0, _distinct(i), s), x.scatter(1, i[:, :1], 2.5)],
        (X, POSITIONS, SOURCE),
    ),
    "scatter_smaller": (lambda x, s: x.scatter(2, torch.tensor([[[0, 5]], [[1, 2]]]), s), (X, SOURCE)),
    "scatter_add": (
        lambda x, i, s: [x.scatter_add(0, i, s), x.scatter(1, i, s, reduce="add")],
        (X, POSITIONS, SOURCE),
    ),
    "scatter_multiply": (lambda x, i, s: x.scatter(2, i, s, reduce="multiply"), (X, POSITIONS, SOURCE)),
    "scatter_value_add": (lambda x, i: x.scatter(2, i, 1.5, reduce="add"), (X, POSITIONS)),
    "scatter_reduce": (
        lambda x, i, s: [x.scatter_reduce(1, i, s, kind) for kind in ("sum", "prod", "mean", "amax", "amin")],
        (X, POSITIONS, SOURCE),
    ),
    "scatter_reduce_without_self": (
        lambda x, i, s: [
            x.scatter_reduce(1, i, s, kind, include_self=False) for kind in ("sum", "prod", "mean", "amax", "amin")
        ],
        (X, POSITIONS, SOURCE),
    ),
    "scatter_reduce_integers": (
        lambda x, i, s: [x.scatter_reduce(0, i, s, kind, include_self=False) for kind in ("mean", "amax", "amin")],
        (INTEGERS, POSITIONS, INTEGERS.flip(0)),
    ),
    "index_add": (
        lambda x, i, s: [x.index_add(0, i, s), x.index_add(0, i, s, alpha=2)],
        (X, ROWS.abs(), SOURCE[:3]),
    ),
    "index_copy": (lambda x, i, s: x.index_copy(1, i, s), (X, ROWS.abs(), SOURCE[:, :3])),
    "index_fill": (
        lambda x, i, v: [x.index_fill(1, i, -2.0), x.index_fill(0, i, v)],
        (X, ROWS, torch.tensor(4.0)),
    ),
    "index_reduce": (
        lambda x, i, s: [x.index_reduce(0, i, s, kind, include_self=False) for kind in ("prod", "mean", "amax")],
        (X, torch.tensor([1, 1, 3]), SOURCE[:3]),
    ),
    "masked_scatter": (lambda x, m, s: x.masked_scatter(m, s), (X, MASK, SOURCE)),
    "one_hot": (lambda i: F.one_hot(i, 4), (FEW,)),
    "bucketize": (
        lambda x, e: [torch.bucketize(x, e), torch.bucketize(x, e, right=True, out_int32=True)],
        (X, EDGES),
    ),
    "searchsorted": (
        lambda e, x: [torch.searchsorted(e, x), torch.searchsorted(e, x, side="right")],
        (randn(4, 5, 7).sort(-1).values, X),
    ),
    "isin": (
        lambda i, t: [torch.isin(i, t), torch.isin(i, t, invert=True), torch.isin(i, 2)],
        (INTEGERS, ROWS),
    ),
}


def _masked(x: Tensor, mask: Tensor, value: float) -> Tensor:
    x = x.clone()
    x[mask] = value
    return x


def _put_apart(x: Tensor, rows: Tensor, columns: Tensor, values: Tensor) -> Tensor:
    x = x.clone()
    x[rows, :, columns] = values
    return x


def _put_inner(x: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    x = x.clone()
    x[:, rows] = values
    return x


def _assigned(x: Tensor, values: Tensor) -> Tensor:
    x = x.clone()
    x[1:3, :, ::2] = values[1:3, :, ::2]
    x[:, -1] = 0
    x[..., 0] += 1
    return x


def _distinct(index: Tensor) -> Tensor:
    """Every position once along the first dimension, so that the order of writing does not matter."""
    return index.argsort(0)


@pytest.mark.parametrize("name", CASES)
def test_indexing(name: str) -> None:
    function, inputs = CASES[name]
    check(function, *inputs)


def test_an_index_along_one_dimension_is_one_take() -> None:
    assert operations(check(lambda x: x[:, torch.tensor([0, 2])], X)) == ["take"]


def test_indices_that_cannot_be_negative_are_used_as_they_are() -> None:
    assert "where" not in operations(check(lambda x: x[:, x.argmax(1)[0]], X))
    assert "where" not in operations(check(lambda x: x[torch.arange(3)], X))


def test_a_mask_that_is_data_becomes_a_select() -> None:
    assert set(operations(check(lambda x, m: _masked(x, m, 0.0), X, MASK))) <= {"where", "reshape"}


def test_symbolic_sizes() -> None:
    """Negative indices and merged dimensions where the sizes are only known at run time."""
    size = torch.export.Dim("size", min=3, max=64)
    graph = imported(
        lambda x, i, j: [x[i], x[i, j], x.take(i), x[:, -1]],
        X,
        ROWS,
        COLUMNS,
        dynamic_shapes=(({0: size}, {}, {}),),
    )
    for rows in (4, 9):
        x = randn(rows, 5, 6, seed=rows)
        results = Interpreter(graph)(x, ROWS, COLUMNS)
        for result, expected in zip(results, [x[ROWS], x[ROWS, COLUMNS], x.take(ROWS), x[:, -1]], strict=True):
            assert torch.equal(result, expected)


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (lambda x: x[x > 0], "depends on the data|mask"),
        (lambda x: torch.nonzero(x), "nonzero|depends on the data"),
        (lambda x: torch.masked_select(x, x > 0), "masked_select|depends on the data"),
        (lambda x: torch.unique(x), "unique|depends on the data"),
        (lambda x: torch.where(x > 0), "nonzero|where|depends on the data"),
    ],
)
def test_shapes_that_depend_on_the_data_are_refused(function: Function, words: str) -> None:
    with pytest.raises((CaptureError, UnsupportedOpError), match=words) as caught:
        imported(function, X)
    assert isinstance(caught.value, WhetError)
