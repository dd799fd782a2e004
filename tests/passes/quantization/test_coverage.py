"""The coverage table: precision, multiply-adds, and why not integers."""

from __future__ import annotations

import torch
from torch import nn

from tests.e2e.networks import Encoder, ResidualConvs, seeded
from tests.passes.equality import build, weight
from whet.frontend import import_model
from whet.ir import DType, Graph
from whet.ir.builder import Builder
from whet.ir.dimensions import DimRange, symbol
from whet.ir.types import TensorType
from whet.passes import Context, PassManager, QuantizeStatic, coverage

PICTURE = (torch.randn(1, 3, 33, 33, generator=torch.Generator().manual_seed(0)),)


def quantized(model: nn.Module, inputs: tuple[torch.Tensor, ...], **options: object) -> Graph:
    item = QuantizeStatic(**options)  # type: ignore[arg-type]
    return PassManager([item]).run(import_model(model, inputs), Context(calibration=[inputs])).graph


def test_multiply_adds_are_those_of_the_layers() -> None:
    before = coverage(import_model(seeded(ResidualConvs()), PICTURE))
    stem, pointwise = 24 * 17 * 17 * 3 * 9, 24 * 17 * 17 * 24
    assert next(row.macs for row in before.rows if row.macs) == stem
    assert pointwise in [row.macs for row in before.rows] and before.integer_share == 0.0
    after = coverage(quantized(seeded(ResidualConvs()), PICTURE))
    assert after.macs == before.macs and after.integer_share == 1.0


def test_an_excluded_layer_is_told() -> None:
    table = coverage(quantized(seeded(ResidualConvs()), PICTURE, exclude=("stem",)))
    (row,) = (row for row in table.rows if row.module == "stem" and row.macs)
    assert (row.precision, row.integer) == ("f32", False) and "excluded" in row.reason
    assert table.integer_share == (table.macs - row.macs) / table.macs
    text = str(table)
    assert "u8 x i8 -> i32" in text and f"{row.macs:,}" in text and text.endswith("in integer operations")


def test_why_not_integers() -> None:
    def body(b: Builder, x: object) -> object:
        transposed = b.conv_transpose(
            x, b.constant(weight(3, 2, 2, 2)), stride=(2, 2), padding=(0, 0), output_padding=(0, 0), dilation=(1, 1)
        )
        flat = b.reshape(x, shape=(1, 3 * 12000))
        return transposed, b.matmul(flat, b.reshape(flat, shape=(36000, 1))), b.linear(flat, flat)

    reasons = {row.operation: row.reason for row in coverage(build(body, (1, 3, 120, 100))).rows}
    assert "no integer kernel" in reasons["conv_transpose"]
    assert "sums 36000 products, of which 32 bits hold 33025" in reasons["matmul"]
    assert "computed in the graph" in reasons["linear"]
    assert reasons["reshape"] == "defined on real numbers"


def test_a_transformer_is_all_integer() -> None:
    tokens, mask = torch.randint(0, 50, (2, 9)), torch.ones(2, 9, dtype=torch.bool)
    table = coverage(quantized(seeded(Encoder()), (tokens, mask)))
    assert table.integer_share == 1.0
    assert {row.operation for row in table.rows if row.macs} == {"linear_integer", "matmul_integer"}
    assert next(row for row in table.rows if row.operation == "softmax").precision == "f32"


def test_symbolic_sizes() -> None:
    graph = Graph(dimensions={"n": DimRange(1, 64)})
    b = Builder(graph)
    graph.outputs = [b.linear(b.input("x", TensorType((symbol("n"), 8), DType.F32)), b.constant(weight(4, 8)))]
    assert coverage(graph).macs == 64 * 32 and coverage(graph, {"n": 3}).macs == 96
