"""AssignLayout: every operation means the same in another order, and convolutional networks keep one transpose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.ir.samples import SAMPLES, Sample
from tests.passes.equality import assert_same_results, build, count, run_checked, weight
from tests.passes.networks import randomize_statistics
from whet.errors import PassError
from whet.frontend import import_model
from whet.ir import Builder, DType, Graph, TensorType, Value, verify
from whet.ir.dimensions import symbol
from whet.passes import AssignLayout, Canonicalize, FoldBatchNorm, PassManager
from whet.passes.layout_rules import RULES, compose, inverse


def _graph(sample: Sample, order: tuple[int, ...]) -> tuple[Graph, list[torch.Tensor]]:
    """The sample's operation on a first operand that another order already stores, beside a convolution."""
    graph = Graph()
    builder = Builder(graph)
    operands: list[Value | None] = []
    tensors: list[torch.Tensor] = []
    for slot, (tensor, type) in enumerate(zip(sample.operands, sample.types(), strict=True)):
        if tensor is None or type is None:
            operands.append(None)
        elif type.rank == len(order):
            moved = tuple(type.shape[dim] for dim in order)
            stored = builder.input(f"x{slot}", TensorType(moved, type.dtype))
            operands.append(builder.transpose(stored, permutation=inverse(order)))
            tensors.append(tensor.permute(order))
        else:
            operands.append(builder.input(f"x{slot}", type))
            tensors.append(tensor)
    graph.outputs = list(builder.emit(sample.op, operands, sample.attributes).results)
    image = builder.input("image", TensorType((1, 1, 2, 2), DType.F32))
    kernel = builder.constant(weight(1, 1, 1, 1))
    attributes = {"stride": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1)}
    graph.outputs.append(builder.conv(image, kernel, None, **attributes))
    return graph, [*tensors, torch.ones(1, 1, 2, 2)]


def _largest_rank(sample: Sample) -> int:
    return max((tensor.dim() for tensor in sample.operands if tensor is not None), default=0)


MOVABLE = [sample for sample in SAMPLES if _largest_rank(sample) >= 2]


@pytest.mark.parametrize("sample", MOVABLE, ids=lambda sample: sample.id)
@settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_every_operation_in_every_order(sample: Sample, data: st.DataObject) -> None:
    order = tuple(data.draw(st.permutations(range(_largest_rank(sample)))))
    graph, tensors = _graph(sample, order)
    verify(graph)
    result = AssignLayout()(graph).graph
    verify(result)
    assert_same_results(graph, result, tensors)


def test_the_samples_have_every_operation_with_a_rule() -> None:
    assert set(RULES) <= {sample.op for sample in MOVABLE}


@given(st.permutations(range(4)).map(tuple))
def test_orders_compose_with_their_inverse(order: tuple[int, ...]) -> None:
    assert compose(inverse(order), order) == compose(order, inverse(order)) == (0, 1, 2, 3)


def test_other_layouts_are_refused() -> None:
    with pytest.raises(PassError, match="channels_first"):
        AssignLayout("channels_first")(Graph())


def test_without_convolutions_the_graph_itself_comes_back() -> None:
    graph = build(lambda b, x: b.transpose(b.relu(x), permutation=(1, 0)), (2, 3))
    result = AssignLayout()(graph)
    assert not result.modified and result.graph is graph


class Residual(nn.Module):
    """Stem, pooling, a residual block with squeeze and excitation, 1x1 pooling, flatten, classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1, groups=8), nn.BatchNorm2d(8), nn.Hardswish())
        self.excite = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.SiLU(), nn.Conv2d(4, 8, 1))
        self.head = nn.Linear(16, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.stem(x))
        y = self.block(x)
        y = torch.cat([x + y * torch.sigmoid(self.excite(y)), y], dim=1)
        return self.head(nn.functional.adaptive_avg_pool2d(y, 1).flatten(1))  # type: ignore[no-any-return]


def test_a_residual_network_keeps_the_transpose_of_its_input_only() -> None:
    graph = import_model(randomize_statistics(Residual()), (torch.randn(2, 3, 32, 32),))
    result = run_checked(AssignLayout(), FoldBatchNorm()(graph).graph)
    assert count(result)["transpose"] == 1
    assert result.operations[1].name == "transpose" or result.operations[0].name in ("constant", "transpose")


def _model(name: str) -> nn.Module:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed", exc_type=ImportError)
    model: nn.Module = getattr(models, name)(weights=None)
    return randomize_statistics(model)


# the channel shuffles of ShuffleNet move elements; VGG flattens a 7x7 feature map
TRANSPOSES = {
    "resnet18": 1,
    "mobilenet_v2": 1,
    "squeezenet1_1": 1,
    "densenet121": 1,
    "efficientnet_b0": 1,
    "convnext_tiny": 1,
    "shufflenet_v2_x0_5": 17,
}
SLOW = ("densenet121", "efficientnet_b0", "convnext_tiny")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        pytest.param(name, expected, marks=pytest.mark.slow if name in SLOW else ())
        for name, expected in TRANSPOSES.items()
    ],
)
def test_torchvision_models_keep_transposes_at_their_edges(
    name: str, expected: int, torchvision_operators: None
) -> None:
    example = torch.randn(1, 3, 64, 64)
    graph = import_model(_model(name), (example,))
    passes = [Canonicalize(), FoldBatchNorm(), AssignLayout(), Canonicalize()]
    result = PassManager(passes, check_unmodified=True).run(graph).graph
    assert count(result)["transpose"] == expected
    assert {operation.attributes.get("layout") for operation in result.operations} == {None, "channels_last"}
    assert_same_results(graph, result)


class Segmenter(nn.Module):
    """A feature map as output: one transpose more."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 3, 2, 1)
        self.up = nn.ConvTranspose2d(4, 2, 2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = nn.functional.interpolate(self.up(torch.relu(self.down(x))), scale_factor=2.0, mode="bilinear")
        return torch.softmax(nn.functional.pad(y, (1, 0, 0, 2)), dim=1)


def test_a_feature_map_as_output_costs_the_second_transpose() -> None:
    graph = import_model(Segmenter().eval(), (torch.randn(1, 3, 8, 8),))
    result = run_checked(AssignLayout(), graph)
    assert count(result)["transpose"] == 2
    assert result.outputs[0].producer is not None and result.outputs[0].producer.name == "transpose"


@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_any_number_of_spatial_dimensions(spatial: int) -> None:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[spatial - 1]
    pool = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)[spatial - 1]
    model = nn.Sequential(conv(4, 8, 3, padding=1), norm(8), nn.GELU(), conv(8, 8, 3, groups=8), pool(2), nn.Flatten())
    graph = import_model(randomize_statistics(model), (torch.randn(2, 4, *([8] * spatial)),))
    result = run_checked(AssignLayout(), graph)
    assert count(result)["transpose"] == 2  # before the first convolution, and before the flattening


def test_a_flattening_of_single_positions_is_a_reshape() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    result = run_checked(AssignLayout(), import_model(model.eval(), (torch.randn(2, 3, 8, 8),)))
    assert count(result)["transpose"] == 1


def test_a_channels_last_input_needs_no_transpose() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.conv(torch.tanh(x.permute(0, 3, 1, 2)))
            return y.permute(0, 2, 3, 1)

    result = run_checked(AssignLayout(), import_model(Model().eval(), (torch.randn(2, 8, 8, 3),)))
    assert count(result)["transpose"] == 0


def test_symbolic_batch_and_size() -> None:
    graph = Graph()
    builder = Builder(graph)
    n, s = symbol("n"), symbol("s")
    x = builder.input("x", TensorType((n, 3, s, 8), DType.F32))
    attributes = {"stride": (1, 1), "padding": ((1, 1), (1, 1)), "dilation": (1, 1)}
    y = builder.conv(x, builder.constant(weight(4, 3, 3, 3)), None, **attributes)
    tokens = builder.transpose(builder.reshape(y, shape=(n, 4, 8 * s)), permutation=(0, 2, 1))
    graph.outputs = [builder.softmax(tokens, axis=2)]
    verify(graph)
    result = run_checked(AssignLayout(), graph, [torch.randn(2, 3, 5, 8)])
    assert count(result)["transpose"] == 1


def test_state_keeps_its_own_order() -> None:
    class Model(nn.Module):
        cache: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)
            self.register_buffer("cache", torch.randn(1, 2, 4, 4))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.cache.copy_(torch.relu(self.conv(x + self.cache)))
            return self.cache * 2

    graph = import_model(Model().eval(), (torch.randn(1, 2, 4, 4),))
    assert graph.state
    run_checked(AssignLayout(), graph)
