"""Criteria of unstructured pruning against their formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.passes.equality import build, weight
from tests.passes.pruning.models import batches, mlp, mlp_graph
from whet.errors import PassError
from whet.ir import Graph
from whet.passes import Context, UnstructuredPruning
from whet.passes.pruning.criteria import Gradient, Lamp, Movement, Taylor
from whet.passes.pruning.criterion import Criterion, Question
from whet.passes.pruning.hard_concrete import HardConcrete, open_probability, sample
from whet.passes.pruning.masks import find_weights


def scores(criterion: Criterion, graph: Graph | None = None, data: object = None) -> list[Tensor]:
    graph = graph or mlp_graph()
    context = Context(train=batches() if data is None else data)  # type: ignore[arg-type]
    return criterion.score(Question(graph, find_weights(graph), context))


def eager_gradients() -> tuple[list[Tensor], list[Tensor]]:
    model = mlp()
    loss = sum(F.cross_entropy(model(x), labels) for x, labels in batches()) / len(batches())
    assert isinstance(loss, Tensor)
    loss.backward()  # type: ignore[no-untyped-call]
    layers = (model.get_submodule("0"), model.get_submodule("2"))
    weights = [layer.get_parameter("weight") for layer in layers]
    return [weight.detach() for weight in weights], [weight.grad for weight in weights if weight.grad is not None]


def test_gradients_are_those_of_the_model() -> None:
    weights, gradients = eager_gradients()
    norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
    for score, gradient in zip(scores(Gradient()), gradients, strict=True):
        assert torch.allclose(score, gradient.abs() / norm, atol=1e-5)
    for score, tensor, gradient in zip(scores(Taylor()), weights, gradients, strict=True):
        assert torch.allclose(score, (tensor * gradient).abs(), atol=1e-6)


def test_movement_is_accumulated_along_the_steps() -> None:
    model = mlp()
    weight = model.get_submodule("0").get_parameter("weight")
    other = model.get_submodule("2").get_parameter("weight")
    total = torch.zeros_like(weight)
    for x, labels in [*batches(), *batches()][:6]:
        first, second = torch.autograd.grad(F.cross_entropy(model(x), labels), [weight, other])
        total -= weight.detach() * first
        with torch.no_grad():
            weight.sub_(0.1 * first)
            other.sub_(0.1 * second)
    assert torch.allclose(scores(Movement(iterations=6, learning_rate=0.1))[0], total, atol=1e-6)


def test_lamp_is_the_share_of_what_is_left() -> None:
    graph = mlp_graph()
    for found, score in zip(find_weights(graph), scores(Lamp()), strict=True):
        squares = found.tensor.square().flatten()
        wanted = torch.stack([square / squares[squares >= square].sum() for square in squares])
        assert torch.allclose(score.flatten(), wanted, rtol=1e-4)


def test_gates_close_where_weights_do_harm() -> None:
    """The labels depend on the first three features, which the diagonal reads; all else is noise."""
    matrix = 0.5 * weight(3, 8)
    matrix[:, :3] += 4 * torch.eye(3)
    graph = build(lambda b, x: b.linear(x, b.constant(matrix), None), (4, 8))
    (gates,) = scores(HardConcrete(iterations=60, learning_rate=0.1), graph, batches(32))
    assert gates[:, :3].diagonal().min() > gates[:, 3:].mean()
    assert gates[:, :3].diagonal().mean() > gates[:, 3:].max()


def test_gates_are_open_as_often_as_said() -> None:
    log_alpha = torch.tensor([-2.0, 0.0, 1.5]).repeat(20000, 1)
    gates = sample(log_alpha, torch.Generator().manual_seed(0))
    assert gates.min() == 0 and gates.max() == 1
    assert torch.allclose((gates > 0).double().mean(0), open_probability(log_alpha[0]).double(), atol=0.01)


def test_a_loss_of_ones_own_gets_outputs_and_labels() -> None:
    seen = []

    def loss(outputs: Tensor, labels: object) -> Tensor:
        seen.append(labels)
        return outputs.square().mean()

    item = UnstructuredPruning(criterion="taylor", loss=loss)
    assert item.run(mlp_graph(), Context(train=[(x,) for x, _ in batches()])).modified
    assert seen == [None] * len(batches())


def test_unlabelled_data_is_refused() -> None:
    with pytest.raises(PassError, match="train data has no labels"):
        scores(Taylor(), data=[(x,) for x, _ in batches()])


def test_a_loss_that_is_not_finite_is_refused() -> None:
    item = UnstructuredPruning(criterion="gradient", loss=lambda outputs, labels: outputs.sum() * math.inf)
    with pytest.raises(PassError, match="there is no gradient to rank by"):
        item.run(mlp_graph(), Context(train=batches()))


@pytest.mark.parametrize(
    "criterion", [Movement(iterations=0), Movement(learning_rate=0.0), HardConcrete(penalty=-1.0), Gradient(batches=0)]
)
def test_options_out_of_range_are_refused(criterion: Criterion) -> None:
    with pytest.raises(PassError, match="must be positive"):
        scores(criterion)


def test_what_is_pruned_already_gets_no_gradient() -> None:
    graph = UnstructuredPruning(ratio=0.5)(mlp_graph()).graph
    for found, score in zip(find_weights(graph), scores(Gradient(), graph), strict=True):
        assert bool((score[found.pruned] == 0).all()) and bool((score[~found.pruned] > 0).any())
