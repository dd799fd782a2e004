"""FoldBatchNorm: every layer, group and layout; what cannot be folded is expanded, or left with a reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.passes.equality import build, count, positive, run_checked, weight
from tests.passes.networks import randomize_statistics
from whet.frontend import import_model
from whet.ir import Builder, DType, Graph, Interpreter, StateSlot, TensorType, Value, verify
from whet.passes import AssignLayout, Context, FoldBatchNorm, Tracer


def folded(model: nn.Module, *shape: int) -> Graph:
    return run_checked(FoldBatchNorm(), import_model(randomize_statistics(model), (torch.randn(shape),)))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_convolutions(groups: int, bias: bool, affine: bool) -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=groups, bias=bias), nn.BatchNorm2d(8, affine=affine))
    result = folded(model, 2, 4, 5, 5)
    assert count(result) == {"constant": 2, "conv": 1}


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_transposed_convolutions(groups: int) -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 8, 3, 2, groups=groups), nn.BatchNorm2d(8))
    assert count(folded(model, 2, 4, 5, 5)) == {"constant": 2, "conv_transpose": 1}


def test_linear_layers() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))
    assert count(folded(model, 3, 4)) == {"constant": 2, "linear": 1}


@pytest.mark.parametrize("spatial", [1, 3])
def test_other_numbers_of_dimensions(spatial: int) -> None:
    conv = nn.Conv1d if spatial == 1 else nn.Conv3d
    norm = nn.BatchNorm1d if spatial == 1 else nn.BatchNorm3d
    model = nn.Sequential(conv(4, 8, 3), norm(8))
    assert count(folded(model, 2, 4, *([5] * spatial))) == {"constant": 2, "conv": 1}


def test_channels_last() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8))
    graph = import_model(randomize_statistics(model), (torch.randn(2, 4, 5, 5),))
    last = AssignLayout()(graph).graph
    (norm,) = [operation for operation in last.operations if operation.name == "batch_norm"]
    assert norm.attributes["axis"] == 3
    assert count(run_checked(FoldBatchNorm(), last))["batch_norm"] == 0


def test_the_fold_is_computed_in_float64_and_rounded_once() -> None:
    """Statistics of very different sizes: in f32 the shift would lose its digits."""
    kernel, mean, variance = weight(4, 4, 1, 1), weight(4) * 1e3, positive(4) * 1e-3

    def body(b: Builder, x: Value) -> Value:
        attributes = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}
        y = b.conv(x, b.constant(kernel, "conv.weight"), b.constant(mean + 1e-2, "conv.bias"), **attributes)
        result: Value = b.batch_norm(y, b.constant(mean), b.constant(variance), None, None)
        return result

    result = FoldBatchNorm()(build(body, (1, 4, 2, 2))).graph
    (conv,) = [operation for operation in result.operations if operation.name == "conv"]
    scale = (variance.double() + 1e-5).rsqrt()
    wanted = ((mean + 1e-2).double() - mean.double()) * scale
    assert conv.operand(2).constant is not None and conv.operand(1).constant is not None
    assert torch.equal(conv.operand(1).constant, (kernel.double() * scale.reshape(-1, 1, 1, 1)).float())
    assert torch.allclose(conv.operand(2).constant, wanted.float(), rtol=1e-6)
    assert conv.operand(1).producer is not None
    assert conv.operand(1).producer.attributes["key"] == "conv.weight"


class PreActivation(nn.Module):
    """Batch norm before the convolution and behind a concatenation, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(torch.relu(self.norm(torch.cat([x, -x], 1))))
        return y


def test_what_has_no_layer_before_it_is_expanded() -> None:
    result = folded(PreActivation(), 2, 4, 5, 5)
    assert count(result)["batch_norm"] == 0 and count(result)["mul"] == count(result)["add"] == 1
    shapes = [value.type.shape for value in result.constants]
    assert (8, 1, 1) in shapes
    keys = {operation.attributes.get("key") for operation in result.operations}
    assert {"norm.scale", "norm.shift"} <= keys


def test_unless_told_not_to() -> None:
    graph = import_model(randomize_statistics(PreActivation()), (torch.randn(2, 4, 5, 5),))
    result = FoldBatchNorm(expand=False)(graph)
    assert not result.modified and result.graph is graph


def test_a_layer_that_others_use_is_left() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            z: torch.Tensor = self.norm(y) + y
            return z

    result = folded(Model(), 2, 4, 5, 5)
    assert count(result) == {"constant": 4, "conv": 1, "mul": 1, "add": 2}


def test_tied_weights_are_scaled_each_for_itself() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.first, self.second = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.second(self.conv(torch.relu(self.first(self.conv(x)))))
            return y

    result = folded(Model(), 2, 4, 5, 5)
    assert count(result)["conv"] == 2 and count(result)["constant"] == 4


def reason(graph: Graph) -> str:
    tracer = Tracer(patterns=("BatchNormIntoLayer",))
    assert not FoldBatchNorm(expand=False).run(graph, Context(tracer=tracer)).modified
    (decline,) = tracer.declined
    return decline.reason


def layer_and_norm(b: Builder, x: Value, kernel: Value, mean: Value, axis: int) -> Any:
    attributes = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}
    y = b.conv(x, kernel, None, **attributes)
    return b.batch_norm(y, mean, b.constant(positive(4)), None, None, axis=axis)


def test_weights_that_are_computed_are_left() -> None:
    graph = build(lambda b, x, w: layer_and_norm(b, x, w, b.constant(weight(4)), 1), (1, 4, 4, 4), (4, 4, 1, 1))
    assert reason(graph) == "weight and bias of the conv must be constants"


def test_other_dimensions_than_the_channels_are_left() -> None:
    graph = build(
        lambda b, x: layer_and_norm(b, x, b.constant(weight(4, 4, 1, 1)), b.constant(weight(4)), 2),
        (1, 4, 4, 4),
    )
    assert reason(graph) == "normalizes dimension 2, not the channels"


def test_statistics_that_are_state_are_left() -> None:
    graph = Graph()
    builder = Builder(graph)
    x = builder.input("x", TensorType((1, 4, 4, 4), DType.F32))
    mean = Value("mean", TensorType((4,), DType.F32))
    graph.state.append(StateSlot(mean, mean, weight(4)))
    graph.outputs = [layer_and_norm(builder, x, builder.constant(weight(4, 4, 1, 1)), mean, 1)]
    graph.state[0].output = builder.mul(mean, 0.5)
    verify(graph)
    assert reason(graph) == "statistics, weight and bias of a batch norm must be constants to be folded"
    assert not FoldBatchNorm()(graph).modified


def test_weights_that_would_overflow_are_left() -> None:
    def body(b: Builder, x: Value) -> Any:
        y = b.linear(x, b.constant(torch.full((2, 2), 6e4, dtype=torch.float16)), None)
        statistics = b.constant(torch.zeros(2).half()), b.constant(torch.full((2,), 1e-4).half())
        return b.batch_norm(y, *statistics, None, None, axis=1)

    assert reason(build(body, (1, 2), dtype=DType.F16)) == "the folded weights would not be finite"


def test_half_precision() -> None:
    def body(b: Builder, x: Value) -> Any:
        y = b.linear(x, b.constant(weight(4, 4).half()), b.constant(weight(4).half()))
        return b.batch_norm(y, b.constant(weight(4)), b.constant(positive(4)), None, None, axis=1)

    graph = build(body, (3, 4), dtype=DType.F16)
    result = FoldBatchNorm()(graph).graph
    verify(result)
    x = torch.randn(3, 4).half()
    (out,), (ref,) = Interpreter(result)(x), Interpreter(graph)(x)
    assert out.dtype is torch.float16
    assert float((out - ref).float().norm() / ref.float().norm()) < 2e-3  # numerics: T1


def stored_layer(b: Builder, x: Value, shared: bool) -> Any:
    """A pruned convolution and its batch norm; the weight comes from a codebook where `shared`."""
    attributes = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
    kernel = b.constant(weight(4, 4, 3, 3), "conv.weight")
    if shared:
        indices = torch.arange(144, dtype=torch.uint8).reshape(4, 4, 3, 3) % 8
        kernel = b.lookup(b.constant(weight(8)), b.constant(indices, "conv.weight"))
    mask = b.constant(weight(4, 4, 3, 3, seed=1) > 0, "conv.weight.mask")
    y = b.conv(x, b.masked(kernel, mask), b.constant(weight(4), "conv.bias"), **attributes)
    return b.batch_norm(y, b.constant(weight(4)), b.constant(positive(4)), b.constant(weight(4, seed=2)), None)


def test_masks_stay_masks() -> None:
    graph = build(lambda b, x: stored_layer(b, x, False), (1, 4, 5, 5))
    result = run_checked(FoldBatchNorm(), graph)
    assert count(result) == {"constant": 3, "masked": 1, "conv": 1}
    (masked,) = [operation for operation in result.operations if operation.name == "masked"]
    assert masked.operand(1).constant is not None
    assert torch.equal(masked.operand(1).constant, weight(4, 4, 3, 3, seed=1) > 0)
    assert [value.producer.attributes["key"] for value in result.constants if value.producer is not None] == [
        "conv.weight.mask",
        "conv.weight",
        "conv.bias",
    ]


def test_weights_that_are_shared_are_left_with_the_reason() -> None:
    graph = build(lambda b, x: stored_layer(b, x, True), (1, 4, 5, 5))
    assert reason(graph) == "the weight is stored as integers or shared values: fold batch norms before"
