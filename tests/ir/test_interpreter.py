"""The interpreter: symbols, inputs that do not fit, state, overrides, hooks, memory."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from whet.errors import InputError
from whet.ir import (
    Builder,
    DimRange,
    DType,
    Graph,
    Interpreter,
    Location,
    Operation,
    StateSlot,
    TensorType,
    Value,
)
from whet.ir.dimensions import Dim, symbol
from whet.ir.interpreter import bind_inputs

S0, S1 = symbol("s0"), symbol("s1")


def graph_of(*shapes: Sequence[Dim], dimensions: dict[str, DimRange] | None = None) -> Graph:
    graph = Graph(dimensions=dimensions or {})
    builder = Builder(graph)
    for index, shape in enumerate(shapes):
        builder.input(f"x{index}", TensorType(tuple(shape), DType.F32))
    graph.outputs = list(graph.inputs)
    return graph


def counter() -> Graph:
    """count = count + x, and the old count as output."""
    graph = Graph()
    builder = Builder(graph)
    x = builder.input("x", TensorType((), DType.I64))
    value = Value("count", TensorType((), DType.I64))
    slot = StateSlot(value, value, torch.tensor(10))
    graph.state.append(slot)
    slot.output = builder.add(value, x)
    graph.outputs = [value]
    return graph


def test_state_moves_on_and_resets() -> None:
    graph = counter()
    run, other = Interpreter(graph), Interpreter(graph)
    assert [run(torch.tensor(step))[0].item() for step in (1, 2, 3)] == [10, 11, 13]
    assert other(torch.tensor(1))[0].item() == 10
    run.reset()
    assert run(torch.tensor(5))[0].item() == 10
    assert graph.state[0].initial.item() == 10


def test_the_owner_of_an_output_or_input_may_write_to_it() -> None:
    graph = graph_of((2,))
    value = Value("cache", TensorType((2,), DType.F32))
    graph.state.append(StateSlot(value, graph.inputs[0], torch.zeros(2)))
    graph.outputs = [value]
    run, x = Interpreter(graph), torch.ones(2)
    run(x)[0].fill_(7.0)
    x.fill_(9.0)
    assert run(torch.zeros(2))[0].tolist() == [1.0, 1.0]


def test_a_failed_call_leaves_the_state_as_it_was() -> None:
    run = Interpreter(counter())
    run(torch.tensor(1))
    with pytest.raises(InputError):
        run(torch.tensor(1.0))
    assert run(torch.tensor(0))[0].item() == 11


def test_symbols_are_bound() -> None:
    graph = graph_of((S0, S1), (S1, 2 * S0 + 1))
    assert bind_inputs(graph, [torch.zeros(3, 4), torch.zeros(4, 7)]) == {"s0": 3, "s1": 4}
    derived = graph_of((2 * S0 + 1, S0 + S1), (S1,))
    assert bind_inputs(derived, [torch.zeros(7, 5), torch.zeros(2)]) == {"s0": 3, "s1": 2}
    assert bind_inputs(graph_of((2 * S0, S0 + S1)), [torch.zeros(6, 5)]) == {"s0": 3, "s1": 2}


BAD: list[tuple[Graph, list[object], str]] = [
    (graph_of((2,)), [], "takes 1 input.* \\(x0\\), got 0"),
    (graph_of((2,)), [[1.0, 2.0]], "input 'x0' must be a tensor, got list"),
    (graph_of((2,)), [torch.zeros(2).long()], "input 'x0' must be f32\\[2\\], got i64\\[2\\]"),
    (graph_of((2,)), [torch.zeros(2).cfloat()], "got dtype torch.complex64"),
    (graph_of((2,)), [torch.zeros(2, 1)], "must be f32\\[2\\], got f32\\[2, 1\\]"),
    (graph_of((2,)), [torch.zeros(3)], "dimension 0 is 3, not 2"),
    (graph_of((S0,), (S0,)), [torch.zeros(3), torch.zeros(4)], "input 'x1' .* dimension 0 is 4, not s0 = 3"),
    (graph_of((2 * S0,)), [torch.zeros(3)], "dimension 0 is 3, which is 2\\*s0 for no integer"),
    (graph_of((S0, 2 * S0)), [torch.zeros(3, 5)], "dimension 1 is 5, not 2\\*s0 = 6"),
    (
        graph_of((S0,), dimensions={"s0": DimRange(2, 8)}),
        [torch.zeros(9)],
        "input 'x0': dimension 0 \\(s0\\) is 9, allowed are 2..8$",
    ),
    (
        graph_of((S0,), dimensions={"s0": DimRange(8, None, 8)}),
        [torch.zeros(12)],
        "dimension 0 \\(s0\\) is 12, allowed are 8 and more in steps of 8$",
    ),
    (graph_of((S0,), dimensions={"s0": DimRange()}), [torch.zeros(0)], "is 0, allowed are 1 and more$"),
    (
        graph_of((2 * S0,), dimensions={"s0": DimRange(1, 4)}),
        [torch.zeros(10)],
        "input 'x0': dimension 0 \\(2\\*s0\\) is 10 and so s0 is 5, allowed are 1..4$",
    ),
]


@pytest.mark.parametrize("graph, inputs, message", BAD)
def test_inputs_that_do_not_fit_are_refused(graph: Graph, inputs: list[Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Interpreter(graph)(*inputs)


def test_an_i4_input_lies_in_int8() -> None:
    graph = Graph()
    x = Builder(graph).input("x", TensorType((2,), DType.I4))
    graph.outputs = [x]
    assert Interpreter(graph)(torch.tensor([-8, 7], dtype=torch.int8))[0].tolist() == [-8, 7]


def test_attributes_may_hold_symbols() -> None:
    graph = graph_of((S0, 6))
    builder = Builder(graph)
    y = builder.reshape(graph.inputs[0], shape=(2 * S0, 3))
    graph.outputs = [y, builder.full(shape=(), value=S0 + 1, dtype=DType.I64)]
    for batch in (1, 4):
        reshaped, number = Interpreter(graph)(torch.zeros(batch, 6))
        assert reshaped.shape == (2 * batch, 3)
        assert number.item() == batch + 1


def test_overrides_are_trained_through() -> None:
    graph = graph_of((2, 3))
    builder = Builder(graph)
    weight = builder.constant(torch.zeros(4, 3), key="w")
    graph.outputs = [builder.linear(graph.inputs[0], weight, None)]
    parameter = torch.ones(4, 3, requires_grad=True)
    (y,) = Interpreter(graph, {"w": parameter})(torch.ones(2, 3))
    y.sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [[2.0] * 3] * 4
    with pytest.raises(InputError, match=r"override.*'v'"):
        Interpreter(graph, {"v": parameter})


def test_the_hook_sees_every_result_in_order() -> None:
    graph = counter()
    seen: list[tuple[str, int]] = []

    def hook(operation: Operation, results: tuple[Tensor, ...]) -> None:
        seen.append((operation.name, int(results[0])))

    Interpreter(graph, hook=hook)(torch.tensor(2))
    assert seen == [("add", 12)]


def test_a_value_is_freed_at_its_last_use() -> None:
    graph = graph_of((1000,))
    builder = Builder(graph)
    value = graph.inputs[0]
    for _ in range(5):
        value = builder.exp(value)
    builder.neg(value)  # never used
    graph.outputs = [value]
    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def hook(operation: Operation, results: tuple[Tensor, ...]) -> None:
        nonlocal most
        alive.append(weakref.ref(results[0]))
        most = max(most, sum(item() is not None for item in alive))

    gc.disable()
    try:
        Interpreter(graph, hook=hook)(torch.zeros(1000))
    finally:
        gc.enable()
    assert most == 2


def test_an_error_names_the_operation_and_its_line() -> None:
    graph = Graph()
    builder = Builder(graph, location=Location("net", "model.py", 7))
    x, y = (builder.input(name, TensorType((1,), DType.I64)) for name in "xy")
    graph.outputs = [builder.floor_div(x, y)]
    with pytest.raises(RuntimeError) as raised:  # numerics: I3
        Interpreter(graph)(torch.ones(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    assert "%floor_div = floor_div(%x, %y) at net model.py:7" in raised.value.__notes__[0]
