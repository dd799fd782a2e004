"""Small problems to train on, and graphs to train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from whet.frontend import import_model
from whet.ir import Graph, Interpreter
from whet.passes import Context
from whet.passes.data import Source

CLASSES = 3
Batch = tuple[Tensor, Tensor]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small gain nothing from threads, and lose much where other tests run beside them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class SmallNet(nn.Module):
    """Two convolutions with batch norms, and a linear layer: pictures (N, 3, 8, 8) to scores (N, 3)."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 2, padding=1)
        self.norm2 = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.conv1(x)))
        x = torch.relu(self.norm2(self.conv2(x)))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def mlp() -> nn.Module:
    """(N, 4) to scores (N, 3)."""
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def imported(model: nn.Module, *inputs: Tensor) -> Graph:
    """The graph of a model, for any batch."""
    shapes = tuple({0: torch.export.Dim("batch", max=4096)} for _ in inputs)
    return import_model(model.eval(), inputs, None, shapes)


@cache
def small_graph() -> Graph:
    """SmallNet as a graph."""
    torch.manual_seed(0)
    return imported(SmallNet(), torch.zeros(2, 3, 8, 8))


@cache
def mlp_graph() -> Graph:
    """The perceptron as a graph."""
    torch.manual_seed(0)
    return imported(mlp(), torch.zeros(2, 4))


def pictures(count: int = 4, rows: int = 12, seed: int = 0) -> list[Batch]:
    """Batches of pictures whose class is told by which channel is brightest."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(count):
        labels = torch.randint(0, CLASSES, (rows,), generator=generator)
        images = torch.randn(rows, 3, 8, 8, generator=generator)
        images[torch.arange(rows), labels] += 1.0
        batches.append((images, labels))
    return batches


def points(count: int = 4, rows: int = 16, seed: int = 0) -> list[Batch]:
    """Batches of points (N, 4) whose class is their largest coordinate of the first three."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(rows, 4, generator=generator) for _ in range(count)]
    return [(x, x[:, :CLASSES].argmax(1)) for x in inputs]


def accuracy_on(batches: list[Batch]) -> Callable[[Callable[..., Any]], float]:
    """An `evaluate`: the part of the rows that a model gets right."""

    def evaluate(model: Callable[..., Any]) -> float:
        right = sum(int((model(x).argmax(1) == labels).sum()) for x, labels in batches)
        return right / sum(len(labels) for _, labels in batches)

    return evaluate


def context(train: Source | None, **parts: Any) -> Context:
    return Context(train=train, **parts)


def constants(graph: Graph) -> dict[str, Tensor]:
    """Tensors by name."""
    return {value.name: value.constant for value in graph.constants if value.constant is not None}


def assert_same_constants(left: Graph, right: Graph) -> None:
    """Bit for bit."""
    first, second = constants(left), constants(right)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def scores(graph: Graph, x: Tensor) -> Tensor:
    return Interpreter(graph)(x)[0]
