"""Weight-only quantization: the operation of grouped codes, what the pass writes, and what runs compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import whet
from tests.e2e.networks import relative_error
from tests.passes.equality import build, count
from whet.errors import InternalError, PassError
from whet.frontend import import_model
from whet.ir import Builder, DType, Graph, Interpreter, Value, verify
from whet.passes import QuantizeWeights
from whet.passes.quantization.formats import Format, weight_format
from whet.passes.quantization.gptq import GPTQ
from whet.passes.quantization.weights_only import quantize_rows

EXACT = 1e-5


class Mixed(nn.Module):
    """Every kind of weight: an embedding that shares its table with the last layer, an LSTM, convolutions, a matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 41)
        self.lstm = nn.LSTM(41, 24, batch_first=True)
        self.hidden = nn.Linear(24, 41)
        self.out = nn.Linear(41, 50, bias=False)
        self.out.weight = self.table.weight
        self.conv = nn.Conv1d(41, 40, 3, padding=1)
        self.depthwise = nn.Conv1d(40, 40, 3, groups=40)
        self.up = nn.ConvTranspose1d(40, 16, 3)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.hidden(self.lstm(self.table(tokens))[0])
        return self.out(hidden), self.up(self.depthwise(self.conv(hidden.transpose(1, 2))))


TOKENS = torch.arange(14).reshape(2, 7) * 3 % 50


@pytest.fixture(scope="module")
def mixed() -> nn.Module:
    torch.manual_seed(0)
    return Mixed().eval()


def interpreted(graph: Graph, *inputs: Tensor) -> list[Tensor]:
    return [item.detach() for item in Interpreter(graph)(*inputs)]


def codes(*shape: int, low: int = -8, high: int = 7) -> Tensor:
    return torch.randint(low, high + 1, shape, dtype=torch.int8, generator=torch.Generator().manual_seed(0))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 70), st.integers(2, 40), st.integers(2, 8), st.booleans(), st.integers(0, 99))
def test_no_weight_is_off_by_more_than_half_a_step(
    rows: int, columns: int, group: int, bits: int, symmetric: bool, seed: int
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    weight[0, 0] = 0
    form = Format(weight_format(bits).dtype, bits, symmetric)
    found = quantize_rows(weight, form, group)
    low, high = form.codes
    assert found.codes.min() >= low and found.codes.max() <= high
    zero = torch.zeros_like(found.scale, dtype=torch.int32) if found.zero_point is None else found.zero_point
    scale, zero = (item.repeat_interleave(group, 1)[:, :columns] for item in (found.scale, zero))
    real = (found.codes.int() - zero).float() * scale
    assert real[0, 0] == 0
    # asymmetric zero points are rounded: that may cost the ends of the range another half
    assert bool(((real - weight).abs() <= scale * (0.5 if symmetric else 1.0) * (1 + 1e-5)).all())


def test_blocks_are_dequantized_by_their_own_parameters() -> None:
    def body(b: Builder, x: Value) -> Any:
        q, scale = b.constant(codes(2, 5)), b.constant(torch.tensor([[1.0, 2.0, 4.0], [0.5, 0.25, 0.125]]))
        zero = b.constant(torch.tensor([[1, 0, -1], [0, 0, 2]], dtype=torch.int32))
        return b.dequantize_blocks(q, scale, zero, group=2)

    (found,) = Interpreter(build(body, (1,)))(torch.zeros(1))
    q = codes(2, 5).float()
    assert found[0].tolist() == [q[0, 0] - 1, q[0, 1] - 1, 2 * q[0, 2], 2 * q[0, 3], 4 * (q[0, 4] + 1)]
    assert found[1, 4] == (q[1, 4] - 2) * 0.125


@pytest.mark.parametrize(
    ("scale", "group", "words"),
    [
        (torch.ones(2, 2), 2, "for each 2 elements"),
        (torch.ones(3), 2, "for each 2 elements"),
        (torch.ones(2, 3, dtype=torch.float64), 2, "must be f32"),
        (torch.ones(2, 3), 0, "groups of 0"),
    ],
)
def test_parameters_of_another_shape(scale: Tensor, group: int, words: str) -> None:
    with pytest.raises(InternalError, match=words):
        build(lambda b, x: b.dequantize_blocks(b.constant(codes(2, 5)), b.constant(scale), group=group), (1,))


@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({}, 0.01),
        ({"bits": 4, "group_size": 32}, 0.15),
        ({"bits": 4, "group_size": 16, "symmetric": False}, 0.12),
        ({"bits": 6, "clip": "mse"}, 0.04),
    ],
    ids=str,
)
def test_every_kind_of_weight(mixed: nn.Module, options: dict[str, Any], most: float) -> None:
    result = QuantizeWeights(**options)(import_model(mixed, (TOKENS,)))
    verify(result.graph)
    assert result.changes == {
        "linear quantized": 2,
        "conv quantized": 2,
        "take quantized": 1,
        "lstm quantized": 1,
        "conv_transpose quantized": 1,
    }
    for out, ref in zip(interpreted(result.graph, TOKENS), mixed(TOKENS), strict=True):
        assert relative_error(out, ref.detach()) < most


def test_compiled_and_interpreted(mixed: nn.Module) -> None:
    """...and a table is stored once, four bits an element, of which only the rows looked up are dequantized."""
    graph = QuantizeWeights(bits=4, group_size=32, symmetric=False)(import_model(mixed, (TOKENS,))).graph
    tables = [op.result for op in graph.operations if op.name == "constant" and op.result.type.shape == (50, 41)]
    assert [value.type.dtype for value in tables] == [DType.I4]
    rows = [op.result.type.shape for op in graph.operations if op.name == "dequantize_blocks"]
    assert (2, 7, 41) in rows
    compiled = whet.optimize(graph, "x86")
    for out, ref in zip(compiled(TOKENS), interpreted(graph, TOKENS), strict=True):
        assert relative_error(out, ref) < EXACT
    # in memory, too: two a byte for the table, and in blocks of vectors for the matrix
    assert compiled.weights["table.weight.q:pairs"].shape == (50, 21)
    assert not any(key == "table.weight.q" for key in compiled.weights)


def _grouped(b: Builder, x: Value) -> Any:
    scale = b.constant(torch.rand(70, 4, generator=torch.Generator().manual_seed(1)) + 0.5)
    zero = b.constant(codes(70, 4).int())
    weight = b.dequantize_blocks(b.constant(codes(70, 99), "w", dtype=DType.I4), scale, zero, group=32)
    return b.relu(b.linear(x, weight, b.constant(torch.ones(70))))


def _per_channel(b: Builder, x: Value) -> Any:
    weight = b.dequantize(
        b.constant(codes(70, 99, low=-128, high=127), "w"), b.constant(torch.full((70,), 0.1)), axis=0
    )
    return b.linear(x, weight)


def _per_tensor(b: Builder, x: Value) -> Any:
    return b.linear(x, b.dequantize(b.constant(codes(70, 99), "w"), b.constant(torch.tensor(0.1))))


@pytest.mark.parametrize("body", [_grouped, _per_channel, _per_tensor])
@pytest.mark.parametrize("rows", [1, 9])
def test_a_matrix_is_unpacked_inside_of_its_kernel(body: Any, rows: int) -> None:
    """Nothing of it is expanded to memory: one kernel, and integers for its weights."""
    graph = build(body, (rows, 99))
    x = torch.randn(rows, 99, generator=torch.Generator().manual_seed(2))
    compiled = whet.optimize(graph, "x86")
    assert len(compiled.report().kernels) == 1
    (stored,) = (item for key, item in compiled.weights.items() if key.startswith("w:"))
    assert stored.dtype == (np.uint8 if body is _grouped else np.int8)
    assert stored.nbytes < (0.5 if body is _grouped else 1) * 99 * 96 + 96
    assert relative_error(compiled(x), interpreted(graph, x)[0]) < EXACT


def test_a_weight_that_is_wanted_elsewhere_too_is_expanded() -> None:
    def body(b: Builder, x: Value) -> Any:
        weight = b.dequantize(b.constant(codes(7, 9), dtype=DType.I4), b.constant(torch.ones(7)), axis=0)
        return b.linear(x, weight), b.relu(weight)

    graph, x = build(body, (3, 9)), torch.randn(3, 9)
    for out, ref in zip(whet.optimize(graph, "x86")(x), interpreted(graph, x), strict=True):
        assert relative_error(out, ref) < EXACT


def test_four_bits_take_half_a_byte_on_the_disk_and_in_memory(tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 64)).eval()
    x = torch.randn(4, 512)
    compiled = whet.optimize(model, "x86", example_inputs=(x,), passes=[QuantizeWeights(bits=4, group_size=64)])
    elements = 512 * 256 + 256 * 64
    wanted = elements / 2 + 4 * elements / 64 + 4 * (256 + 64)
    assert compiled.storage().weights_memory <= wanted * 1.02
    assert compiled.storage().weights_disk <= wanted * 1.02
    compiled.save(tmp_path / "m.whet")
    assert torch.equal(whet.load(tmp_path / "m.whet")(x), compiled(x))


def test_a_rounding_that_looks_at_data_is_given_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    mixing = torch.randn(32, 32)
    batches = [(torch.randn(64, 32) @ mixing,) for _ in range(4)]
    options = {"bits": 3, "group_size": 16}

    def error(**more: Any) -> float:
        context = whet.passes.Context(calibration=batches)
        graph = QuantizeWeights(**options, **more).run(import_model(model, batches[0]), context).graph
        return sum(relative_error(interpreted(graph, x)[0], model(x).detach()) for (x,) in batches)

    assert error(rounding=GPTQ()) < 0.9 * error()
    with pytest.raises(PassError, match="calibration"):
        QuantizeWeights(rounding=GPTQ())(import_model(model, batches[0]))


def test_pruned_weights_keep_their_zeros() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0)) + 3
    mask = torch.rand(8, 64, generator=torch.Generator().manual_seed(1)) < 0.3

    def body(b: Builder, x: Value) -> Any:
        return b.linear(x, b.masked(b.constant(weight, "fc.weight"), b.constant(mask)))

    for symmetric in (True, False):
        graph = QuantizeWeights(bits=4, group_size=16, symmetric=symmetric)(build(body, (64, 64))).graph
        (found,) = interpreted(graph, torch.eye(64))
        assert bool((found.T[~mask] == 0).all()) and bool((found.T[mask] != 0).any())
        assert count(graph)["masked"] == 0


def test_what_is_excluded_stays_and_what_is_done_is_not_done_again(mixed: nn.Module) -> None:
    graph = import_model(mixed, (TOKENS,))
    part = QuantizeWeights(exclude=("lstm", "table", "out"))(graph)
    assert part.changes == {"linear quantized": 1, "conv quantized": 2, "conv_transpose quantized": 1}
    rest = QuantizeWeights()(part.graph)
    assert rest.changes == {"take quantized": 1, "lstm quantized": 1, "linear quantized": 1}
    again = QuantizeWeights()(rest.graph)
    assert not again.modified and again.graph is rest.graph


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 9}, "9; it must be from 2 to 8"),
        ({"bits": 1}, "1; it must be"),
        ({"group_size": 1}, "group_size is 1"),
        ({"clip": "percentile"}, "clip is 'percentile'"),
        ({"clip": "mse", "symmetric": False}, "symmetric=True"),
        ({"exclude": ("nowhere",)}, "no layer has a module path like nowhere"),
    ],
)
def test_impossible_options(mixed: nn.Module, options: dict[str, Any], words: str) -> None:
    with pytest.raises(PassError, match=words):
        QuantizeWeights(**options)(import_model(mixed, (TOKENS,)))
