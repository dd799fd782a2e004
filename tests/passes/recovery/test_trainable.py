"""A graph as a torch module: what is trained, and that it trains as the model itself would."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.passes.equality import build, weight
from tests.passes.recovery.tasks import (
    SmallNet,
    assert_same_constants,
    constants,
    imported,
    mlp,
    mlp_graph,
    pictures,
    scores,
    small_graph,
)
from whet.errors import PassError
from whet.frontend import import_model
from whet.ir import Builder, DType, Graph, StateSlot, TensorType, Value, print_graph, verify
from whet.passes.recovery.trainable import TrainableGraph


def test_the_graph_trains_as_the_model_does() -> None:
    """Losses, weights and running statistics of eager training, to rounding."""
    model = SmallNet()
    graph = imported(copy.deepcopy(model), pictures()[0][0])
    module = TrainableGraph(graph)
    model.train()
    ours, theirs = (
        torch.optim.SGD(item.parameters(), 0.1, momentum=0.9, weight_decay=1e-3) for item in (module, model)
    )
    for x, labels in pictures():
        loss = F.cross_entropy(module(x)[0], labels)
        expected = F.cross_entropy(model(x), labels)
        assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
        for optimizer, item in ((ours, loss), (theirs, expected)):
            optimizer.zero_grad()
            item.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    trained, changed = module.result({name: tensor.detach() for name, tensor in module.overrides().items()})
    tensors = {key: value for key, value in model.state_dict().items() if "num_batches" not in key}
    assert changed == len(tensors)
    by_key = {value.producer.attributes["key"]: value.constant for value in trained.constants if value.producer}
    for key, tensor in tensors.items():
        torch.testing.assert_close(by_key[key], tensor, rtol=1e-4, atol=1e-6)


def test_the_graph_given_stays_as_it_was() -> None:
    graph = small_graph()
    text = print_graph(graph)
    module = TrainableGraph(graph)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    module(pictures()[0][0])
    assert print_graph(graph) == text
    trained, _ = module.result(module.overrides())
    assert [value.type for value in trained.values()] == [value.type for value in graph.values()]
    assert all(tensor.is_contiguous() for tensor in constants(trained).values())


@pytest.mark.parametrize(
    ("channels", "layout"), [(16, torch.channels_last), (12, torch.contiguous_format)], ids=["vectors", "odd"]
)
def test_filters_train_in_the_format_that_their_channels_fill(channels: int, layout: torch.memory_format) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(3, channels, 3), torch.nn.Sigmoid(), torch.nn.Conv2d(channels, 16, 3))
    if channels % 16:
        model.append(torch.nn.Conv2d(16, channels, 3))
    x = torch.randn(2, 3, 9, 9)
    module = TrainableGraph(import_model(model.eval(), (x,)))
    filters = [tensor for tensor in module.parameters() if tensor.dim() == 4]
    assert len(filters) == sum(isinstance(layer, torch.nn.Conv2d) for layer in model)
    assert all(item.is_contiguous(memory_format=layout) for item in filters)
    torch.testing.assert_close(module(x)[0], model(x))


def test_frozen_batch_norms_use_and_keep_the_running_statistics() -> None:
    graph = small_graph()
    module = TrainableGraph(graph, freeze_batch_norm=True)
    x = pictures()[0][0]
    torch.testing.assert_close(module(x)[0], scores(graph, x))
    assert_same_constants(graph, module.result(module.overrides())[0])


def _forms(b: Builder, x: Value) -> Value:
    """A masked weight, a codebook, and constants that nothing learns."""
    mask = torch.tensor([[True, False, True, False]] * 4)
    masked = b.masked(b.constant(weight(4, 4), "a.weight"), b.constant(mask))
    indices = torch.tensor([[0, 1, 0, 0]] * 3, dtype=torch.uint8)
    shared = b.lookup(b.constant(torch.tensor([0.5, -0.5]), "b.codebook"), b.constant(indices))
    hidden = b.mul(b.linear(x, masked, None), b.constant(torch.tensor(2.0)))
    return b.linear(hidden, shared, b.constant(weight(3), "b.bias"))  # type: ignore[no-any-return]


def test_stored_forms_of_weights_are_trained_and_plain_numbers_are_not() -> None:
    graph = build(_forms, (5, 4))
    module = TrainableGraph(graph)
    assert set(module.names) == {"a.weight", "b.codebook", "b.bias"}
    module(torch.randn(5, 4))[0].square().sum().backward()  # type: ignore[no-untyped-call]
    gradient = module.parameter("a.weight").grad
    assert gradient is not None and bool((gradient[:, 1::2] == 0).all()) and bool((gradient[:, ::2] != 0).any())


def test_a_codebook_moves_as_its_elements_would_on_average() -> None:
    """Projected gradient: the step of separate elements, averaged over those that share an entry."""
    graph = build(_forms, (5, 4))
    module, x = TrainableGraph(graph), torch.randn(5, 4)
    module(x)[0].square().sum().backward()  # type: ignore[no-untyped-call]
    separate = build(
        lambda b, x: b.linear(
            b.mul(
                b.linear(x, b.constant(constants(graph)["a.weight"] * torch.tensor([1.0, 0, 1, 0])), None),
                b.constant(torch.tensor(2.0)),
            ),
            b.constant(torch.tensor([[0.5, -0.5, 0.5, 0.5]] * 3), "w"),
            b.constant(constants(graph)["b.bias"]),
        ),
        (5, 4),
    )
    plain = TrainableGraph(separate)
    plain(x)[0].square().sum().backward()  # type: ignore[no-untyped-call]
    gradient, shared = plain.parameter("w").grad, module.parameter("b.codebook").grad
    assert gradient is not None and shared is not None
    expected = torch.stack([gradient[:, [0, 2, 3]].mean(), gradient[:, 1].mean()])
    torch.testing.assert_close(shared, expected)


def test_what_a_mask_drops_does_not_count_among_the_elements_of_an_entry() -> None:
    def body(b: Builder, x: Value) -> Value:
        indices = torch.tensor([[0, 0, 1, 1]], dtype=torch.uint8)
        shared = b.lookup(b.constant(torch.tensor([1.0, 2.0]), "codebook"), b.constant(indices))
        mask = torch.tensor([[True, False, True, True]])
        return b.linear(x, b.masked(shared, b.constant(mask)), None)  # type: ignore[no-any-return]

    module = TrainableGraph(build(body, (1, 4)))
    module(torch.tensor([[1.0, 5.0, 2.0, 4.0]]))[0].sum().backward()  # type: ignore[no-untyped-call]
    gradient = module.parameter("codebook").grad
    assert gradient is not None and torch.equal(gradient, torch.tensor([1.0, 3.0]))


def test_half_precision_weights_train_in_f32_and_keep_their_type() -> None:
    graph = imported(mlp().to(torch.bfloat16), torch.randn(2, 4, dtype=torch.bfloat16))
    module = TrainableGraph(graph)
    assert all(tensor.dtype is torch.float32 for tensor in module.parameters())
    trained, _ = module.result(module.overrides())
    assert all(tensor.dtype is torch.bfloat16 for tensor in constants(trained).values())


@pytest.mark.parametrize("patterns", [("0.*",), ("0",), ("0.weight", "0.bias")])
def test_patterns_choose_by_name_and_by_module(patterns: tuple[str, ...]) -> None:
    graph = mlp_graph()
    first, second = {"0.weight", "0.bias"}, {"2.weight", "2.bias"}
    assert set(TrainableGraph(graph, trainable=patterns).names) == first
    assert set(TrainableGraph(graph, exclude=patterns).names) == second


def test_a_pattern_can_train_what_no_layer_learns() -> None:
    graph = build(lambda b, x: b.add(x, b.constant(weight(4), "position")), (2, 4))
    assert TrainableGraph(graph, trainable=("position",)).names == ["position"]
    with pytest.raises(PassError, match="nothing to train"):
        TrainableGraph(graph)


def test_patterns_that_match_nothing_are_refused() -> None:
    graph = mlp_graph()
    with pytest.raises(PassError, match=r"trainable: no float constant.* like head\*: 0.bias"):
        TrainableGraph(graph, trainable=("head*",))
    with pytest.raises(PassError, match=r"exclude: .*nowhere"):
        TrainableGraph(graph, exclude=("nowhere",))
    with pytest.raises(PassError, match="tuple of patterns"):
        TrainableGraph(graph, exclude="0.weight")


def test_one_value_a_channel_has_no_variance() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    graph = imported(model, torch.randn(2, 4))
    with pytest.raises(PassError, match="one value a channel"):
        TrainableGraph(graph)(torch.randn(1, 4))
    TrainableGraph(graph, freeze_batch_norm=True)(torch.randn(1, 4))


def test_state_starts_anew_with_every_batch() -> None:
    def counting() -> Graph:
        graph = Graph()
        b = Builder(graph)
        x = b.input("x", TensorType((2, 4), DType.F32))
        held = Value("held", TensorType((2, 4), DType.F32))
        graph.state = [StateSlot(held, held, torch.zeros(2, 4))]
        y = b.linear(b.add(x, held), b.constant(weight(4, 4), "w"), None)
        graph.state[0].output, graph.outputs = y, [y]
        verify(graph)
        return graph

    module = TrainableGraph(counting())
    x = torch.randn(2, 4)
    assert torch.equal(module(x)[0], module(x)[0])
