"""Buffers that the model writes become state; the rest are constants, tied where they were."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from tests.frontend.operators import randn
from whet.frontend import import_model
from whet.ir import DType, Graph, Interpreter, parse_graph, print_graph
from whet.ir.printer import graph_tensors


class Cache(nn.Module):
    """Keys and values of a decoder, a step counter, and running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(2, 6, 3))
        self.register_buffer("values", torch.zeros(2, 6, 3))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("total", torch.zeros(3), persistent=False)
        self.register_buffer("fixed", torch.ones(3))

    def forward(self, x: Tensor, position: Tensor) -> dict[str, Tensor]:
        self.keys.index_copy_(1, position, x)
        self.values[:, position] = x * 2
        self.values[:, :1] *= 0.5
        self.steps.add_(x.shape[1])
        self.total += x.sum((0, 1))
        seen = nn.functional.scaled_dot_product_attention(x, self.keys, self.values)
        return {"keys": self.keys, "seen": seen, "steps": self.steps, "mean": self.total * self.fixed / self.steps}


def steps(count: int) -> list[tuple[Tensor, Tensor]]:
    return [(randn(2, 2, 3, seed=step), torch.tensor([2 * step, 2 * step + 1])) for step in range(count)]


def run_beside_eager(graph: Graph, model: nn.Module) -> None:
    eager, interpreter = copy.deepcopy(model), Interpreter(graph)
    for _ in range(2):
        for inputs in steps(3):
            for result, expected in zip(interpreter(*inputs), eager(*inputs).values(), strict=True):
                torch.testing.assert_close(result, expected)
        eager = copy.deepcopy(model)
        interpreter.reset()


def test_written_buffers_are_state() -> None:
    model = Cache().eval()
    graph = import_model(model, steps(1)[0])
    assert [slot.input.name for slot in graph.state] == ["keys", "values", "steps", "total"]
    assert graph.state[2].input.type.dtype is DType.I64
    assert "fixed" in [value.name for value in graph.constants]
    run_beside_eager(graph, model)


def test_state_survives_the_text_form() -> None:
    model = Cache().eval()
    graph = import_model(model, steps(1)[0])
    run_beside_eager(parse_graph(print_graph(graph), graph_tensors(graph)), model)


def test_the_model_keeps_its_own_buffers() -> None:
    model = Cache().eval()
    model.keys.fill_(5.0)
    graph = import_model(model, steps(1)[0])
    Interpreter(graph)(*steps(1)[0])
    assert torch.equal(model.keys, torch.full((2, 6, 3), 5.0))
    assert torch.equal(graph.state[0].initial, model.keys)


def test_tied_weights_are_one_constant() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens: Tensor) -> Tensor:
            result: Tensor = self.head(self.embedding(tokens))
            return result

    model, tokens = Tied().eval(), torch.tensor([[1, 2, 6]])
    graph = import_model(model, (tokens,))
    assert len(graph.constants) == 1
    assert graph.constants[0].constant is not None
    assert graph.constants[0].constant.data_ptr() == model.head.weight.data_ptr()
    torch.testing.assert_close(Interpreter(graph)(tokens)[0], model(tokens))


def test_a_buffer_written_with_what_it_was_is_still_state() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(2, 3))

        def forward(self, x: Tensor) -> Tensor:
            before = self.seen.clone()
            self.seen.copy_(x)
            return before

    graph = import_model(Counter().eval(), (randn(2, 3),))
    interpreter = Interpreter(graph)
    assert torch.equal(interpreter(randn(2, 3, seed=1))[0], torch.zeros(2, 3))
    assert torch.equal(interpreter(randn(2, 3))[0], randn(2, 3, seed=1))
