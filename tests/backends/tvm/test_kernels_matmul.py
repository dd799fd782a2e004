from __future__ import annotations

import pytest
import torch
from tvm import te, tirx

from tests.backends.tvm.kernel_run import HOST, error, run
from whet.backends.tvm.kernels import math as fast
from whet.backends.tvm.kernels.linear import linear, linear_tile, pack_linear_weight
from whet.backends.tvm.kernels.matmul import matmul, matmul_tile

TOLERANCE = 1e-5


def dimensions(shape: tuple[int | str, ...], sizes: dict[str, int]) -> tuple[list[object], list[int]]:
    """The shape with a TVM variable for each name, and with the sizes that this run gives the names."""
    variables = {name: tirx.Var(name, "int64") for name in sizes}
    return (
        [variables[size] if isinstance(size, str) else size for size in shape],
        [sizes[size] if isinstance(size, str) else size for size in shape],
    )


LINEAR: dict[str, tuple[tuple[int | str, ...], int, dict[str, int]]] = {
    "tokens": ((1, 128, 96), 64, {}),
    "odd": ((1, 50, 37), 19, {}),
    "4d": ((3, 5, 7, 16), 3, {}),
    "1000 classes": ((1, 200), 1000, {}),
    "vector": ((96,), 40, {}),
    "one output": ((6, 33), 1, {}),
    "symbolic rows": (("n", 33), 24, {"n": 13}),
    "symbolic batch": (("n", 17, 32), 48, {"n": 3}),
    "symbolic sequence": ((1, "s", 32), 48, {"s": 29}),
    "both symbolic": (("n", "s", 32), 20, {"n": 2, "s": 5}),
    "symbolic batch of one row": (("n", 1, 32), 20, {"n": 4}),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear_with_bias_gelu_and_residual(name: str) -> None:
    shape, outputs, sizes = LINEAR[name]
    symbolic, real = dimensions(shape, sizes)
    x, weight, bias = torch.randn(*real), torch.randn(outputs, real[-1]), torch.randn(outputs)
    residual = torch.randn(*real[:-1], outputs)
    tile = linear_tile(HOST, symbolic, outputs)
    packed = pack_linear_weight(weight, tile.block)
    data, filters = te.placeholder(symbolic, name="data"), te.placeholder(tuple(packed.shape), name="filters")
    offsets = te.placeholder((outputs,), name="offsets")
    other = te.placeholder((*symbolic[:-1], outputs), name="other")
    y = linear(data, filters, out_features=outputs, tile=tile)
    biased = te.compute(y.shape, lambda *i: y[i] + offsets[i[-1]], name="biased")
    active = te.compute(y.shape, lambda *i: fast.gelu(biased[i]), name="active")
    added = te.compute(y.shape, lambda *i: active[i] + other[i], name="added")
    product = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    expected = torch.nn.functional.gelu(product) + residual
    tensors, arrays = [data, filters, offsets, other, added], [x, packed, bias, residual]
    result = run(tensors, arrays, expected.shape, symbolic=bool(sizes))
    assert result.rule == "contraction"
    assert error(result.output, expected) < TOLERANCE


@pytest.mark.parametrize("rows", [0, 1, 7, 8, 9, 64])
def test_symbolic_rows_of_every_size(rows: int) -> None:
    count = tirx.Var("n", "int64")
    weight = torch.randn(24, 16)
    tile = linear_tile(HOST, [count, 16], 24)
    packed = pack_linear_weight(weight, tile.block)
    data, filters = te.placeholder((count, 16), name="data"), te.placeholder(tuple(packed.shape), name="filters")
    y = linear(data, filters, out_features=24, tile=tile)
    x = torch.randn(rows, 16)
    result = run([data, filters, y], [x, packed], (rows, 24), symbolic=True)
    torch.testing.assert_close(torch.from_numpy(result.output.copy()), x @ weight.T, rtol=1e-4, atol=1e-4)


MATMUL: dict[str, tuple[tuple[int | str, ...], int | str, int | str, int | str, dict[str, int]]] = {
    "heads": ((12,), 64, 32, 64, {}),
    "plain": ((), 40, 24, 48, {}),
    "odd": ((2, 3), 50, 33, 17, {}),
    "one row": ((1,), 1, 64, 100, {}),
    "symbolic rows and columns": ((4,), "s", 32, "t", {"s": 21, "t": 35}),
    "symbolic reduction": ((4,), "s", "t", 32, {"s": 21, "t": 35}),
    "all symbolic": (("b",), "s", "t", "u", {"b": 3, "s": 5, "t": 7, "u": 9}),
}


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("name", MATMUL)
def test_matmul_equals_torch(name: str, transposed: bool) -> None:
    batch, rows, inner, columns, sizes = MATMUL[name]
    right = (columns, inner) if transposed else (inner, columns)
    shapes, real = dimensions((*batch, rows, inner, columns), sizes)
    by_name = dict(zip([str(part) for part in (*batch, rows, inner, columns)], shapes, strict=True))
    left = te.placeholder([*shapes[: len(batch)], shapes[-3], shapes[-2]], name="left")
    other = te.placeholder([*shapes[: len(batch)], *(by_name[str(part)] for part in right)], name="other")
    tile = matmul_tile(HOST, shapes[: len(batch)], shapes[-3], shapes[-1], shapes[-2])
    y = matmul(left, other, tile=tile, transpose_b=transposed)
    halved = te.compute(y.shape, lambda *i: y[i] * 0.5, name="halved")
    lead, m, k, n = real[: len(batch)], real[-3], real[-2], real[-1]
    a, b = torch.randn(*lead, m, k), torch.randn(*lead, *((n, k) if transposed else (k, n)))
    expected = a.double() @ (b.mT if transposed else b).double() * 0.5
    result = run([left, other, halved], [a, b], expected.shape, symbolic=bool(sizes))
    assert result.rule == "contraction"
    assert error(result.output, expected) < TOLERANCE


def test_matmul_broadcasts_leading_dimensions() -> None:
    a, b = torch.randn(2, 3, 5, 8), torch.randn(1, 8, 16)
    left, other = te.placeholder(tuple(a.shape), name="left"), te.placeholder(tuple(b.shape), name="other")
    y = matmul(left, other, tile=matmul_tile(HOST, [2, 3], 5, 16, 8))
    expected = a.double() @ b.double()
    result = run([left, other, y], [a, b], expected.shape)
    assert error(result.output, expected) < TOLERANCE
