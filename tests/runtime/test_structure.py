"""Structures: built, written as JSON, flattened, and made again without the model's classes."""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whet.errors import InputError
from whet.runtime.structure import StructuredOutput, build, check, flatten, unflatten


@dataclass
class Output:
    """Like the outputs of transformers."""

    loss: Any = None
    logits: Any = None
    hidden: Any = None


Point = namedtuple("Point", "x y")


class Leaf:
    """Compares by identity."""


def _is_leaf(value: Any) -> bool:
    return isinstance(value, Leaf)


def _nested(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
    return st.recursive(
        leaf | scalars,
        lambda inner: (
            st.lists(inner)
            | st.lists(inner).map(tuple)
            | st.dictionaries(st.text() | st.integers(), inner)
            | st.builds(Point, inner, inner)
        ),
        max_leaves=12,
    )


@given(_nested(st.builds(Leaf)))
def test_round_trip(value: Any) -> None:
    spec, leaves = build(value, _is_leaf)
    spec = json.loads(json.dumps(spec))
    check(spec, len(leaves))
    assert flatten(spec, value) == leaves
    again = unflatten(spec, leaves)
    assert repr(again) == repr(value)
    assert flatten(spec, again) == leaves


def test_dataclass_becomes_a_light_object() -> None:
    logits, hidden = Leaf(), (Leaf(), Leaf())
    spec, leaves = build(Output(logits=logits, hidden=hidden), _is_leaf)
    out = unflatten(json.loads(json.dumps(spec)), leaves)
    assert isinstance(out, StructuredOutput)
    assert out.logits is out["logits"] is out[0] is logits
    assert out.loss is None and out["loss"] is None
    assert out.hidden == out[1] == out[-1] == hidden
    assert tuple(out) == out.to_tuple() == out[:] == out.values() == (logits, hidden)
    assert list(out.keys()) == ["logits", "hidden"] and len(out) == 2
    assert dict(out.items()) == {"logits": logits, "hidden": hidden}
    assert "logits" in out and "loss" not in out
    assert repr(out).startswith("Output(loss=None, logits=<")
    with pytest.raises(AttributeError, match="Output has no field 'other'; it has loss, logits, hidden"):
        _ = out.other
    with pytest.raises(KeyError):
        out["other"]
    with pytest.raises(IndexError):
        out[2]
    # It can be given back as an input, as can the dataclass and a dict.
    for value in (
        out,
        Output(logits=logits, hidden=hidden),
        {"loss": None, "logits": logits, "hidden": hidden},
    ):
        assert flatten(spec, value) == leaves


def test_namedtuple_class_is_one() -> None:
    spec, leaves = build(Point(Leaf(), Leaf()), _is_leaf)
    first, second = unflatten(spec, leaves), unflatten(spec, leaves)
    assert first == second and type(first) is type(second) and first.y is leaves[1]
    assert flatten(spec, tuple(leaves)) == leaves
    with pytest.raises(InputError, match=r"has 3 item\(s\)"):
        flatten(spec, (1, 2, 3))
    with pytest.raises(InputError, match=r"has no field 'y'; the model wants a Point of \['x', 'y'\]"):
        flatten(spec, {"x": 1})


def test_what_is_no_structure_is_refused() -> None:
    with pytest.raises(TypeError, match="set"):
        build({1, 2}, _is_leaf)
    leaf = {"kind": "leaf", "index": 0}
    deep: Any = leaf
    for _ in range(200):
        deep = {"kind": "tuple", "items": [deep]}
    for spec in (
        None,
        {},
        {"kind": []},
        {"kind": "set", "items": []},
        {"kind": "leaf"},
        {"kind": "leaf", "index": True},
        {"kind": "leaf", "index": 1},
        {"kind": "tuple", "items": [leaf, leaf]},
        {"kind": "tuple", "items": {"0": leaf}},
        {"kind": "dict", "keys": [], "items": [leaf]},
        {"kind": "dict", "keys": [[]], "items": [leaf]},
        {"kind": "dict", "keys": None, "items": [leaf]},
        {"kind": "namedtuple", "name": "a b", "fields": ["x"], "items": [leaf]},
        {"kind": "namedtuple", "name": "P", "fields": ["class"], "items": [leaf]},
        {"kind": "dataclass", "name": "P", "fields": ["__class__"], "items": [leaf]},
        {"kind": "constant", "value": []},
        {**leaf, "more": 1},
        deep,
    ):
        with pytest.raises(ValueError, match=r"structure|leaf|leaves"):
            check(spec, 1)
