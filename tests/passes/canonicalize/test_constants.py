"""Folding and merging constants: exact, never larger, tied where equal."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.passes.equality import build, count, run_checked, weight
from whet.errors import PassError
from whet.ir import Builder, DType, Graph, Interpreter, Value
from whet.passes import Canonicalize, CommonSubexpressionElimination, ConstantFolding

KIB = 1 << 10


def bytes_of(graph: Graph) -> int:
    return sum(
        value.constant.numel() * value.constant.element_size()
        for value in graph.constants
        if value.constant is not None
    )


def test_folding_is_what_the_interpreter_computes() -> None:
    def body(b: Builder) -> Any:
        x = b.constant(weight(7, 5))
        return b.softmax(b.linear(b.gelu(x), b.constant(weight(6, 5)), None), axis=1), b.topk(x, k=2, axis=1)[1]

    graph = build(body)
    result = ConstantFolding()(graph).graph
    assert count(result) == {"constant": 2}
    for out, ref in zip(Interpreter(result)(), Interpreter(graph)(), strict=True):
        assert torch.equal(out, ref)


def test_only_what_is_needed_is_stored() -> None:
    def body(b: Builder, x: Value) -> Any:
        return b.add(x, b.sqrt(b.exp(b.constant(weight(4)))))

    result = run_checked(ConstantFolding(), build(body, (3, 4)))
    assert [value.name for value in result.constants] == ["sqrt"]


def test_generators_are_used_but_never_stored() -> None:
    """A causal mask is folded; a large buffer of zeros, a range and a broadcast stay what they are."""

    def body(b: Builder, x: Value) -> Any:
        rows = b.reshape(b.iota(length=4, dtype=DType.I64), shape=(4, 1))
        mask = b.ge(rows, b.iota(length=4, dtype=DType.I64))
        kept = b.where(mask, x, b.full(shape=(4, 4), value=-1.0, dtype=DType.F32))
        return b.concat(kept, b.broadcast_to(b.constant(weight(4)), shape=(4, 4)), axis=0)

    result = run_checked(ConstantFolding(), build(body, (4, 4)))
    assert count(result) == {"constant": 2, "full": 1, "broadcast_to": 1, "where": 1, "concat": 1}


def test_what_has_no_element_depends_on_nothing() -> None:
    def body(b: Builder, x: Value) -> Any:
        nothing = b.slice(x, starts=(0, 0), stops=(0, 4), steps=(1, 1))
        return b.cumsum(b.add(nothing, 1.0), dim=0), b.sum(nothing, dims=(0,), keepdims=False)

    result = run_checked(ConstantFolding(), build(body, (3, 4)))
    assert count(result) == {"constant": 2}


def test_scalars_become_constants_that_patterns_see() -> None:
    graph = build(lambda b, x: b.add(x, b.full(shape=(), value=0.0, dtype=DType.F32)), (3,))
    assert not run_checked(Canonicalize(), graph).operations


@pytest.mark.parametrize("limit", [0, 4 * KIB, 1 << 20])
def test_the_weights_never_grow_beyond_the_limit(limit: int) -> None:
    def body(b: Builder, x: Value) -> Any:
        small = b.constant(weight(64, 1))
        return b.add(x, b.mul(small, b.constant(weight(1, 64))))  # 512 bytes would become 16 KiB

    graph = build(body, (64, 64))
    result = run_checked(ConstantFolding(limit), graph)
    assert bytes_of(result) <= max(limit, bytes_of(graph))
    assert (count(result)["mul"] == 0) == (limit >= 16 * KIB)


def test_large_weights_may_be_rearranged() -> None:
    graph = build(lambda b, x: b.matmul(x, b.exp(b.constant(weight(600, 600)))), (2, 600))
    result = run_checked(ConstantFolding(max_bytes=0), graph)
    assert count(result) == {"constant": 1, "matmul": 1}


def test_a_weight_that_stays_does_not_pay_for_its_copy() -> None:
    def body(b: Builder, x: Value) -> Any:
        table = b.constant(weight(600, 600))
        return b.matmul(x, b.exp(table)), b.mul(b.sum(x, dims=(0, 1)), table)

    result = run_checked(ConstantFolding(max_bytes=KIB), build(body, (2, 600)))
    assert count(result)["exp"] == 1


def test_compressed_weights_stay_compressed() -> None:
    def body(b: Builder, x: Value) -> Any:
        codes = b.constant(torch.ones(6, 4, dtype=torch.int8))
        return b.linear(x, b.dequantize(codes, b.constant(weight(6).abs()), None, axis=0), None)

    result = run_checked(Canonicalize(), build(body, (3, 4)))
    assert count(result) == {"constant": 2, "dequantize": 1, "linear": 1}


def test_negative_limits_are_refused() -> None:
    with pytest.raises(PassError, match="max_bytes must not be negative, got -1"):
        ConstantFolding(-1)(Graph())


def test_equal_constants_are_tied() -> None:
    def body(b: Builder, x: Value) -> Any:
        first, second = b.constant(weight(4, 4), "a"), b.constant(weight(4, 4).clone(), "b")
        return b.linear(b.linear(x, first, None), second, None)

    graph = build(body, (3, 4))
    result = run_checked(CommonSubexpressionElimination(), graph)
    (kept,) = result.constants
    assert kept.producer is not None and kept.producer.attributes["key"] == "a" and len(kept.uses) == 2
    assert len(run_checked(CommonSubexpressionElimination(constants=False), graph).constants) == 2
    assert len(run_checked(Canonicalize(merge_constants=False), graph).constants) == 2


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (torch.tensor([0.0]), torch.tensor([-0.0])),
        (torch.zeros(2, 3), torch.zeros(3, 2)),
        (torch.zeros(2), torch.zeros(2, dtype=torch.int32)),
        (torch.cat([torch.zeros(100), torch.ones(1)]), torch.zeros(101)),
    ],
)
def test_constants_that_differ_are_not(left: torch.Tensor, right: torch.Tensor) -> None:
    graph = build(lambda b: (b.constant(left), b.constant(right)))
    assert not CommonSubexpressionElimination()(graph).modified


def test_constants_are_compared_by_their_bits() -> None:
    nan = torch.tensor([float("nan"), 1.0])
    strided = torch.stack([nan, nan], dim=1)[:, 0]
    graph = build(lambda b: (b.constant(nan), b.constant(strided), b.constant(torch.empty(0))))
    assert len(CommonSubexpressionElimination()(graph).graph.constants) == 2


def test_attributes_of_other_types_are_other_attributes() -> None:
    def body(b: Builder) -> Any:
        return b.full(shape=(2,), value=1, dtype=DType.F32), b.full(shape=(2,), value=True, dtype=DType.F32)

    assert not CommonSubexpressionElimination()(build(body)).modified


def test_whole_chains_are_merged() -> None:
    def body(b: Builder, x: Value) -> Any:
        return b.sub(b.exp(b.tanh(b.neg(x))), b.exp(b.tanh(b.neg(x))))

    assert count(run_checked(CommonSubexpressionElimination(), build(body, (3,)))) == {
        "neg": 1,
        "tanh": 1,
        "exp": 1,
        "sub": 1,
    }
