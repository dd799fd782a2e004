"""What holds for every operation, over the table of samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from sympy import Expr
from torch import Tensor

from tests.ir.samples import BATCH, LENGTH, SAMPLES, Sample
from whet.ir import Builder, DType, Graph, Interpreter, TensorType, parse_graph, print_graph, verify
from whet.ir.definition import Axis, Tie
from whet.ir.dimensions import substitute, symbol
from whet.ir.graph import Operation, Value
from whet.ir.ops import (
    CATALOGUE,
    attention,
    contraction,
    elementwise,
    fake_quantize,
    normalization,
    pooling,
    quantized,
    recurrent,
    recurrent_integer,
    reduction,
    resize,
    shape,
    source,
    weights,
)
from whet.ir.printer import graph_tensors

FAMILIES = (
    attention,
    contraction,
    elementwise,
    fake_quantize,
    normalization,
    pooling,
    quantized,
    recurrent,
    recurrent_integer,
    reduction,
    resize,
    shape,
    source,
    weights,
)
_F32_ONLY = frozenset(
    {"quantize", "dequantize", "requantize", "lstm_integer", "gru_integer", "dequantize_blocks", "fake_quantize"}
)
every_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.id)


def evaluate(sample: Sample) -> tuple[Tensor, ...]:
    definition = CATALOGUE[sample.op]
    attributes = definition.signature.with_defaults(sample.attributes)
    result = definition.evaluate(*sample.operands, **attributes)
    return result if isinstance(result, tuple) else (result,)


def infer(sample: Sample, types: list[TensorType | None] | None = None, **changes: Any) -> tuple[TensorType, ...]:
    definition = CATALOGUE[sample.op]
    attributes = definition.signature.with_defaults(sample.attributes | changes)
    return definition.result_types(sample.types() if types is None else types, attributes)


def build(sample: Sample) -> tuple[Graph, Operation]:
    """A graph of one operation, its operands as inputs."""
    graph = Graph()
    builder = Builder(graph)
    values: list[Value | None] = [
        None if type is None else builder.input(f"x{slot}", type) for slot, type in enumerate(sample.types())
    ]
    operation = builder.emit(sample.op, values, sample.attributes)
    graph.outputs = list(operation.results)
    return graph, operation


def test_every_operation_of_these_families_has_a_sample() -> None:
    named = {sample.op for sample in SAMPLES}
    assert {op.name for family in FAMILIES for op in family.DEFINITIONS} <= named


@every_sample
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_evaluate_gives_the_types_that_infer_says(sample: Sample, dtype: torch.dtype) -> None:
    if sample.op in _F32_ONLY:
        dtype = torch.float32  # scales are
    cast = sample.cast(dtype)
    results = evaluate(cast)
    assert [TensorType(tuple(item.shape), DType.of(item.dtype)) for item in results] == [
        TensorType(type.shape, DType.of(type.dtype.torch)) for type in infer(cast)
    ]


def symbolic(value: Any) -> Any:
    """The batch and length as symbols, in shapes and attributes."""
    symbols = {BATCH: symbol("s0"), LENGTH: symbol("s1")}
    if isinstance(value, tuple):
        return tuple(symbolic(item) for item in value)
    return symbols.get(value, value) if type(value) is int else value


@every_sample
def test_symbolic_types_agree_with_static_ones(sample: Sample) -> None:
    types = [None if type is None else TensorType(symbolic(type.shape), type.dtype) for type in sample.types()]
    changes = {
        key: symbolic(sample.attributes[key]) for key in ("shape", "stops", "length") if key in sample.attributes
    }
    bindings = {"s0": BATCH, "s1": LENGTH}
    found = infer(sample, types, **changes)
    assert [TensorType(substitute(type.shape, bindings), type.dtype) for type in found] == list(infer(sample))
    for type in found:
        assert all(isinstance(dim, int | Expr) and not getattr(dim, "is_Integer", False) for dim in type.shape)


@every_sample
def test_one_operation_verifies_prints_parses_and_runs(sample: Sample) -> None:
    graph, _ = build(sample)
    verify(graph)
    text = print_graph(graph)
    twin = parse_graph(text, graph_tensors(graph))
    verify(twin)
    assert print_graph(twin) == text
    inputs = [item for item in sample.operands if item is not None]
    for left, right in zip(Interpreter(graph)(*inputs), Interpreter(twin)(*inputs), strict=True):
        assert torch.equal(left, right)


@every_sample
def test_cost_is_not_negative_and_counts_every_byte_at_most_once(sample: Sample) -> None:
    _, operation = build(sample)
    cost = operation.definition.cost(operation)
    tensors = [item for item in sample.operands if item is not None]
    most = sum(item.numel() * item.element_size() for item in [*tensors, *evaluate(sample)])
    assert isinstance(cost.flops, int) and isinstance(cost.bytes, int)
    assert cost.flops >= 0
    assert 0 <= cost.bytes <= most


@every_sample
def test_ties_name_dimensions_that_exist(sample: Sample) -> None:
    _, operation = build(sample)
    for tie in operation.definition.axes(operation):
        for axis in (tie.left, tie.right):
            value = operation.operand(axis.slot) if axis.slot >= 0 else operation.results[-1 - axis.slot]
            assert 0 <= axis.dim < value.type.rank


# Along these dimensions every element depends on others, though they prune one by one.
MIXING = {
    "softmax": {1}, "log_softmax": {1}, "layer_norm": {1, 2}, "rms_norm": {2}, "group_norm": {1, 2, 3},
    "lstm": {0, 1, 2}, "gru": {0, 1, 2}, "rnn": {0, 1, 2}, "lstm_integer": {0, 1, 2}, "gru_integer": {0, 1, 2},
    "cumsum": {1}, "cumprod": {1}, "cummax": {1}, "cummin": {1}, "logcumsumexp": {1},
}  # fmt: skip


@every_sample
def test_an_element_reaches_only_what_it_is_tied_to(sample: Sample) -> None:
    """Change one index of an operand: along a tied result dimension, only its own class may change."""
    _, operation = build(sample)
    before = evaluate(sample)
    for tie in operation.definition.axes(operation):
        for left, right, left_map, right_map in _towards_results(tie):
            if right.dim in MIXING.get(sample.op, ()):
                continue
            for index in range(sample.operands[left.slot].shape[left.dim]):  # type: ignore[union-attr]
                after = evaluate(_changed(sample, left, index))
                changed = _changed_indices(before[-1 - right.slot], after[-1 - right.slot], right.dim)
                assert {right_map(item) for item in changed} <= {left_map(index)}, (tie, index, changed)


def _towards_results(tie: Tie) -> list[tuple[Axis, Axis, Any, Any]]:
    ends = (
        (tie.left, tie.right, tie.left_map, tie.right_map),
        (tie.right, tie.left, tie.right_map, tie.left_map),
    )
    return [end for end in ends if end[0].slot >= 0 > end[1].slot]


def _changed(sample: Sample, axis: Axis, index: int) -> Sample:
    operands = list(sample.operands)
    operand = operands[axis.slot]
    assert operand is not None
    operand = operand.clone()
    part = operand.select(axis.dim, index)
    if operand.dtype is torch.bool:
        part.logical_not_()
    elif operand.is_floating_point():
        part.copy_(part * 0.5 + 0.1)
    else:
        part.bitwise_xor_(8)  # no divisor becomes zero
    operands[axis.slot] = operand
    return Sample(sample.op, tuple(operands), sample.attributes, sample.i4)


def _changed_indices(before: Tensor, after: Tensor, dim: int) -> list[int]:
    if before.is_floating_point():
        differs = ~torch.isclose(before, after, rtol=1e-9, atol=1e-12, equal_nan=True)
    else:
        differs = before != after
    rows = differs.movedim(dim, 0).reshape(differs.shape[dim], -1)
    return rows.any(dim=1).nonzero().flatten().tolist()


BILINEAR = {
    "linear",
    "matmul",
    "conv",
    "conv_transpose",
    "einsum",
    "linear_integer",
    "conv_integer",
    "matmul_integer",
}


@every_sample
def test_only_tied_operand_indices_are_multiplied(sample: Sample) -> None:
    """f(x+dx, w+dw) - f(x+dx, w) - f(x, w+dw) + f(x, w) is what dx and dw do together: 0 unless they are
    tied.
    """
    _, operation = build(sample)
    if sample.op not in BILINEAR:
        return
    pairs: dict[tuple[Axis, Axis], list[Tie]] = {}
    for tie in operation.definition.axes(operation):
        if tie.left.slot >= 0 and tie.right.slot >= 0:
            pairs.setdefault((tie.left, tie.right), []).append(tie)
    for (left, right), ties in pairs.items():
        if left.slot == right.slot:
            continue
        met = False
        for i in range(sample.operands[left.slot].shape[left.dim]):  # type: ignore[union-attr]
            for j in range(sample.operands[right.slot].shape[right.dim]):  # type: ignore[union-attr]
                tied = all(tie.left_map(i) == tie.right_map(j) for tie in ties)
                joint = _joint_effect(sample, left, i, right, j)
                met |= tied and joint > 0.01
                assert tied or joint < 1e-9, (ties, i, j)
        assert met, f"{left} and {right} never meet"


def _joint_effect(sample: Sample, left: Axis, i: int, right: Axis, j: int) -> float:
    x = _changed(sample, left, i)
    y, both = _changed(sample, right, j), _changed(x, right, j)
    values = [evaluate(item)[0].double() for item in (both, x, y, sample)]
    return float((values[0] - values[1] - values[2] + values[3]).abs().max())
