"""Recurrent layers: inputs multiplied ahead of time, integer products, and which units go together."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from tests.passes.equality import build, weight
from whet.ir import Builder, DType, Graph, Interpreter, TensorType, Value
from whet.ir.definition import InferError
from whet.ir.ops import CATALOGUE
from whet.ir.views import coupled_indices, tie_graph

UNITS, FEATURES = 6, 3
GATES = {"lstm": 4, "gru": 3, "rnn": 1}
STATES = {"lstm": 2, "gru": 1, "rnn": 1}


def f32(*shape: int) -> TensorType:
    return TensorType(shape, DType.F32)


# numerics: R3
@pytest.mark.parametrize("name", GATES)
def test_without_a_weight_x_is_multiplied_already(name: str) -> None:
    rows = GATES[name] * UNITS
    x, states = weight(5, 2, FEATURES), [weight(2, UNITS, seed=item) for item in range(STATES[name])]
    matrix, recurrent, bias, other = weight(rows, FEATURES), weight(rows, UNITS), weight(rows), weight(rows, seed=1)
    operation = CATALOGUE[name]
    attributes = operation.signature.with_defaults({})
    whole = operation.evaluate(x, *states, matrix, recurrent, bias, other, **attributes)
    projected = torch.nn.functional.linear(x, matrix, bias)
    core = operation.evaluate(projected, *states, None, recurrent, None, other, **attributes)
    for left, right in zip(core, whole, strict=True):
        torch.testing.assert_close(left, right)


@pytest.mark.parametrize(
    ("features", "bias", "message"), [(23, None, "must have 24 features"), (24, f32(24), "bias added already")]
)
def test_x_without_a_weight_has_the_features_of_all_gates(features: int, bias: TensorType | None, message: str) -> None:
    state = f32(2, 6)
    with pytest.raises(InferError, match=message):
        CATALOGUE["lstm"].result_types([f32(5, 2, features), state, state, None, f32(24, 6), bias], {})


def test_the_recurrent_weight_is_not_optional() -> None:
    state = f32(2, 6)
    with pytest.raises(InferError, match=r"weight\?, recurrent_weight"):
        CATALOGUE["lstm"].result_types([f32(5, 2, 24), state, state, None], {})


# numerics: Q12
def test_integer_product_is_exact() -> None:
    hidden = torch.tensor([[0.5, -0.25, 2.0, float("nan"), -9.0, 1 / 254]])
    codes = [[64, -32, 127, 0, -128, 0]]  # 63.5 and 31.75 round to even and up; beyond the range; NaN; half a step
    matrix = torch.randint(-128, 128, (24, 6), generator=torch.Generator().manual_seed(0)).to(torch.int8)
    exact = (torch.tensor(codes) @ matrix.long().T).float() * 1e-4
    definition, x = CATALOGUE["lstm_integer"], torch.zeros(1, 1, 24)
    _, out, cell = definition.evaluate(
        x, hidden, torch.zeros(1, 6), matrix, torch.full((24,), 1e-4), torch.tensor(1 / 127)
    )
    enter, forget, candidate, leave = exact.chunk(4, dim=1)
    assert torch.equal(cell, torch.sigmoid(forget) * 0 + torch.sigmoid(enter) * torch.tanh(candidate))
    assert torch.equal(out, torch.sigmoid(leave) * torch.tanh(cell))


@pytest.mark.parametrize(
    ("slot", "type", "message"),
    [
        (0, f32(5, 2, 20), "must have 24 features"),
        (1, f32(3, 6), "batch of x"),
        (2, f32(2, 5), "must be like hidden"),
        (3, f32(24, 6), r"must be i8\[24, 6\]"),
        (4, f32(6), "must have 24 elements"),
        (5, f32(1), "must be one number"),
    ],
)
def test_integer_layers_check_their_operands(slot: int, type: TensorType, message: str) -> None:
    types = [f32(5, 2, 24), f32(2, 6), f32(2, 6), TensorType((24, 6), DType.I8), f32(24), f32()]
    types[slot] = type
    with pytest.raises(InferError, match=message):
        CATALOGUE["lstm_integer"].result_types(types, {})


def _layer(b: Builder, x: Value, name: str, features: int, dead: int, form: str) -> Value:
    """A layer whose unit `dead` is always 0: its rows are. `form`: how the input is multiplied."""
    rows = GATES[name] * UNITS
    alive = (torch.arange(rows) % UNITS != dead).float()
    matrix, recurrent, bias = (item * alive.reshape(-1, *[1] * (item.dim() - 1)) for item in (
        weight(rows, features), weight(rows, UNITS, seed=1), weight(rows, seed=2)))  # fmt: skip
    states = [b.constant(torch.zeros(2, UNITS), f"{name}{form}.state{item}") for item in range(STATES[name])]
    if form == "whole":
        operands = [x, *states, b.constant(matrix), b.constant(recurrent, "R"), b.constant(bias)]
        return b.emit(name, operands, {}).results[0]
    projected = b.linear(x, b.constant(matrix), b.constant(bias))
    if form == "core":
        return b.emit(name, [projected, *states, None, b.constant(recurrent, "R")], {}).results[0]
    codes = (recurrent * 20).round().to(torch.int8)
    constants = [b.constant(codes, "R"), b.constant(torch.full((rows,), 1e-3)), b.scalar(1 / 127, DType.F32)]
    return b.emit(f"{name}_integer", [projected, *states, *constants], {}).results[0]


def _without(graph: Graph, removed: Mapping[tuple[str, int], frozenset[int]]) -> Graph:
    """The graph with its constants made smaller, and everything else inferred anew."""
    result = Graph()
    builder = Builder(result)
    values: dict[Value, Value] = {value: builder.input(value.name, value.type) for value in graph.inputs}
    for operation in graph.operations:
        if operation.name == "constant":
            tensor = operation.attributes["tensor"]
            for dim in range(tensor.dim()):
                gone = removed.get((operation.result.name, dim), frozenset())
                tensor = tensor.index_select(dim, torch.tensor([i for i in range(tensor.shape[dim]) if i not in gone]))
            values[operation.result] = builder.constant(tensor)
            continue
        operands = [None if value is None else values[value] for value in operation.operands]
        results = builder.emit(operation.name, operands, operation.attributes).results
        values.update(zip(operation.results, results, strict=True))
    result.outputs = [values[value] for value in graph.outputs]
    return result


FORMS = [(name, form) for name in GATES for form in ("whole", "core")]


@pytest.mark.parametrize(("name", "form"), [*FORMS, ("lstm", "integer"), ("gru", "integer")])
def test_a_unit_is_removed_with_all_that_belongs_to_it(name: str, form: str) -> None:
    """Removing a unit that is always 0 changes nothing."""

    def body(b: Builder, x: Value) -> Value:
        first = _layer(b, x, name, FEATURES, 2, form)
        second = b.linear(first, b.constant(weight(4, UNITS)))
        return b.relu(second)

    graph = build(body, (5, 2, FEATURES))
    columns = next(value for value in graph.values() if value.name == "R")
    removed = coupled_indices(tie_graph(graph), {(columns.name, 1): [2]})
    small = _without(graph, removed)
    x = weight(5, 2, FEATURES, seed=5)
    torch.testing.assert_close(Interpreter(small)(x), Interpreter(graph)(x))
    shapes = {tuple(value.type.shape) for value in small.values()}
    assert (GATES[name] * (UNITS - 1), UNITS - 1) in shapes
