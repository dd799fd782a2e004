"""Comparing what graphs compute, as docs/numerics.md does, and building small ones from a function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from whet.ir import Builder, DType, Graph, Interpreter, TensorType, Value, print_graph, verify
from whet.passes import Context, Pass

TOLERANCE = 1e-5


def build(body: Callable[..., Any], *shapes: Sequence[int], dtype: DType = DType.F32) -> Graph:
    """The graph of `body(builder, *inputs)`, one input a shape; it returns the output or a tuple of them."""
    graph = Graph()
    builder = Builder(graph)
    inputs = [builder.input(f"x{index}", TensorType(tuple(shape), dtype)) for index, shape in enumerate(shapes)]
    outputs = body(builder, *inputs)
    graph.outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    verify(graph)
    return graph


def weight(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def positive(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 0.5


def inputs_of(graph: Graph) -> list[torch.Tensor]:
    """Random tensors for every input; f32 and f64 only."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(value.type.static_shape, generator=generator, dtype=value.type.dtype.torch)
        for value in graph.inputs
    ]


def relative_error(out: torch.Tensor, ref: torch.Tensor) -> float:
    """‖out - ref‖ / ‖ref‖ (numerics: T1, T2)."""
    assert out.shape == ref.shape and out.dtype == ref.dtype
    left, right = out.double(), ref.double()
    finite = torch.isfinite(right)
    assert torch.equal(finite, torch.isfinite(left))
    assert torch.equal(left[~finite].nan_to_num(9.0), right[~finite].nan_to_num(9.0))
    left, right = left[finite], right[finite]
    norm = float(right.norm())
    return float((left - right).norm()) / (norm or 1.0)


def assert_same_results(
    before: Graph, after: Graph, inputs: Sequence[torch.Tensor] | None = None, tolerance: float = TOLERANCE
) -> None:
    """Two calls each, so that state counts; every output by itself (numerics: T3)."""
    given = inputs_of(before) if inputs is None else inputs
    first, second = Interpreter(before), Interpreter(after)
    for _ in range(2 if before.state else 1):
        for out, ref in zip(second(*given), first(*given), strict=True):
            error = relative_error(out, ref)
            assert error <= tolerance, f"{error}\n{print_graph(before)}\n{print_graph(after)}"


def run_checked(
    item: Pass, graph: Graph, inputs: Sequence[torch.Tensor] | None = None, tolerance: float = TOLERANCE
) -> Graph:
    """What every pass promises: it leaves its argument alone, verifies, repeats, is idempotent and honest."""
    text = print_graph(graph)
    result = item.run(graph, Context())
    assert print_graph(graph) == text, "the graph given has changed"
    verify(result.graph)
    after = print_graph(result.graph)
    assert result.modified == (after != text), "modified is not honest"
    assert print_graph(item.run(graph, Context()).graph) == after, "not deterministic"
    again = item.run(result.graph, Context())
    assert not again.modified and print_graph(again.graph) == after, f"not idempotent:\n{after}\n{again.graph}"
    assert_same_results(graph, result.graph, inputs, tolerance)
    return result.graph


def count(graph: Graph) -> Counter[str]:
    """Operations by name."""
    return Counter(operation.name for operation in graph.operations)


def producer(value: Value) -> Any:
    assert value.producer is not None
    return value.producer
