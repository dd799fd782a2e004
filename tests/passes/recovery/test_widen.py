"""Channels of zeros: what they are added to, that they change no step of a training, and that they go again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from whet.frontend import import_model
from whet.ir import Graph
from whet.ir.verifier import verify
from whet.passes import Context, Distill, FineTune
from whet.passes.recovery import trainable
from whet.passes.recovery.trainable import TrainableGraph
from whet.passes.recovery.widen import narrowed, widened


class Residual(nn.Module):
    """Few channels, as after pruning: 11 in the trunk, 19 inside of the block."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 11, 3, padding=1, bias=bias)
        self.first = nn.Conv2d(11, 19, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(19)
        self.second = nn.Conv2d(19, 11, 3, padding=1, bias=False)
        self.last = nn.BatchNorm2d(11)
        self.head = nn.Linear(11, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        inner = F.relu(self.norm(self.first(F.max_pool2d(x, 2))))
        x = F.relu(F.avg_pool2d(x, 2) + self.last(self.second(inner)))
        return self.head(x.mean((2, 3)))


def graph_of(model: nn.Module) -> Graph:
    return import_model(model.eval(), (torch.zeros(6, 3, 8, 8),))


def shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {value.name: value.type.static_shape for value in graph.constants}


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    pictures = torch.randn(4, 6, 3, 8, 8, generator=generator)
    return [(item, torch.randint(0, 5, (6,), generator=generator)) for item in pictures]


def test_channels_are_filled_up_to_vectors() -> None:
    graph = graph_of(Residual())
    wide = widened(graph)
    verify(wide)
    found = shapes(wide)
    assert found["stem.weight"] == (16, 3, 3, 3)
    assert found["first.weight"] == (32, 16, 3, 3)
    assert found["norm.running_var"] == (32,)
    assert found["head.weight"] == (5, 16)
    assert shapes(graph)["first.weight"] == (19, 11, 3, 3)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_training_is_the_same(bias: bool, optimizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    graph = graph_of(Residual(bias))
    tune = FineTune(epochs=3, learning_rate=0.01, optimizer=optimizer)
    wide = tune.run(graph, Context(train=batches())).graph
    monkeypatch.setattr(trainable, "widened", lambda item: item)
    plain = tune.run(graph, Context(train=batches())).graph
    assert shapes(wide) == shapes(graph)
    before = {value.name: value.constant for value in graph.constants}
    for found, wanted in zip(wide.constants, plain.constants, strict=True):
        assert found.constant is not None and wanted.constant is not None
        # sums of another order, of which adamw's division by small moments makes more
        torch.testing.assert_close(found.constant, wanted.constant, rtol=1e-3, atol=1e-4)
        assert not torch.equal(found.constant, before[found.name])  # type: ignore[arg-type]


def test_zeros_stay_zero() -> None:
    model = TrainableGraph(graph_of(Residual()))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for pictures, labels in batches():
        optimizer.zero_grad()
        F.cross_entropy(model(pictures)[0], labels).backward()
        optimizer.step()
    original = {value.name: value.constant for value in model.original.constants}
    for name, tensor in model.named_tensors():
        like = original[name]
        assert like is not None
        inside = torch.zeros_like(tensor)
        narrowed(inside, like.shape).fill_(1)
        assert not tensor.detach()[inside == 0].any(), name


class Shifted(nn.Module):
    """Adds one number to all channels, which zeros would not survive."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 11, 3)
        self.second = nn.Conv2d(11, 16, 3)
        self.shift = nn.Parameter(torch.ones(1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) + self.shift)


class Gated(nn.Module):
    """A sigmoid of zero is no zero."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 11, 3)
        self.second = nn.Conv2d(11, 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.sigmoid(self.first(x)))


class Depthwise(nn.Module):
    """Groups count channels."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 11, 3)
        self.second = nn.Conv2d(11, 11, 3, groups=11)
        self.third = nn.Conv2d(11, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)))


@pytest.mark.parametrize("kind", [Shifted, Gated, Depthwise])
def test_what_zeros_would_change_stays(kind: type[nn.Module]) -> None:
    graph = graph_of(kind())
    assert widened(graph) is graph


def test_features_keep_their_shapes() -> None:
    torch.manual_seed(0)
    graph = graph_of(Residual())
    context = Context(train=batches(), original=graph)
    student = graph_of(Residual())
    result = Distill(epochs=1, learning_rate=0.01, features={"norm": 0.1}).run(student, context)
    assert shapes(result.graph) == shapes(student)
