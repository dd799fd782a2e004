"""Attention written out in other operations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.ir.samples import SAMPLES, Sample, bits, randn
from whet.ir import Builder, DType, Graph, Interpreter, TensorType, verify
from whet.ir.dimensions import symbol
from whet.passes.legalize import DecomposeAttention


def _masks() -> list[Sample]:
    q, k, v = randn(7, 4, 11, 8), randn(7, 4, 5, 8), randn(7, 4, 5, 6)
    blind = bits(7, 1, 11, 5)
    blind[:, :, 3] = False
    additive = torch.zeros(11, 5, dtype=torch.float64)
    additive[2], additive[3, :3] = -math.inf, -math.inf
    rows = {
        "blind": (q, k, v, blind),
        "blind-float": (q, k, v, additive),
        "column": (q, k, v, bits(7, 1, 11, 1)),
        "scalar": (q, k, v, torch.tensor(True)),
        "grouped-heads": (q, k[:, :2], v[:, :2], bits(7, 4, 11, 5)),
        "grouped-matrix": (q, k[:, :2], v[:, :2], bits(11, 5)),
        "grouped-one": (q, k[:, :2], v[:, :2], bits(7, 1, 11, 5)),
        "batches": (randn(2, 3, 4, 11, 8), randn(2, 1, 4, 5, 8), randn(1, 3, 4, 5, 6)),
    }
    return [
        Sample("attention", operands, {"causal": causal}, label=f"{name}{'-causal' * causal}")
        for name, operands in rows.items()
        for causal in (False, True)
    ]


ATTENTIONS = [*(sample for sample in SAMPLES if sample.op == "attention"), *_masks()]


def graph_of(sample: Sample) -> tuple[Graph, list[Tensor]]:
    graph = Graph()
    builder = Builder(graph)
    values = [None if type is None else builder.input(f"x{slot}", type) for slot, type in enumerate(sample.types())]
    graph.outputs = [builder.attention(*values, **sample.attributes)]
    return graph, [item for item in sample.operands if item is not None]


@pytest.mark.parametrize("sample", ATTENTIONS, ids=lambda sample: sample.id)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_decomposed_attention_is_attention(sample: Sample, dtype: torch.dtype) -> None:
    graph, feeds = graph_of(sample.cast(dtype))
    result = DecomposeAttention()(graph)
    verify(result.graph)
    assert result.modified
    assert all(operation.name != "attention" for operation in result.graph.operations)
    (out,), (ref,) = Interpreter(result.graph)(*feeds), Interpreter(graph)(*feeds)
    assert out.dtype is ref.dtype
    error = float((out.double() - ref.double()).norm() / ref.double().norm())
    assert error <= {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}[dtype]


def test_rows_that_see_nothing_are_zero() -> None:
    sample = next(item for item in ATTENTIONS if item.label == "blind")
    graph, feeds = graph_of(sample)
    (out,) = Interpreter(DecomposeAttention()(graph).graph)(*feeds)
    assert torch.equal(out[:, :, 3], torch.zeros_like(out[:, :, 3]))
    assert not out.isnan().any()


def test_symbolic_lengths() -> None:
    graph = Graph()
    builder = Builder(graph)
    batch, rows, columns = symbol("n"), symbol("l"), symbol("s")
    query = builder.input("q", TensorType((batch, 4, rows, 8), DType.F32))
    key, value = (builder.input(name, TensorType((batch, 2, columns, 8), DType.F32)) for name in "kv")
    mask = builder.input("m", TensorType((batch, 1, 1, columns), DType.BOOL))
    graph.outputs = [builder.attention(query, key, value, mask, causal=True)]
    decomposed = DecomposeAttention()(graph).graph
    verify(decomposed)
    for n, length, width in ((1, 1, 1), (2, 5, 7), (3, 9, 4)):
        feeds = [
            torch.randn(n, 4, length, 8),
            torch.randn(n, 2, width, 8),
            torch.randn(n, 2, width, 8),
            torch.rand(n, 1, 1, width) > 0.4,
        ]
        (out,), (ref,) = Interpreter(decomposed)(*feeds), Interpreter(graph)(*feeds)
        assert torch.allclose(out, ref, atol=1e-6)


def test_a_graph_without_attention_comes_back_as_it_is() -> None:
    graph = Graph()
    builder = Builder(graph)
    graph.outputs = [builder.relu(builder.input("x", TensorType((3,), DType.F32)))]
    result = DecomposeAttention()(graph)
    assert result.graph is graph
    assert not result.modified
