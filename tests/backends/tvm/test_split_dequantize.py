"""Codes that several kernels read are dequantized inside of each."""

from __future__ import annotations

import torch

import whet
from tests.passes.equality import build, count
from whet.backends.tvm.prepare import prepare
from whet.backends.tvm.regions import form_regions
from whet.backends.tvm.split_dequantize import SplitDequantize
from whet.ir import Builder, DType, Interpreter, Value
from whet.ir.target import get_target
from whet.passes import Context


def _residual(b: Builder, x: Value) -> tuple[Value, ...]:
    scale, zero_point = b.constant(torch.tensor(0.1)), b.constant(torch.tensor(3, dtype=torch.int32))
    real = b.dequantize(b.quantize(x, scale, zero_point, dtype=DType.U8), scale, zero_point)
    return b.add(real, x), b.mul(real, 2.0), b.softmax(real, axis=1)


def test_each_elementwise_reader_has_its_own() -> None:
    graph = build(_residual, (3, 8))
    result = SplitDequantize().run(graph, Context())
    assert result.modified and count(result.graph)["dequantize"] == 3
    assert not SplitDequantize().run(result.graph, Context()).modified
    regions = form_regions(prepare(graph, get_target("x86")))
    assert sum("dequantize" in [op.name for op in region.operations[:-1]] for region in regions) >= 2


def test_accumulators_are_dequantized_once() -> None:
    def body(b: Builder, x: Value) -> tuple[Value, ...]:
        real = b.dequantize(x, b.constant(torch.tensor(0.1)))
        return b.relu(real), b.sigmoid(real)

    assert not SplitDequantize().run(build(body, (3, 8), dtype=DType.I32), Context()).modified


def test_the_compiled_module_computes_the_same() -> None:
    graph = build(_residual, (3, 8))
    x = torch.randn(3, 8)
    for actual, expected in zip(whet.optimize(graph, "x86")(x), Interpreter(graph)(x), strict=True):
        assert torch.allclose(actual, expected, rtol=1e-6, atol=1e-7)
