"""Small models with trained-like weights, and data that they can be ranked and trained on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor, nn

from whet.frontend import import_model
from whet.ir import Graph, Operation
from whet.passes.pruning.masks import find_weights

Batch = tuple[Tensor, Tensor]


def mlp(seed: int = 0) -> nn.Module:
    """8 -> 32 -> 3: modules "0" and "2"."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3)).eval()


@cache
def mlp_graph() -> Graph:
    """`mlp` for batches of 4; one graph for all tests, since no pass changes the graph that it is given."""
    return import_model(mlp(), (torch.randn(4, 8),))


def batches(count: int = 4, size: int = 4, seed: int = 1) -> list[Batch]:
    """Labels that depend on the first three features alone."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(size, 8, generator=generator) for _ in range(count)]
    return [(x, x[:, :3].argmax(1)) for x in inputs]


class Everything(nn.Module):
    """Each kind of layer that has prunable weights, an embedding tied to the classifier among them."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 8)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.lstm = nn.LSTM(8, 8)
        self.conv = nn.Conv1d(8, 8, 3, padding=1, groups=2)
        self.up = nn.ConvTranspose1d(8, 8, 2, 2)
        self.head = nn.Linear(8, 12, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.lstm(self.encoder(self.embedding(tokens)))[0]
        x = self.up(self.conv(x.transpose(1, 2))).transpose(1, 2)
        scores: Tensor = self.head(x)
        return scores


@cache
def everything() -> tuple[Graph, Tensor]:
    """The imported model and an input for it."""
    torch.manual_seed(0)
    tokens = torch.randint(0, 12, (2, 6))
    return import_model(Everything().eval(), (tokens,)), tokens


def named(graph: Graph, name: str) -> list[Operation]:
    return [operation for operation in graph.operations if operation.name == name]


def weights_of(graph: Graph) -> dict[str, Tensor]:
    """Weights as the layers see them, by the module path of the first that reads them."""
    return {f"{weight.module}:{index}": weight.tensor for index, weight in enumerate(find_weights(graph))}


def zeros(tensors: Sequence[Tensor]) -> int:
    return sum(int((tensor == 0).sum()) for tensor in tensors)
