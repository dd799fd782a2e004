"""Checks one function through capture, converters, verifier, text form and interpreter against eager."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from whet.frontend import import_model
from whet.ir import Graph, Interpreter, parse_graph, print_graph
from whet.ir.printer import graph_tensors

Function = Callable[..., Any]


class Call(nn.Module):
    """A function as a module in evaluation mode."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(*inputs)


def imported(function: Function, *inputs: Tensor, dynamic_shapes: Any = None) -> Graph:
    """The graph of a function."""
    return import_model(Call(function), inputs, dynamic_shapes=dynamic_shapes)


def check(function: Function, *inputs: Tensor) -> Graph:
    """Import, run and compare with eager, then again from the graph's text; the graph, to look at."""
    graph = imported(function, *inputs)
    expect_equal(Interpreter(graph)(*inputs), function(*inputs))
    text = print_graph(graph)
    again = parse_graph(text, graph_tensors(graph))
    assert print_graph(again) == text
    expect_equal(Interpreter(again)(*inputs), function(*inputs))
    return graph


def expect_equal(results: tuple[Tensor, ...], expected: Any) -> None:
    """Floating point to 1e-5, everything else exactly; shapes and dtypes too."""
    wanted = [item for item in (expected if isinstance(expected, (tuple, list)) else [expected]) if item is not None]
    assert len(results) == len(wanted)
    for index, (result, reference) in enumerate(zip(results, wanted, strict=True)):
        exact = not reference.is_floating_point()
        tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {"rtol": 1e-5, "atol": 1e-6}
        named = functools.partial("result {}: {}".format, index)
        torch.testing.assert_close(result, reference, equal_nan=True, msg=named, **tolerance)


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal elements, the same in every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def integers(*shape: int, low: int = -5, high: int = 6, dtype: torch.dtype = torch.int64, seed: int = 0) -> Tensor:
    """Uniform integers in low..high - 1, the same in every call."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).to(dtype)


def operations(graph: Graph) -> list[str]:
    """Names of the operations, constants left out."""
    return [operation.name for operation in graph.operations if operation.name != "constant"]
