"""Inputs and outputs of any structure keep it."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from tests.frontend.operators import randn
from whet.errors import CaptureError
from whet.frontend import import_model
from whet.ir import Interpreter
from whet.runtime.structure import flatten, unflatten

X, Y = randn(2, 3), randn(2, 3, seed=1)
Pair = namedtuple("Pair", ["first", "second"])


@dataclass
class Record:
    """A result with an optional part."""

    value: Tensor
    rest: Any = None
    number: int = 3


torch.export.register_dataclass(Record, serialized_type_name="whet.tests.Record")


class Nested(nn.Module):
    def forward(self, x: Tensor, pair: dict[str, Any], *, flag: bool = True, times: int = 2) -> Any:
        parts = [pair["both"][0] * times, None, (3, "text", True, 0.5), x.shape[0]]
        return Pair(x + pair["both"][1], parts), Record(pair["other"]), {"flag": flag}


def call(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What a caller of the imported graph gets, through the structures."""
    graph = import_model(model.eval(), args, kwargs)
    leaves = flatten(graph.input_structure, (args, kwargs))
    return unflatten(graph.output_structure, Interpreter(graph)(*leaves))


def test_nested_structures() -> None:
    pair = {"both": (X, Y), "other": X - Y}
    (first, parts), record, flags = call(Nested(), X, pair, flag=True, times=4)
    torch.testing.assert_close(first, X + Y)
    torch.testing.assert_close(parts[0], X * 4)
    assert parts[1:] == [None, (3, "text", True, 0.5), 2]
    torch.testing.assert_close(record.value, X - Y)
    assert record.rest is None
    assert flags == {"flag": True}


def test_names_of_records_are_kept() -> None:
    result = call(Nested(), X, {"both": (X, Y), "other": X})
    assert type(result[0]).__name__ == "Pair"
    assert result[0]._fields == ("first", "second")


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x,
        lambda x: (x,),
        lambda x: [x, x + 1],
        lambda x: {"b": x, "a": x + 1},
        lambda x: OrderedDict(b=x, a=x + 1),
        lambda x: (x, None, {"k": [x * 2]}),
        lambda x: (x, x),
    ],
    ids=["tensor", "tuple", "list", "dict", "ordered", "nested", "twice"],
)
def test_outputs(make: Any) -> None:
    class Makes(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return make(x)

    result, expected = call(Makes(), X), make(X)
    expected = dict(expected) if isinstance(expected, OrderedDict) else expected
    assert pytree.tree_structure(result) == pytree.tree_structure(expected)
    for left, right in zip(pytree.tree_leaves(result), pytree.tree_leaves(expected), strict=True):
        assert right is None or torch.equal(left, right)


def test_an_input_that_is_returned_and_one_that_is_not_used() -> None:
    class Passes(nn.Module):
        def forward(self, x: Tensor, unused: Tensor) -> Tensor:
            return x

    assert torch.equal(call(Passes(), X, Y), X)


def test_keywords_keep_their_names() -> None:
    class Keywords(nn.Module):
        def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 2.0) -> Tensor:
            return x * scale if mask is None else x * mask * scale

    torch.testing.assert_close(call(Keywords(), X, mask=Y), X * Y * 2)
    graph = import_model(Keywords().eval(), (X,), {"mask": Y})
    assert [value.name for value in graph.inputs] == ["x", "mask"]


def test_constants_and_parameters_may_be_outputs() -> None:
    class Returns(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(randn(3))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return x, self.weight, torch.ones(2)

    model = Returns()
    _, weight, ones = call(model, X)
    assert torch.equal(weight, model.weight)
    assert torch.equal(ones, torch.ones(2))


def test_structures_that_cannot_be_kept() -> None:
    class Odd:
        def __init__(self, x: Tensor) -> None:
            self.x = x

    pytree.register_pytree_node(
        Odd, lambda odd: ([odd.x], None), lambda items, _: Odd(*items), serialized_type_name="whet.tests.Odd"
    )

    class Returns(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return Odd(x)

    with pytest.raises(CaptureError, match=r"structure.*Odd"):
        import_model(Returns().eval(), (X,))
