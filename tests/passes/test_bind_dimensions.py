from __future__ import annotations

import pytest
import torch

from tests.passes.equality import assert_same_results
from whet.errors import PassError
from whet.frontend import import_model
from whet.ir import Graph, verify
from whet.passes import BindDimensions


def flexible() -> Graph:
    """Two symbolic dimensions, one of which a reshape multiplies."""

    class Flat(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return x.reshape(-1) * 2, y + 1

    batch, length = torch.export.Dim("batch", max=64), torch.export.Dim("length", max=32)
    return import_model(Flat().eval(), (torch.randn(3, 4), torch.randn(5)), None, ({0: batch}, {0: length}))


def test_every_dimension_is_bound_in_types_and_attributes() -> None:
    graph = flexible()
    bound = BindDimensions(default=6)(graph).graph
    verify(bound)
    assert not bound.dimensions
    assert [value.type.static_shape for value in bound.outputs] == [(24,), (6,)]
    assert_same_results(graph, bound, [torch.randn(6, 4), torch.randn(6)])


def test_one_dimension_is_bound_and_the_other_stays() -> None:
    graph = flexible()
    first, second = graph.dimensions
    bound = BindDimensions({first: 2})(graph).graph
    verify(bound)
    assert list(bound.dimensions) == [second]
    assert_same_results(graph, bound, [torch.randn(2, 4), torch.randn(7)])


@pytest.mark.parametrize(
    ("sizes", "default", "message"),
    [({"nothing": 2}, None, "no dimension is named nothing"), ({}, 1000, "cannot be 1000")],
)
def test_refusals(sizes: dict[str, int], default: int | None, message: str) -> None:
    with pytest.raises(PassError, match=message):
        BindDimensions(sizes, default)(flexible())
