"""fake_quantize: the values of quantize and dequantize, gradients straight through, and the gradient of the scale."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.passes.equality import build
from whet.ir import Builder, DType, TensorType, Value, parse_graph, print_graph
from whet.ir.definition import Axis, InferError, Tie
from whet.ir.ops import CATALOGUE
from whet.ir.printer import graph_tensors

FAKE, QUANTIZE, DEQUANTIZE = (CATALOGUE[name] for name in ("fake_quantize", "quantize", "dequantize"))
EDGES = torch.tensor([0.0, -0.0, 0.5, 1.5, 2.5, -0.5, 3e38, -3e38, math.inf, -math.inf, math.nan, 1e-40])


def round_trip(x: Tensor, scale: Tensor, point: Tensor, dtype: DType, axis: int | None = None) -> Tensor:
    codes = QUANTIZE.evaluate(x, scale, point, dtype=dtype, axis=axis)
    result: Tensor = DEQUANTIZE.evaluate(codes, scale, point, axis=axis)
    return result


@given(
    st.floats(1e-6, 1e6),
    st.sampled_from([DType.I8, DType.U8, DType.I4]),
    st.integers(0, 2**31),
    st.floats(0.01, 300),
)
def test_values_are_those_of_quantize_and_dequantize(scale: float, dtype: DType, seed: int, spread: float) -> None:
    """Bit for bit, halves and what is not finite among them (numerics: Q2, Q3, Q4)."""
    generator = torch.Generator().manual_seed(seed)
    step = torch.tensor(scale)
    low, high = dtype.integer_range
    point = torch.randint(low, high + 1, (), generator=generator, dtype=torch.int32)
    x = torch.cat([torch.randn(64, generator=generator) * spread * scale, EDGES * scale, EDGES])
    assert torch.equal(FAKE.evaluate(x, step, point, dtype=dtype), round_trip(x, step, point, dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_values_along_an_axis(dtype: torch.dtype) -> None:
    x = (torch.randn(4, 3, 5) * 9).to(dtype)
    scale, point = torch.rand(3) + 0.01, torch.tensor([0, 3, -7], dtype=torch.int32)
    found = FAKE.evaluate(x, scale, point, dtype=DType.I8, axis=1)
    assert found.dtype is torch.float32
    assert torch.equal(found, round_trip(x, scale, point, DType.I8, axis=1))


def test_narrow_bounds_clamp_the_codes() -> None:
    x, scale, point = torch.linspace(-9, 9, 50), torch.tensor(0.5), torch.tensor(1, dtype=torch.int32)
    codes = QUANTIZE.evaluate(x, scale, point, dtype=DType.I8).clamp(-7, 7)
    found = FAKE.evaluate(x, scale, point, dtype=DType.I8, bounds=(-7, 7))
    assert torch.equal(found, DEQUANTIZE.evaluate(codes, scale, point))


def test_gradients_pass_within_the_range_and_stop_outside() -> None:
    x = torch.tensor([-9.0, -4.2, -4.0, 0.3, 3.4, 3.6, 9.0], requires_grad=True)
    point = torch.zeros((), dtype=torch.int32)
    FAKE.evaluate(x, torch.tensor(0.5), point, dtype=DType.I4).backward(torch.arange(1.0, 8.0))
    assert x.grad is not None
    assert torch.equal(x.grad, torch.tensor([0.0, 2.0, 3.0, 4.0, 5.0, 6.0, 0.0]))


@pytest.mark.parametrize("axis", [None, 0])
def test_the_gradient_of_the_scale_is_that_of_the_paper(axis: int | None) -> None:
    """Σ g · (rne(x/s) - x/s) inside, -Q or Q outside, times 1 / √(N · Q) (LSQ, equations 3 and 4)."""
    x, gradient = torch.randn(3, 8) * 4, torch.randn(3, 8)
    scale = torch.tensor(0.5) if axis is None else torch.tensor([0.4, 0.5, 0.6])
    scale.requires_grad_()
    point = torch.zeros(scale.shape, dtype=torch.int32)
    FAKE.evaluate(x, scale, point, dtype=DType.I4, axis=axis, bounds=(-7, 7)).backward(gradient)
    ratio = x / (scale.detach() if axis is None else scale.detach()[:, None])
    slope = torch.where(ratio.round().abs() <= 7, ratio.round() - ratio, 7 * ratio.sign())
    # either way eight elements share a scale: a sample's features, or a row's weights
    expected = (gradient * slope).sum(() if axis is None else (1,)) / math.sqrt(8 * 7)
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad, expected if axis is not None else (gradient * slope).sum() / math.sqrt(56))


def _types(*shape: int, vector: bool = False) -> list[TensorType]:
    parameter = (3,) if vector else ()
    return [TensorType(shape, DType.F32), TensorType(parameter, DType.F32), TensorType(parameter, DType.I32)]


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"dtype": DType.I32}, "quantizes to i8, u8 or i4"),
        ({"dtype": DType.I8, "axis": 2}, "axis 2 is outside"),
        ({"dtype": DType.I4, "bounds": (-8, 8)}, r"bounds \(-8, 8\) are not within i4: -8 to 7"),
        ({"dtype": DType.I8, "bounds": (3, 3)}, "bounds"),
    ],
)
def test_what_it_does_not_accept(attributes: dict[str, object], message: str) -> None:
    with pytest.raises(InferError, match=message):
        FAKE.result_types(_types(2, 3), FAKE.signature.with_defaults(attributes))
    wrong = [TensorType((2, 3), DType.F32), TensorType((4,), DType.F32), TensorType((), DType.I32)]
    with pytest.raises(InferError, match="neither a scalar"):
        FAKE.result_types(wrong, FAKE.signature.with_defaults({"dtype": DType.I8, "axis": 1}))


def test_the_text_and_the_ties() -> None:
    def body(b: Builder, x: Value) -> Value:
        scale, point = b.constant(torch.ones(3)), b.constant(torch.zeros(3, dtype=torch.int32))
        return b.fake_quantize(x, scale, point, dtype=DType.I8, axis=1, bounds=(-127, 127))  # type: ignore[no-any-return]

    graph = build(body, (2, 3))
    text = print_graph(graph)
    assert 'fake_quantize(%x0, %c, %c_1) {dtype = "i8", axis = 1, bounds = [-127, 127]} : f32[2, 3]' in text.replace(
        "dtype = i8", 'dtype = "i8"'
    )
    assert print_graph(parse_graph(text, graph_tensors(graph))) == text
    operation = graph.operations[-1]
    ties = FAKE.axes(operation)
    assert Tie(Axis(1, 0), Axis(-1, 1)) in ties and Tie(Axis(0, 0), Axis(-1, 0)) in ties
