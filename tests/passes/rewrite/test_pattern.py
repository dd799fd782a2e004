"""What patterns match: names, numbers, absent operands, attributes, commuted operands, several results."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.passes.equality import build, weight
from whet.errors import PassError
from whet.ir import Graph, Operation
from whet.passes import AnyOf, RewritePattern, ops
from whet.passes.rewrite.matcher import Failure, Match, matches
from whet.passes.rewrite.pattern import CompiledPattern


def drawn(pattern: Any) -> CompiledPattern:
    """A rule with that pattern: a function of its variables."""

    class Rule(RewritePattern):
        def rewrite(self, rewriter: Any) -> Any:
            raise AssertionError("not called")

    rule = Rule()
    rule.pattern = pattern
    return CompiledPattern(rule)


def all_matches(pattern: Any, operation: Operation) -> list[Match]:
    compiled = drawn(pattern)
    return list(matches(compiled.roots.get(operation.name, []), operation, Failure()))


def last(graph: Graph) -> Operation:
    return graph.operations[-1]


def test_parameters_bind_by_name() -> None:
    graph = build(lambda b, x, y: b.sub(x, b.relu(y)), (2,), (2,))
    (match,) = all_matches(lambda left, right: ops.sub(left, ops.relu(right)), last(graph))
    assert match.bindings == {"left": graph.inputs[0], "right": graph.inputs[1]}


def test_one_name_is_one_value() -> None:
    twice = build(lambda b, x: b.sub(x, x), (2,))
    other = build(lambda b, x, y: b.sub(x, y), (2,), (2,))
    assert all_matches(lambda x: ops.sub(x, x), last(twice))
    assert not all_matches(lambda x: ops.sub(x, x), last(other))


def test_commutative_operations_match_in_both_orders() -> None:
    graph = build(lambda b, x: b.add(b.relu(x), b.tanh(x)), (2,))
    for pattern in (lambda x, y: ops.add(ops.relu(x), y), lambda x, y: ops.add(y, ops.relu(x))):
        (match,) = all_matches(pattern, last(graph))
        assert match.bindings["x"] is graph.inputs[0] and match.bindings["y"].name == "tanh"
    assert len(all_matches(lambda x, y: ops.add(x, y), last(graph))) == 2
    assert not all_matches(lambda x, y: ops.sub(y, ops.relu(x)), last(build(lambda b, x: b.sub(b.relu(x), x), (2,))))


def test_commuted_operands_are_searched_at_every_depth() -> None:
    graph = build(lambda b, x, y: b.mul(b.add(y, x), b.relu(x)), (2,), (2,))
    (match,) = all_matches(lambda x, y: ops.mul(ops.relu(x), ops.add(x, y)), last(graph))
    assert match.bindings == {"x": graph.inputs[0], "y": graph.inputs[1]}


def test_numbers_match_scalar_constants() -> None:
    graph = build(lambda b, x: b.mul(x, 2.0), (2,))
    assert all_matches(lambda x: ops.mul(x, 2), last(graph))
    assert all_matches(lambda x: ops.mul(2, x), last(graph))
    assert not all_matches(lambda x: ops.mul(x, 3), last(graph))
    vector = build(lambda b, x: b.mul(x, b.constant(torch.full((2,), 2.0))), (2,))
    assert not all_matches(lambda x: ops.mul(x, 2), last(vector))


def test_absent_operands() -> None:
    without = build(lambda b, x: b.linear(x, b.constant(weight(4, 3)), None), (2, 3))
    short = build(lambda b, x: b.linear(x, b.constant(weight(4, 3))), (2, 3))
    biased = build(lambda b, x: b.linear(x, b.constant(weight(4, 3)), b.constant(weight(4))), (2, 3))

    def optional(x: Any, w: Any, b: Any = None) -> Any:
        return ops.linear(x, w, b)

    for graph in (without, short):
        assert all_matches(lambda x, w: ops.linear(x, w), last(graph))
        assert all_matches(lambda x, w: ops.linear(x, w, None), last(graph))
        assert not all_matches(lambda x, w, b: ops.linear(x, w, b), last(graph))
        (match,) = all_matches(optional, last(graph))
        assert match.bindings["b"] is None
    assert not all_matches(lambda x, w: ops.linear(x, w), last(biased))
    assert not all_matches(lambda x, w: ops.linear(x, w, None), last(biased))
    (match,) = all_matches(optional, last(biased))
    assert match.bindings["b"].type.shape == (4,)


def test_attributes_match_bind_or_may_be_anything() -> None:
    graph = build(lambda b, x: b.softmax(b.softmax(x, axis=1), axis=1), (2, 3))
    uneven = build(lambda b, x: b.softmax(b.softmax(x, axis=0), axis=1), (2, 3))
    assert all_matches(lambda x: ops.softmax(x), last(graph))
    assert all_matches(lambda x: ops.softmax(x, axis=1), last(graph))
    assert not all_matches(lambda x: ops.softmax(x, axis=0), last(graph))

    def same_axis(x: Any, *, axis: Any) -> Any:
        return ops.softmax(ops.softmax(x, axis=axis), axis=axis)

    (match,) = all_matches(same_axis, last(graph))
    assert match.bindings["axis"] == 1
    assert not all_matches(same_axis, last(uneven))


def test_the_rest_of_the_operands() -> None:
    graph = build(lambda b, x, y, z: b.concat(b.relu(x), y, z, axis=0), (2,), (2,), (2,))
    (match,) = all_matches(lambda x, *others: ops.concat(ops.relu(x), *others), last(graph))
    assert match.bindings["others"] == tuple(graph.inputs[1:])
    assert not all_matches(lambda x, y: ops.concat(x, y), last(graph))
    assert all_matches(lambda x, y, z: ops.concat(x, y, z), last(graph))


def test_alternatives() -> None:
    for name in ("relu", "tanh"):
        graph = build(lambda b, x, name=name: b.neg(getattr(b, name)(x)), (2,))
        assert all_matches(lambda x: ops.neg(AnyOf(ops.relu(x), ops.tanh(x))), last(graph))
        assert all_matches(lambda x: AnyOf(ops.abs(x), ops.neg(x)), last(graph))
        assert not all_matches(lambda x: ops.neg(AnyOf(ops.abs(x), ops.sigmoid(x))), last(graph))
    scaled = build(lambda b, x: b.mul(x, 4.0), (2,))
    assert all_matches(lambda x: ops.mul(x, AnyOf(2, 4)), last(scaled))


def test_operations_with_several_results() -> None:
    graph = build(lambda b, x: b.neg(b.topk(x, k=2, axis=0)[0]), (4,))
    operation = last(graph)
    assert all_matches(lambda x: ops.neg(ops.topk(x)[0]), operation)
    assert all_matches(lambda x: ops.neg(ops.topk(x)), operation)
    assert not all_matches(lambda x: ops.neg(ops.topk(x)[1]), operation)


def test_one_node_is_one_operation() -> None:
    def pattern(x: Any) -> Any:
        inner = ops.relu(x)
        return ops.mul(inner, ops.sigmoid(inner))

    one = build(lambda b, x: b.mul(r := b.relu(x), b.sigmoid(r)), (2,))
    two = build(lambda b, x: b.mul(b.relu(x), b.sigmoid(b.relu(x))), (2,))
    assert all_matches(pattern, last(one))
    assert not all_matches(pattern, last(two))


def test_mistakes_in_a_pattern_are_named() -> None:
    with pytest.raises(AttributeError, match="no operation 'liner'"):
        drawn(lambda x: ops.liner(x))
    with pytest.raises(TypeError, match=r"softmax has no attribute\(s\) \['dim'\]; it has \['axis'\]"):
        drawn(lambda x: ops.softmax(x, dim=1))
    with pytest.raises(TypeError, match="not str: 'x'"):
        drawn(lambda x: ops.neg("x"))
    with pytest.raises(PassError, match=r"Rule.pattern must return an operation of whet\.passes\.ops, got 3"):
        drawn(lambda x: 3)

    class Unbound(RewritePattern):
        def pattern(self, x: Any) -> Any:
            return ops.neg(x)

        def rewrite(self, rewriter: Any, x: Any, y: Any) -> Any:
            return x

    with pytest.raises(PassError, match=r"Unbound.rewrite asks for \['y'\], pattern binds \['x'\]"):
        CompiledPattern(Unbound())

    class Empty(RewritePattern):
        pass

    with pytest.raises(PassError, match="Empty must define pattern"):
        CompiledPattern(Empty())


def test_the_namespace_lists_the_catalogue() -> None:
    assert {"linear", "conv", "mul"} <= set(dir(ops))
