"""Indexing and sorting: what is refused, what belongs together, and equality with torch's own operators."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from whet.ir import Builder, DType, Graph, TensorType
from whet.ir.definition import Axis, InferError, Tie
from whet.ir.graph import Operation
from whet.ir.ops import CATALOGUE

F32, I64 = DType.F32, DType.I64
X = torch.arange(24.0).reshape(2, 3, 4)


def run(name: str, *operands: Tensor, **attributes: Any) -> Any:
    definition = CATALOGUE[name]
    complete = definition.signature.with_defaults(attributes)
    results = definition.evaluate(*operands, **complete)
    types = definition.result_types([TensorType.of(item) for item in operands], complete)
    for result, expected in zip(results if isinstance(results, tuple) else (results,), types, strict=True):
        assert TensorType.of(result) == expected
    return results


def operation(name: str, *types: TensorType, **attributes: Any) -> Operation:
    builder = Builder(Graph())
    values = [builder.input(f"x{slot}", type) for slot, type in enumerate(types)]
    return builder.emit(name, values, attributes)


REFUSED: list[tuple[str, list[TensorType], dict[str, Any], str]] = [
    ("take", [TensorType((3,), F32), TensorType((2,), F32)], {}, "i64 or i32"),
    ("take", [TensorType((3,), F32), TensorType((2,), I64)], {"axis": 1}, "outside"),
    ("gather", [TensorType((3, 2), F32), TensorType((2,), I64)], {"axis": 0}, "one rank"),
    ("gather", [TensorType((3, 2), F32), TensorType((3, 4), I64)], {"axis": 0}, "larger"),
    (
        "scatter",
        [TensorType((3,), F32), TensorType((2,), I64), TensorType((1,), F32)],
        {"axis": 0},
        "one shape",
    ),
    (
        "scatter",
        [TensorType((3,), F32), TensorType((2,), I64), TensorType((2,), I64)],
        {"axis": 0},
        "one dtype",
    ),
    (
        "scatter",
        [TensorType((3,), F32), TensorType((2,), I64), TensorType((2,), F32)],
        {"axis": 0, "reduction": "mean"},
        "reduction",
    ),
    (
        "scatter_slices",
        [TensorType((3, 2), F32), TensorType((2, 1), I64), TensorType((2, 2), F32)],
        {"axis": 0},
        "vector",
    ),
    (
        "scatter_slices",
        [TensorType((3, 2), F32), TensorType((2,), I64), TensorType((2, 3), F32)],
        {"axis": 0},
        "shape",
    ),
    ("sort", [TensorType((3,), F32)], {"axis": 1}, "outside"),
    ("topk", [TensorType((3,), F32)], {"axis": 0, "k": 4}, "0..3"),
]


@pytest.mark.parametrize(("name", "types", "attributes", "message"), REFUSED)
def test_operands_that_do_not_fit_are_refused(
    name: str, types: list[TensorType], attributes: dict[str, Any], message: str
) -> None:
    definition = CATALOGUE[name]
    with pytest.raises(InferError, match=message):
        definition.result_types(types, definition.signature.with_defaults(attributes))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_take(axis: int) -> None:
    index = torch.tensor([[1, 0], [0, 1], [1, 1]])
    expected = torch.stack([torch.stack([X.select(axis, int(i)) for i in row]) for row in index])
    assert torch.equal(run("take", X, index, axis=axis), expected.movedim((0, 1), (axis, axis + 1)))


def test_the_reference_refuses_indices_outside() -> None:
    with pytest.raises((IndexError, RuntimeError)):
        run("take", X, torch.tensor([-1]), axis=0)


@pytest.mark.parametrize("reduction", ["replace", "add", "mul", "amin", "amax"])
def test_scatter_slices_is_a_scatter_of_every_element(reduction: str) -> None:
    index, updates = torch.tensor([2, 0]), -X[:, :2]
    spread = index[None, :, None].expand(updates.shape)
    slices = run("scatter_slices", X, index, updates, axis=1, reduction=reduction)
    assert torch.equal(slices, run("scatter", X, spread, updates, axis=1, reduction=reduction))


def test_repeated_indices_add_up() -> None:
    result = run(
        "scatter_slices", torch.zeros(3), torch.tensor([1, 1]), torch.tensor([2.0, 3.0]), axis=0, reduction="add"
    )
    assert result.tolist() == [0, 5, 0]


def test_indexing_is_differentiable() -> None:
    x, updates = X.clone().requires_grad_(), torch.ones(2, 1, 4, requires_grad=True)
    index = torch.tensor([1])
    (run("take", x, index, axis=1).sum() + run("scatter_slices", x, index, updates, axis=1).sum()).backward()
    assert x.grad is not None and updates.grad is not None
    assert x.grad[:, 1].unique().tolist() == [1.0] and x.grad[:, 0].unique().tolist() == [1.0]
    assert updates.grad.unique().tolist() == [1.0]


def test_columns_of_a_table_belong_to_columns_of_what_is_taken() -> None:
    take = operation("take", TensorType((9, 5), F32), TensorType((2, 7), I64), axis=0)
    assert take.definition.axes(take) == [
        Tie(Axis(0, 1), Axis(-1, 2)),
        Tie(Axis(1, 0), Axis(-1, 0)),
        Tie(Axis(1, 1), Axis(-1, 1)),
    ]


def test_the_indexed_dimension_of_updates_belongs_to_the_indices() -> None:
    scatter = operation(
        "scatter_slices", TensorType((9, 5), F32), TensorType((2,), I64), TensorType((2, 5), F32), axis=0
    )
    ties = scatter.definition.axes(scatter)
    assert Tie(Axis(1, 0), Axis(2, 0)) in ties
    assert Tie(Axis(2, 1), Axis(-1, 1)) in ties
    assert Tie(Axis(2, 0), Axis(-1, 0)) not in ties


def test_a_take_reads_only_the_rows_it_takes() -> None:
    take = operation("take", TensorType((1000, 4), F32), TensorType((2,), I64), axis=0)
    assert take.definition.cost(take).bytes == 2 * 4 * 4 + 2 * 4 * 4 + 2 * 8


def test_sort_is_stable_and_puts_nan_last() -> None:
    x = torch.tensor([2.0, float("nan"), 1.0, 2.0])
    values, indices = run("sort", x, axis=0)
    assert indices.tolist() == [2, 0, 3, 1]
    assert values[:3].tolist() == [1, 2, 2]
    assert run("sort", x.nan_to_num(), axis=0, descending=True)[1].tolist() == [0, 3, 2, 1]


def test_topk_is_the_beginning_of_a_sort() -> None:
    x = torch.randperm(20).reshape(4, 5)
    values, indices = run("topk", x, k=2, axis=1)
    ordered, places = run("sort", x, axis=1, descending=True)
    assert torch.equal(values, ordered[:, :2]) and torch.equal(indices, places[:, :2])
