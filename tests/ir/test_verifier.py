"""Each rule of the verifier, broken by hand in a graph that is otherwise well formed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from whet.errors import VerifyError
from whet.ir import Builder, DType, Graph, Location, Operation, StateSlot, TensorType, Value, verify
from whet.ir.definition import OpDefinition
from whet.ir.dimensions import symbol


def make() -> Graph:
    """x [s0, 3] -> linear -> relu -> reshape, and a counter; locations on every line."""
    graph = Graph()
    builder = Builder(graph, location=Location("net.fc", "model.py", 12))
    x = builder.input("x", TensorType((symbol("s0"), 3), DType.F32))
    hidden = builder.linear(x, builder.constant(torch.ones(4, 3), key="w"), None)
    hidden = builder.relu(hidden)
    count = Value("count", TensorType((), DType.I64))
    graph.state.append(StateSlot(count, count, torch.tensor(0)))
    graph.state[0].output = builder.add(count, 1)
    graph.outputs = [builder.reshape(hidden, shape=(symbol("s0") * 4,))]
    graph.output_names = ["y"]
    return graph


def find(graph: Graph, name: str) -> Operation:
    return next(operation for operation in graph.operations if operation.name == name)


class Unknown(OpDefinition):
    """An operation that is not in the catalogue."""

    name = "relu"

    def infer(self, x: TensorType) -> TensorType:
        return x


def _twice(graph: Graph) -> None:
    graph.operations.append(find(graph, "relu"))


def _late(graph: Graph) -> None:
    graph.operations.append(graph.operations.pop(graph.operations.index(find(graph, "constant"))))


def _same_name(graph: Graph) -> None:
    find(graph, "relu").result.name = "x"


def _bad_name(graph: Graph) -> None:
    find(graph, "relu").result.name = "a b"


def _foreign(graph: Graph) -> None:
    find(graph, "relu").definition = Unknown()


def _lost_use(graph: Graph) -> None:
    find(graph, "linear").result.uses.clear()


def _phantom_use(graph: Graph) -> None:
    linear = find(graph, "linear").result
    Operation(find(graph, "relu").definition, [linear], {}, Location())


def _wrong_operand(graph: Graph) -> None:
    find(graph, "reshape").operands[0] = find(graph, "linear").result


def _wrong_type(graph: Graph) -> None:
    find(graph, "relu").result.type = TensorType((4,), DType.F32)


def _wrong_producer(graph: Graph) -> None:
    find(graph, "relu").result.producer = find(graph, "linear")


def _missing_attribute(graph: Graph) -> None:
    del find(graph, "reshape").attributes["shape"]


def _bad_attribute(graph: Graph) -> None:
    find(graph, "reshape").attributes["shape"] = (3,)


def _wrong_constant(graph: Graph) -> None:
    find(graph, "constant").attributes["tensor"] = torch.ones(4, 4)


def _no_i4(graph: Graph) -> None:
    wide = Builder(graph).constant(torch.tensor([8], dtype=torch.int8), dtype=DType.I4)
    assert wide.type.dtype is DType.I4


def _foreign_output(graph: Graph) -> None:
    graph.outputs = [Value("y", TensorType((), DType.F32))]


def _foreign_state(graph: Graph) -> None:
    graph.state[0].output = Value("y", TensorType((), DType.I64))


def _state_type(graph: Graph) -> None:
    graph.state[0].initial = torch.zeros(2, dtype=torch.int64)


def _state_output_type(graph: Graph) -> None:
    graph.state[0].output = find(graph, "relu").result


def _names(graph: Graph) -> None:
    graph.output_names = ["y", "z"]


def _unbound(graph: Graph) -> None:
    size = symbol("s9")
    graph.outputs = [Builder(graph).full(shape=(size,), value=1.0, dtype=DType.F32)]
    graph.output_names = []


def _unsolvable(graph: Graph) -> None:
    Builder(graph).input("y", TensorType((symbol("s0") * symbol("s1") * symbol("s2"), 3), DType.F32))


def _arguments_twice(graph: Graph) -> None:
    graph.inputs.append(graph.inputs[0])


def _bad_dimension(graph: Graph) -> None:
    graph.dimensions["a b"] = graph.dimensions.get("s0")  # type: ignore[assignment]


BROKEN: list[tuple[Callable[[Graph], None], str]] = [
    (_twice, "defined twice"),
    (_late, "%linear = linear.* at net.fc model.py:12: operand 1, %w, is not defined before its use"),
    (_same_name, "%relu|%x belongs to two values"),
    (_bad_name, "letters, digits"),
    (_foreign, "not an operation of the catalogue"),
    (_lost_use, "use list of %linear .* lacks"),
    (_phantom_use, "use list of %linear has"),
    (_wrong_operand, "use list"),
    (
        _wrong_type,
        "at net.fc model.py:12: result %relu has type f32\\[4\\], its definition gives f32\\[s0, 4\\]",
    ),
    (_wrong_producer, "names another producer"),
    (_missing_attribute, "declared are \\['shape'\\]"),
    (_bad_attribute, "elements"),
    (_wrong_constant, "result %w has type f32\\[4, 3\\]"),
    (_no_i4, "outside of i4"),
    (_foreign_output, "output 0: %y is not defined"),
    (_foreign_state, "state %count: its output %y is not defined"),
    (_state_type, "not that of its initial tensor"),
    (_state_output_type, "has type f32"),
    (_names, "2 output name"),
    (_unbound, "\\['s9'\\] that no input binds"),
    (_unsolvable, "that no input binds"),
    (_arguments_twice, "defined twice"),
    (_bad_dimension, "no identifier"),
]


@pytest.mark.parametrize("breakage, message", BROKEN, ids=lambda item: getattr(item, "__name__", ""))
def test_a_broken_rule_is_named(breakage: Callable[[Graph], None], message: str) -> None:
    graph = make()
    verify(graph)
    breakage(graph)
    with pytest.raises(VerifyError, match=message):
        verify(graph)


def test_a_symbol_may_follow_from_an_expression() -> None:
    graph = Graph()
    builder = Builder(graph)
    s0, s1 = symbol("s0"), symbol("s1")
    builder.input("x", TensorType((2 * s0 + 1, s0 + s1), DType.F32))
    graph.outputs = [builder.full(shape=(s1,), value=1.0, dtype=DType.F32)]
    verify(graph)
