"""Dynamic quantization, and 16-bit floats: what the passes write, and that compiled code agrees."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import whet
from tests.e2e.networks import Encoder, ResidualConvs, seeded
from tests.passes.equality import build, count, relative_error, weight
from whet.errors import PassError
from whet.frontend import import_model
from whet.ir import Builder, DType, Graph, Interpreter, Value
from whet.passes import Context, ConvertPrecision, Pass, PassManager, QuantizeDynamic, coverage

TOKENS = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(0))
MASK = torch.arange(9)[None, :] < torch.tensor([[9], [5]])
PICTURE = torch.randn(1, 3, 33, 33, generator=torch.Generator().manual_seed(0))


def encoder() -> Graph:
    return import_model(seeded(Encoder()), (TOKENS, MASK))


def convs() -> Graph:
    return import_model(seeded(ResidualConvs()), (PICTURE,))


def applied(item: Pass, graph: Graph) -> Graph:
    return PassManager([item]).run(graph, Context()).graph


def errors(out: Any, ref: Any) -> list[float]:
    return [relative_error(a, b) for a, b in zip(out, ref, strict=True)]


@pytest.mark.parametrize("granularity", ["token", "tensor"])
def test_a_transformer_computes_in_integers(granularity: str) -> None:
    graph = encoder()
    result = applied(QuantizeDynamic(granularity=granularity), graph)
    assert coverage(result).integer_share == 1.0
    assert count(result)["linear_integer"] == 4 and count(result)["matmul_integer"] == 2
    assert max(errors(Interpreter(result)(TOKENS, MASK), Interpreter(graph)(TOKENS, MASK))) < 0.02


def test_a_token_has_a_scale_of_its_own() -> None:
    """A token a million times larger than the others takes nothing from them."""

    def body(b: Builder, x: Value) -> Value:
        return b.linear(x, b.constant(weight(6, 16)), b.constant(weight(6, seed=1)))

    graph = build(body, (2, 3, 16))
    x = weight(2, 3, 16, seed=2)
    x[0, 1] *= 1e6
    expected = Interpreter(graph)(x)[0]
    for granularity, close in (("token", True), ("tensor", False)):
        actual = Interpreter(applied(QuantizeDynamic(granularity=granularity), graph))(x)[0]
        assert (relative_error(actual[0, 0], expected[0, 0]) < 0.02) == close


def test_codes_are_those_of_the_largest_element() -> None:  # numerics: Q2
    graph = build(lambda b, x: b.linear(x, b.constant(weight(6, 16))), (3, 16))
    result = applied(QuantizeDynamic(), graph)
    codes = next(op for op in result.operations if op.name == "quantize")
    result.outputs = [codes.result, codes.operand(1)]
    for x in (weight(3, 16, seed=5) * 40, torch.zeros(3, 16), torch.full((3, 16), -1e-30)):
        q, scale = Interpreter(result)(x)
        assert torch.equal(scale, (x.abs().amax(1, keepdim=True) / 127).clamp_min(scale.min()))
        assert q.dtype is torch.int8 and (q.abs().amax(1) == 127).all() == bool((x.abs().amax(1) > 1e-29).all())


def test_an_activation_is_quantized_once_for_all_its_readers() -> None:
    def body(b: Builder, x: Value) -> tuple[Value, ...]:
        return tuple(b.linear(x, b.constant(weight(5, 8, seed=seed))) for seed in range(3))

    result = applied(QuantizeDynamic(), build(body, (4, 8)))
    assert count(result)["quantize"] == 1 and count(result)["linear_integer"] == 3


def test_the_compiled_module_gives_the_interpreters_codes() -> None:
    def body(b: Builder, x: Value, y: Value) -> tuple[Value, ...]:
        linear = b.linear(x, b.constant(weight(8, 16)), b.constant(weight(8, seed=1)))
        product = b.matmul(x, b.transpose(x, permutation=(0, 2, 1)))
        attributes = {"stride": (2, 2), "padding": ((1, 1), (0, 1)), "dilation": (1, 1)}
        return linear, product, b.conv(y, b.constant(weight(6, 3, 3, 3)), b.constant(weight(6)), **attributes)

    result = applied(QuantizeDynamic(bits=7), build(body, (2, 5, 16), (2, 3, 9, 8)))
    exact = [op.result for op in result.operations if op.name == "quantize" or op.name.endswith("_integer")]
    assert len(exact) == 6
    count_of_real = len(result.outputs)
    result.outputs = [*result.outputs, *exact]
    compiled = whet.optimize(result, "x86")
    given = weight(2, 5, 16, seed=2), weight(2, 3, 9, 8, seed=3)
    pairs = list(zip(compiled(*given), Interpreter(result)(*given), strict=True))
    assert max(relative_error(actual, expected) for actual, expected in pairs[:count_of_real]) < 1e-6
    for actual, expected in pairs[count_of_real:]:
        assert torch.equal(actual, expected)


def test_weights_of_few_bits_and_excluded_layers() -> None:
    result = applied(QuantizeDynamic(weight_bits=4, exclude=("classifier",)), convs())
    assert count(result)["linear"] == 1 and count(result)["conv_integer"] == 4
    stored = {op.operand(1).type.dtype for op in result.operations if op.name == "conv_integer"}
    assert stored == {DType.I4}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"granularity": "row"}, "token, tensor"),
        ({"bits": 9}, "from 2 to 8"),
        ({"weight_bits": 1}, "from 2 to 8"),
        ({"weight_observer": "kl"}, "minmax, mse"),
        ({"operations": ("softmax",)}, "cannot quantize softmax"),
        ({"exclude": ("nothing",)}, "no layer has a module path like nothing"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], said: str) -> None:
    with pytest.raises(PassError, match=said):
        applied(QuantizeDynamic(**options), convs())


@pytest.mark.parametrize(("dtype", "bound"), [("bf16", 2e-2), ("f16", 2e-3)])
def test_sixteen_bit_floats(dtype: str, bound: float) -> None:  # numerics: R5, T1
    for graph, given in ((encoder(), (TOKENS, MASK)), (convs(), (PICTURE,))):
        result = applied(ConvertPrecision(dtype), graph)
        assert [value.type for value in result.outputs] == [value.type for value in graph.outputs]
        wide = {value.type.dtype for op in result.operations for value in op.results if op.name in ("linear", "conv")}
        assert wide == {DType(dtype)} and count(result)["batch_norm"] == 0
        stored = [value.constant for value in result.constants if value.type.dtype is DType.F32]
        assert not stored
        expected = Interpreter(result)(*given)
        assert max(errors(expected, Interpreter(graph)(*given))) < bound


@pytest.mark.parametrize(("dtype", "bound"), [("bf16", 2e-2), ("f16", 2e-3)])
def test_compiled_sixteen_bit_floats(dtype: str, bound: float) -> None:  # numerics: R5, T1
    def body(b: Builder, x: Value) -> Value:
        y = b.gelu(b.linear(x, b.constant(weight(24, 16)), b.constant(weight(24, seed=1))))
        norm = b.layer_norm(y, b.constant(weight(24)), b.constant(weight(24, seed=2)), rank=1, epsilon=1e-5)
        return b.matmul(b.softmax(b.matmul(norm, b.transpose(norm, permutation=(0, 2, 1))), axis=2), norm)

    result = applied(ConvertPrecision(dtype), build(body, (2, 5, 16)))
    x = weight(2, 5, 16, seed=3)
    compiled = whet.optimize(result, "x86")(x)
    assert relative_error(compiled, Interpreter(result)(x)[0]) < bound


def test_excluded_modules_stay_in_f32() -> None:
    result = applied(ConvertPrecision(exclude=("stem",)), convs())
    types = [op.result.type.dtype for op in result.operations if op.name == "conv"]
    assert types == [DType.F32, DType.BF16, DType.BF16, DType.BF16]
    with pytest.raises(PassError, match="f8"):
        applied(ConvertPrecision("f8"), convs())
    with pytest.raises(PassError, match="missing"):
        applied(ConvertPrecision(exclude=("missing",)), convs())


def test_masks_stay_finite_in_f16() -> None:
    lowest = torch.finfo(torch.float32).min

    def body(b: Builder, x: Value) -> Value:
        return b.softmax(b.add(x, b.constant(torch.full((4, 4), lowest))), axis=1)

    x: Tensor = weight(4, 4)
    assert torch.isfinite(Interpreter(applied(ConvertPrecision("f16"), build(body, (4, 4))))(x)[0]).all()
