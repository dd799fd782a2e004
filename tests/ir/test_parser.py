"""The text form: what each kind of attribute and constant reads back as, and where a mistake is reported."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from whet.errors import ParseError
from whet.ir import Builder, DType, Graph, Location, TensorType, Value, parse_graph, print_graph
from whet.ir.dimensions import floor_div, smaller_dim, symbol
from whet.ir.graph import StateSlot
from whet.ir.parser import _Parser
from whet.ir.printer import content_hash, format_attribute, graph_tensors

TEXT = """graph @main(%x: f32[s0, 3]) where(s0: 1..64 step 8) {
  %w = constant @"w" #HASH : f32[4, 3]
  %c = constant 2.0 : f32[]
  %linear = linear(%x, %w, none) : f32[s0, 4] loc("net.fc", "model.py", 12)
  %mul = mul(%linear, %c) : f32[s0, 4]
  %sum = sum(%mul) {dims = [1], keepdims = false} : f32[s0]
  return %sum
}
output_names ["y"]
output_structure {"kind":"leaf","index":0}
"""
WEIGHT = torch.arange(12, dtype=torch.float32).reshape(4, 3)
TEXT = TEXT.replace("HASH", content_hash(WEIGHT))


def test_a_whole_graph() -> None:
    graph = parse_graph(TEXT, {"w": WEIGHT})
    assert print_graph(graph) == TEXT
    assert graph.operations[2].location == Location("net.fc", "model.py", 12)
    assert graph.constants[0].constant is WEIGHT
    assert graph.dimensions["s0"].maximum == 64
    assert graph.dimensions["s0"].multiple_of == 8
    assert graph.output_names == ["y"]
    assert graph.output_structure == {"kind": "leaf", "index": 0}
    assert "loc(" not in print_graph(graph, locations=False)
    assert print_graph(parse_graph(print_graph(graph, locations=False), {"w": WEIGHT}), locations=False) == print_graph(
        graph, locations=False
    )


S0 = symbol("s0")
ATTRIBUTES = [
    None, True, False, 0, -7, 2**70, 1 / 3, 0.1 + 0.2, 0.0, -0.0, 1.0, 1e-05, 1e16, 1.5e300, -2.5,
    math.inf, -math.inf, "", 'a "b" \\ \n é',
    DType.F32, DType.I4, (), (1,), (1.0, 2), ((0, 1), (2, 3)), ("a", None), S0, 2 * S0 + 1, (S0, 4),
    floor_div(S0 + 1, 2) * 3, smaller_dim(S0, floor_div(S0, 3)),
]  # fmt: skip


@pytest.mark.parametrize("value", ATTRIBUTES, ids=str)
def test_an_attribute_reads_back_as_itself(value: Any) -> None:
    text = format_attribute(value)
    parser = _Parser(text, {})
    found = parser.attribute()
    assert parser.position == len(text)
    assert type(found) is type(value)
    assert found == value
    assert math.copysign(1, found) == math.copysign(1, value) if isinstance(value, float) else True
    assert format_attribute(found) == text


def test_nan_is_an_attribute() -> None:
    assert math.isnan(_Parser(format_attribute(math.nan), {}).attribute())


def test_constants_of_every_kind() -> None:
    graph = Graph("with space")
    builder = Builder(graph)
    for dtype in DType:
        floats = (0.1, -math.inf, math.nan) if dtype.is_float else ()
        integers = (0, *dtype.integer_range) if dtype.is_integer else ()
        for number in (*floats, *integers, *((True, False) if dtype is DType.BOOL else ())):
            builder.constant(torch.tensor(number, dtype=dtype.torch), dtype=dtype if dtype is DType.I4 else None)
    builder.constant(torch.tensor([-8, 7], dtype=torch.int8), key="packed", dtype=DType.I4)
    builder.constant(torch.tensor(1.5), key="keyed scalar")
    builder.constant(torch.zeros(0, 3))
    shared = torch.ones(2)
    builder.constant(shared, key="one")
    builder.constant(shared, key="one")
    text, tensors = print_graph(graph), graph_tensors(graph)
    twin = parse_graph(text, tensors)
    assert print_graph(twin) == text
    for left, right in zip(graph.constants, twin.constants, strict=True):
        assert left.type == right.type
        assert left.constant is not None and right.constant is not None
        assert torch.equal(torch.nan_to_num(left.constant.double()), torch.nan_to_num(right.constant.double()))


def test_state_reads_back() -> None:
    graph = Graph()
    value = Value("count", TensorType((2,), DType.I64))
    slot = StateSlot(value, value, torch.tensor([3, 4]))
    graph.state.append(slot)
    slot.output = Builder(graph).add(value, 1)
    twin = parse_graph(print_graph(graph), graph_tensors(graph))
    assert print_graph(twin) == print_graph(graph)
    assert twin.state[0].output is twin.operations[-1].result
    assert twin.state[0].initial.tolist() == [3, 4]


MISTAKES = [
    ("graph @main", "grph @main", "line 1, column 1: expected 'graph'"),
    ("f32[s0, 3]", "f31[s0, 3]", "line 1, column 17: unknown element type 'f31'"),
    ("f32[s0, 3]", "f32[s0 ** 2, 3]", "line 1, column 21: not a dimension: 's0 \\*\\* 2'"),
    ("f32[s0, 3]", "f32[__import__('os'), 3]", "line 1, column 21: not a dimension"),
    ("step 8", "step 0", "line 1, column 50: the step of s0 must be positive"),
    ("#" + content_hash(WEIGHT), "#00000000", "line 2, column 17: tensor 'w' has the content hash"),
    ('@"w"', '@"v"', "line 2, column 17: no tensor is given for 'v'"),
    (": f32[4, 3]", ": f32[3, 4]", "line 2, column 17: tensor 'w' is torch.float32 \\[4, 3\\]"),
    ("constant 2.0", "constant 2", "line 3, column 17: 2 is no constant of type f32"),
    ("constant 2.0 : f32", "constant 300 : u8", "line 3, column 17: 300 is no constant of type u8"),
    ("linear(", "linera(", "line 4, column 13: unknown operation 'linera'"),
    ("(%x, %w, none)", "(%x, %q, none)", "line 4, column 24: %q is not defined before its use"),
    ("(%x, %w, none)", "(%x)", "line 4, column 13: linear: linear takes"),
    (
        ": f32[s0, 4] loc",
        ": f32[s0, 5] loc",
        "line 4, column 13: linear gives f32\\[s0, 4\\], not f32\\[s0, 5\\]",
    ),
    (": f32[s0, 4] loc", ": f32[s0, 4], f32[1] loc", "line 4, column 13"),
    ("%mul = ", "%w = ", "line 5, column 3: %w is defined twice"),
    ("%mul = ", "%mul, %nul = ", "line 5, column 16: mul defines 2 value"),
    ("dims = [1]", "dims = [1, ", "line 6"),
    ("dims = [1]", "dim = [1]", "line 6, column 10: sum: unknown attribute"),
    ("dims = [1]", "dims = 1", "line 6, column 10: sum: TypeError"),
    ("dims = [1]", "dims = [1], dims = [1]", "line 6, column 33: attribute 'dims' is given twice"),
    ("dims = [1]", "dims = [maybe]", "line 6, column 29: unknown attribute value 'maybe'"),
    ("dims = [1]", "dims = " + "[" * 30 + "]" * 30, "nested too deeply"),
    ("return %sum", "return %total", "line 7, column 10: %total is not defined"),
    ('output_names ["y"]', "output_names [1]", "line 9, column 14: output_names must be a list of strings"),
    ('output_names ["y"]', "output_names [", "line 9, column 14: output_names is not JSON"),
    ('output_names ["y"]', "names []", "line 9, column 6: expected one of output_names"),
]


@pytest.mark.parametrize("right, wrong, message", MISTAKES)
def test_a_mistake_is_reported_where_it_is(right: str, wrong: str, message: str) -> None:
    assert right in TEXT
    with pytest.raises(ParseError, match=message):
        parse_graph(TEXT.replace(right, wrong, 1), {"w": WEIGHT})


def test_every_truncation_is_a_parse_error() -> None:
    end = TEXT.index("}\noutput_names")
    for length in range(end):
        with pytest.raises(ParseError, match=r"line [0-9]+, column [0-9]+"):
            parse_graph(TEXT[:length], {"w": WEIGHT})


def test_a_changed_weight_shows_in_the_text() -> None:
    changed = WEIGHT.clone()
    changed[0, 0] += 1
    for other in (changed, WEIGHT.reshape(3, 4), WEIGHT.double()):
        assert content_hash(other) != content_hash(WEIGHT)
    assert content_hash(WEIGHT.T.contiguous().T) == content_hash(WEIGHT)
