"""Quantization-aware training: what is trained, what becomes of it, and that it helps."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import whet
from tests.passes.equality import build, relative_error, weight
from tests.passes.recovery.tasks import (
    SmallNet,
    assert_same_constants,
    context,
    one_thread,
    pictures,
    scores,
    small_graph,
)
from whet.errors import PassError
from whet.ir import Builder, DType, Graph, Interpreter, TensorType, Value, print_graph, verify
from whet.ir.target import get_target
from whet.passes import Context, FineTune, PassManager, QuantizationAware, QuantizeStatic
from whet.passes.quantization.expand_fake import ExpandFakeQuantize
from whet.passes.quantization.fake import masks_of, with_fake_quantization
from whet.passes.quantization.formats import weight_format
from whet.passes.quantization.static import prepared_for_integers

__all__ = ["one_thread"]

CALIBRATION = [(x,) for x, _ in pictures(2, seed=5)]
DATA = {"calibration": CALIBRATION, "target": get_target("avx512-vnni")}


@cache
def trained_graph() -> Graph:
    """SmallNet after a little training in floating point."""
    return FineTune(epochs=2, learning_rate=0.1)(small_graph(), context(pictures())).graph


def names(graph: Graph) -> list[str]:
    return [operation.name for operation in graph.operations]


def faked(graph: Graph, **options: Any) -> Any:
    """The graph that is trained."""
    ready = prepared_for_integers(graph, Context())
    static = QuantizeStatic(fold=False, **options).run(ready, Context(**DATA)).graph
    return with_fake_quantization(
        static, ready, masks_of(graph), lambda module: weight_format(options.get("weight_bits", 8))
    )


def test_every_round_trip_becomes_a_fake_quantize() -> None:
    graph = small_graph()
    fake = faked(graph)
    verify(fake.graph)
    assert not {"quantize", "dequantize"} & set(names(fake.graph))
    assert len(fake.weights) == 3 and len(fake.activations) >= 3
    keys = [item.operand(0).producer.attributes["key"] for item in fake.weights]
    assert keys == ["conv1.weight", "conv2.weight", "head.weight"]


@pytest.mark.parametrize(("bits", "weight_bits"), [(8, 8), (8, 4), (5, 3)])
def test_the_converted_graph_has_the_values_of_training_bit_for_bit(bits: int, weight_bits: int) -> None:
    fake = faked(small_graph(), bits=bits, weight_bits=weight_bits).graph
    expanded = ExpandFakeQuantize()(fake).graph
    verify(expanded)
    assert "fake_quantize" not in names(expanded)
    for x, _ in pictures(2, seed=7):
        assert torch.equal(scores(expanded, x), scores(fake, x))
    assert not ExpandFakeQuantize()(expanded).modified


def _integers(graph: Graph) -> list[Value]:
    return [
        operation.operand(1) for operation in graph.operations if operation.name in ("conv_integer", "linear_integer")
    ]


@pytest.mark.parametrize(("weight_bits", "dtype"), [(8, DType.I8), (4, DType.I4), (6, DType.I8), (2, DType.I4)])
def test_the_result_is_the_integer_graph_of_static_quantization(weight_bits: int, dtype: DType) -> None:
    graph = small_graph()
    text = print_graph(graph)
    result = QuantizationAware(weight_bits=weight_bits, epochs=1)(graph, context(pictures(), **DATA)).graph
    assert print_graph(graph) == text
    verify(result)
    static = QuantizeStatic(weight_bits=weight_bits)(graph, Context(**DATA)).graph
    assert names(result) == names(static)
    for value in _integers(result):
        assert value.type.dtype is dtype and value.constant is not None
        assert int(value.constant.abs().max()) == 2 ** (weight_bits - 1) - 1


def test_layers_can_have_bits_of_their_own() -> None:
    options = QuantizationAware(layer_bits=(("conv1", 3), ("head", 5)), epochs=1)
    result = options(small_graph(), context(pictures(), **DATA)).graph
    largest = [int(value.constant.abs().max()) for value in _integers(result) if value.constant is not None]
    assert largest == [3, 127, 15]


@pytest.mark.parametrize("learned", [False, True], ids=["following", "learned"])
def test_training_recovers_what_few_bits_cost(learned: bool) -> None:
    graph = trained_graph()
    rounded = QuantizeStatic(weight_bits=2)(graph, Context(**DATA)).graph
    options = QuantizationAware(
        weight_bits=2, learned_step=learned, epochs=4, learning_rate=0.02, alpha=0.0, loss="mse"
    )
    result = PassManager([options]).run(graph, context(pictures(8), **DATA)).graph
    x = torch.cat([images for images, _ in pictures(8, seed=9)])
    before, after = (relative_error(scores(item, x), scores(graph, x)) for item in (rounded, result))
    assert after < 0.6 * before, (before, after)


def test_steps_follow_the_weights_or_are_learned() -> None:
    graph = small_graph()
    options = {"epochs": 1, "learning_rate": 0.1, "fold": False}
    following, learned = (
        QuantizationAware(learned_step=learned, weight_observer="minmax", **options)(
            graph, context(pictures(), **DATA)
        ).graph
        for learned in (False, True)
    )
    for item in (operation for operation in following.operations if operation.name == "dequantize"):
        codes = item.operand(0).constant
        if codes is not None:
            assert bool((codes.int().abs().flatten(1).amax(1) == 127).all()), "the largest weight has the largest code"
    calibrated = QuantizeStatic(fold=False)(graph, Context(**DATA)).graph
    scales = [_activation_scales(item) for item in (calibrated, following, learned)]
    assert all(torch.equal(a, b) for a, b in zip(scales[0], scales[1], strict=True))
    assert all(not torch.equal(a, b) and float(b) > 0 for a, b in zip(scales[0], scales[2], strict=True))


def _activation_scales(graph: Graph) -> list[Tensor]:
    found = [operation.operand(1).constant for operation in graph.operations if operation.name == "quantize"]
    return [scale for scale in found if scale is not None]


def test_pruned_weights_stay_pruned() -> None:
    graph = trained_graph().clone()
    kept = torch.rand(8, 3, 3, 3) < 0.5
    conv = next(operation for operation in graph.operations if operation.name == "conv")
    builder = Builder(graph, before=conv)
    conv.set_operand(1, builder.masked(conv.operand(1), builder.constant(kept)))
    verify(graph)
    # a batch norm is not folded into a masked weight, so the mask goes through materialization
    result = QuantizationAware(epochs=2, learning_rate=0.05)(graph, context(pictures(), **DATA)).graph
    codes = _integers(result)[0].constant
    assert codes is not None and bool((codes[kept.logical_not()] == 0).all()) and bool((codes != 0).any())


def test_concatenated_values_keep_one_scale_when_it_is_learned() -> None:
    def body(b: Builder, x: Value) -> Value:
        conv = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}
        left = b.conv(x, b.constant(weight(4, 3, 1, 1), "left.weight"), None, **conv)
        right = b.conv(x, b.constant(weight(4, 3, 1, 1, seed=1), "right.weight"), None, **conv)
        joined = b.mean(
            b.conv(b.concat(left, right, axis=1), b.constant(weight(3, 8, 1, 1), "w"), None, **conv), dims=(2, 3)
        )
        return b.reshape(joined, shape=(12, 3))  # type: ignore[no-any-return]

    graph = build(body, (12, 3, 8, 8))
    options = QuantizationAware(learned_step=True, epochs=1, learning_rate=0.05)
    result = options(graph, context(pictures(), **DATA)).graph
    verify(result)
    assert "concat" in names(result)
    concat = next(operation for operation in result.operations if operation.name == "concat")
    assert all(value is not None and value.type.dtype is DType.U8 for value in concat.operands)


def test_excluded_layers_stay_in_floating_point_and_are_trained() -> None:
    graph = small_graph()
    result = QuantizationAware(exclude=("conv1",), epochs=1)(graph, context(pictures(), **DATA)).graph
    assert names(result).count("conv") == 1 and names(result).count("conv_integer") == 1
    first, second = (_first_filter(item) for item in (result, prepared_for_integers(graph, Context())))
    assert first.shape == second.shape and not torch.equal(first, second)


def _first_filter(graph: Graph) -> Tensor:
    tensor = next(operation for operation in graph.operations if operation.name == "conv").operand(1).constant
    assert tensor is not None
    return tensor


def test_a_teacher_can_be_listened_to() -> None:
    graph = small_graph()
    unlabelled = [(x,) for x, _ in pictures()]
    options = QuantizationAware(alpha=0.0, epochs=2, learning_rate=0.02)
    result = PassManager([options]).run(graph, context(unlabelled, **DATA)).graph
    x = pictures(seed=9)[0][0]
    assert relative_error(scores(result, x), scores(graph, x)) < 0.1


def test_an_interrupted_training_goes_on_to_the_same_result(tmp_path: Any) -> None:
    graph = small_graph()

    def run(checkpoint: Any, stop: bool) -> Graph:
        def evaluate(model: Callable[..., Any]) -> float:
            if stop and (tmp_path / "state.json").exists():
                raise KeyboardInterrupt
            return 0.0

        options = QuantizationAware(weight_bits=4, epochs=3, checkpoint=checkpoint)
        return options(graph, context(pictures(), evaluate=evaluate, **DATA)).graph

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, True)
    assert_same_constants(run(tmp_path, False), run(None, False))


def test_what_is_missing_or_impossible() -> None:
    graph = small_graph()
    with pytest.raises(PassError, match="needs calibration data"):
        QuantizationAware()(graph, context(pictures()))
    with pytest.raises(PassError, match="needs train data"):
        QuantizationAware()(graph, Context(**DATA))
    with pytest.raises(PassError, match="weight_bits is 1; it must be from 2 to 8"):
        QuantizationAware(weight_bits=1)(graph, context(pictures(), **DATA))
    with pytest.raises(PassError, match="nowhere"):
        QuantizationAware(exclude=("nowhere",))(graph, context(pictures(), **DATA))
    plain = build(lambda b, x: b.relu(x), (12, 3, 8, 8))
    with pytest.raises(PassError, match="could change nothing"):
        PassManager([QuantizationAware()]).run(plain, context(pictures(), **DATA))


def test_the_compiled_module_gives_the_interpreters_answer() -> None:
    x = pictures()[0][0]
    options = QuantizationAware(weight_bits=4, epochs=1, activation_dtype=DType.U8)
    model: nn.Module = SmallNet().eval()
    compiled = whet.optimize(
        model, example_inputs=(x,), passes=[options], calibration=CALIBRATION, train=pictures(), progress=False
    )
    graph = options(whet.frontend.import_model(model, (x,)), context(pictures(), calibration=CALIBRATION)).graph
    (expected,) = Interpreter(graph)(x)
    assert relative_error(torch.as_tensor(compiled(x)), expected) < 1e-4


def test_a_graph_with_fake_quantization_compiles() -> None:
    """What was not converted computes as quantize and dequantize."""

    def body(b: Builder, x: Value) -> Value:
        scale, point = b.constant(torch.tensor(0.1)), b.constant(torch.tensor(3, dtype=torch.int32))
        fake = b.fake_quantize(x, scale, point, dtype=DType.I8, bounds=(-7, 7))
        rows = b.constant(torch.tensor([0.1, 0.2, 0.3])), b.constant(torch.zeros(3, dtype=torch.int32))
        kernel = b.fake_quantize(b.constant(weight(3, 4), "w"), *rows, dtype=DType.I4, axis=0, bounds=(-7, 7))
        return b.add(b.linear(fake, kernel, None), b.constant(torch.tensor(1.0)))  # type: ignore[no-any-return]

    graph = build(body, (5, 4))
    assert graph.inputs[0].type == TensorType((5, 4), DType.F32)
    x = torch.randn(5, 4)
    compiled = whet.optimize(graph, progress=False)
    assert relative_error(torch.as_tensor(compiled(x)), Interpreter(graph)(x)[0]) < 1e-5
