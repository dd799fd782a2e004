"""Rewriting to a fixpoint: what replaces what, who may share, what is told when a pattern declines or misbehaves."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.passes.equality import assert_same_results, build, count, weight
from whet.errors import InternalError, PassError
from whet.ir import Builder, DType, Graph, Location, TensorType, Value, print_graph, verify
from whet.passes import Context, MatchFailure, PassManager, RewritePattern, Rewriter, Tracer, ops
from whet.passes.rewrite import ApplyPatterns, apply_patterns


class FoldScaleIntoLinear(RewritePattern):
    """linear(x, w) * s  ->  linear(x, w * s)."""

    def pattern(self, x, w, s):  # type: ignore[no-untyped-def]
        return ops.mul(ops.linear(x, w), s)

    def rewrite(self, rewriter, x, w, s):  # type: ignore[no-untyped-def]
        if w.constant is None or s.constant is None:
            raise MatchFailure("weight and scale must be constants", w, s)
        return rewriter.linear(x, rewriter.constant(w.constant * s.constant))


def scaled_linear(b: Builder, x: Value) -> Value:
    b.location = Location("net.fc", "model.py", 3)
    y = b.linear(x, b.constant(weight(4, 3), "fc.weight"), None, name_hint="y")
    b.location = Location("net", "model.py", 4)
    result: Value = b.mul(y, 0.5, name_hint="scaled")
    return result


def test_the_pattern_of_the_design() -> None:
    graph = build(scaled_linear, (2, 3))
    result = ApplyPatterns((FoldScaleIntoLinear(),))(graph)
    assert result.modified and result.changes == {"FoldScaleIntoLinear": 1}
    verify(result.graph)
    assert count(result.graph) == {"constant": 1, "linear": 1}
    assert_same_results(graph, result.graph)
    linear = result.graph.operations[-1]
    assert linear.result.name == "scaled", "the result keeps the name of what it replaces"
    assert linear.location == Location("net.fc", "model.py", 3), "the source line is that of the matched linear"


def test_the_order_of_operations_stays_topological() -> None:
    def body(b: Builder, x: Value) -> Value:
        for _ in range(5):
            x = b.mul(b.linear(x, b.constant(weight(3, 3)), None), 0.5)
        return x

    graph = build(body, (2, 3))
    clone = graph.clone()
    assert apply_patterns(clone, [FoldScaleIntoLinear()]) == {"FoldScaleIntoLinear": 5}
    verify(clone)
    assert_same_results(graph, clone)


def shared(b: Builder, x: Value) -> tuple[Value, Value]:
    y = b.linear(x, b.constant(weight(4, 3)), None)
    return b.mul(y, 0.5), b.relu(y)


def returned(b: Builder, x: Value) -> tuple[Value, Value]:
    y = b.linear(x, b.constant(weight(4, 3)), None)
    return b.mul(y, 0.5), y


@pytest.mark.parametrize("body", [shared, returned])
def test_what_others_use_is_not_taken(body: Any) -> None:
    graph = build(body, (2, 3))
    tracer = Tracer()
    assert not apply_patterns(graph, [FoldScaleIntoLinear()], tracer)
    (decline,) = tracer.declined
    assert decline.reason == "used elsewhere" and decline.values == ("%linear: f32[2, 4]",)


@pytest.mark.parametrize("body", [shared, returned])
def test_unless_the_pattern_opts_in(body: Any) -> None:
    class Sharing(FoldScaleIntoLinear):
        allow_shared = True

    graph = build(body, (2, 3))
    result = ApplyPatterns((Sharing(),))(graph).graph
    verify(result)
    assert count(result)["linear"] == 2
    assert_same_results(graph, result)


def test_a_decline_leaves_nothing_behind_and_tries_the_other_order() -> None:
    class Reorder(RewritePattern):
        def pattern(self, x: Any, c: Any) -> Any:
            return ops.mul(x, c)

        def rewrite(self, rewriter: Rewriter, x: Value, c: Value) -> Any:
            made = rewriter.neg(x)
            if c.constant is None:
                raise MatchFailure("must be a constant", c)
            return rewriter.div(rewriter.neg(made), rewriter.constant(c.constant.reciprocal()))

    graph = build(lambda b, x: b.mul(b.scalar(0.5, DType.F32), x), (2,))
    result = ApplyPatterns((Reorder(),))(graph).graph
    verify(result)
    assert count(result) == {"constant": 1, "neg": 2, "div": 1}
    assert_same_results(graph, result)
    plain = build(lambda b, x, y: b.mul(x, y), (2,), (2,))
    text = print_graph(plain)
    unchanged = ApplyPatterns((Reorder(),))(plain)
    assert not unchanged.modified and unchanged.graph is plain and print_graph(plain) == text
    assert [value.uses for value in plain.inputs] == [[(plain.operations[0], 0)], [(plain.operations[0], 1)]]


def test_the_tracer_tells_why() -> None:
    def body(b: Builder, x: Value, s: Value) -> Value:
        b.location = Location("net.head", "model.py", 12)
        return b.mul(b.linear(x, b.constant(weight(4, 3)), None), s)  # type: ignore[no-any-return]

    graph = build(body, (2, 3), (4,))
    tracer = Tracer()
    ApplyPatterns((FoldScaleIntoLinear(),))(graph, Context(tracer=tracer))
    assert tracer.report() == (
        "FoldScaleIntoLinear: applied 0 time(s), declined 1 time(s)\n"
        "  declined  %mul = mul(%linear, %x1) at net.head model.py:12: weight and scale must be constants "
        "(%c: f32[4, 3], %x1: f32[4])"
    )
    assert str(Tracer()) == "no pattern was tried"


def test_the_tracer_tells_what_applied_and_can_be_limited() -> None:
    graph = build(scaled_linear, (2, 3))
    tracer, other = Tracer(), Tracer(patterns=("Other",))
    ApplyPatterns((FoldScaleIntoLinear(),))(graph, Context(tracer=tracer))
    ApplyPatterns((FoldScaleIntoLinear(),))(graph, Context(tracer=other))
    assert tracer.applied == [("FoldScaleIntoLinear", "%scaled = mul(%y, %c)", Location("net", "model.py", 4))]
    assert "applied   %scaled = mul(%y, %c) at net model.py:4" in str(tracer)
    assert not other.applied and not other.declined


class SubToAdd(RewritePattern):
    def pattern(self, x: Any, y: Any) -> Any:
        return ops.sub(x, y)

    def rewrite(self, rewriter: Rewriter, x: Value, y: Value) -> Any:
        return rewriter.add(x, rewriter.neg(y))


class AddToSub(RewritePattern):
    def pattern(self, x: Any, y: Any) -> Any:
        return ops.add(x, y)

    def rewrite(self, rewriter: Rewriter, x: Value, y: Value) -> Any:
        return rewriter.sub(x, rewriter.neg(y))


def test_patterns_that_undo_each_other_are_named() -> None:
    graph = build(lambda b, x, y: b.add(x, y), (2,), (2,))
    with pytest.raises(InternalError, match=r"no fixpoint after 50 rewrites.*\['AddToSub', 'SubToAdd'\]"):
        apply_patterns(graph, [SubToAdd(), AddToSub()], limit=50)


def returning(result: Any) -> RewritePattern:
    class Wrong(RewritePattern):
        def pattern(self, x: Any) -> Any:
            return ops.relu(x)

        def rewrite(self, rewriter: Rewriter, x: Value) -> Any:
            return result(rewriter, x)

    return Wrong()


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (
            lambda r, x: r.reshape(x, shape=(3, 2)),
            r"Wrong at .*relu.*: rewrite gives f32\[3, 2\] in place of f32\[2, 3\]",
        ),
        (lambda r, x: r.cast(x, dtype=DType.F16), r"rewrite gives f16\[2, 3\] in place of f32\[2, 3\]"),
        (lambda r, x: None, r"rewrite must return 1 value\(s\), got None"),
        (lambda r, x: (x, x), r"rewrite must return 1 value\(s\)"),
        (lambda r, x: r.root.result, "the value that it is to replace"),
        (lambda r, x: r.reshape(x, shape=(7,)), r"pattern Wrong at .*relu.*has not as many elements"),
    ],
)
def test_a_rewrite_that_cannot_be_is_refused(result: Any, message: str) -> None:
    graph = build(lambda b, x: b.relu(x), (2, 3))
    with pytest.raises(PassError, match=message):
        apply_patterns(graph, [returning(result)])


def test_a_rewrite_may_give_what_was_there() -> None:
    graph = build(lambda b, x: b.relu(x), (2, 3))
    assert apply_patterns(graph, [returning(lambda r, x: x)])
    verify(graph)
    assert graph.outputs == graph.inputs and not graph.operations


def test_several_results_are_replaced_together() -> None:
    class LargestFirst(RewritePattern):
        def pattern(self, x: Any) -> Any:
            return ops.topk(x, k=1, axis=0)

        def rewrite(self, rewriter: Rewriter, x: Value) -> Any:
            return rewriter.amax(x, dims=(0,), keepdims=True), rewriter.argmax(x, dim=0, keepdims=True)

    graph = build(lambda b, x: b.topk(x, k=1, axis=0), (4,))
    result = ApplyPatterns((LargestFirst(),))(graph).graph
    verify(result)
    assert [value.name for value in result.outputs] == [value.name for value in graph.outputs]
    assert_same_results(graph, result)


def test_state_outputs_are_replaced() -> None:
    from whet.ir import StateSlot

    graph = Graph()
    builder = Builder(graph)
    state = Value("state", TensorType((2,), DType.F32))
    graph.state.append(StateSlot(state, state, torch.ones(2)))
    graph.state[0].output = builder.relu(builder.relu(state))
    graph.outputs = [builder.neg(state)]
    verify(graph)

    class Once(RewritePattern):
        def pattern(self, x: Any) -> Any:
            return ops.relu(ops.relu(x))

        def rewrite(self, rewriter: Rewriter, x: Value) -> Any:
            return rewriter.relu(x)

    outcome = PassManager([Once()]).run(graph)
    assert count(outcome.graph)["relu"] == 1
    assert_same_results(graph, outcome.graph)


def test_the_result_does_not_depend_on_the_run() -> None:
    def body(b: Builder, x: Value) -> Value:
        for _ in range(20):
            x = b.sub(b.mul(b.linear(x, b.constant(weight(3, 3)), None), 0.5), x)
        return x

    graph = build(body, (2, 3))
    texts = {print_graph(ApplyPatterns((SubToAdd(), FoldScaleIntoLinear()))(graph).graph) for _ in range(3)}
    assert len(texts) == 1
