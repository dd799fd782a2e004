"""UnstructuredPruning: how much goes, what goes, and that it stays gone."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import whet
from tests.passes.equality import assert_same_results, build, count, relative_error
from tests.passes.pruning.models import batches, everything, mlp, mlp_graph, named, weights_of, zeros
from whet.errors import PassError
from whet.frontend import import_model
from whet.ir import Builder, Graph, Interpreter, Value, parse_graph, print_graph, verify
from whet.ir.printer import graph_tensors
from whet.passes import Context, FoldBatchNorm, PassManager, PassResult, UnstructuredPruning
from whet.passes.base import Pass
from whet.passes.pruning.criteria import Movement
from whet.passes.pruning.criterion import Criterion
from whet.passes.pruning.hard_concrete import HardConcrete
from whet.passes.pruning.ranking import smallest
from whet.passes.pruning.unstructured import cubic

QUICK = settings(max_examples=30, deadline=None)


def pruned(graph: Graph, context: Context | None = None, **options: Any) -> Graph:
    result = PassManager([UnstructuredPruning(**options)]).run(graph, context)
    text = print_graph(result.graph)
    assert print_graph(parse_graph(text, graph_tensors(result.graph))) == text
    return result.graph


@QUICK
@given(scores=st.lists(st.integers(-3, 3), min_size=1, max_size=40).map(torch.tensor), share=st.floats(0, 1, width=32))
def test_as_many_go_as_were_asked_for_and_none_that_is_worth_more(scores: torch.Tensor, share: float) -> None:
    number = round(share * len(scores))
    chosen = smallest(scores.float(), number)
    assert int(chosen.sum()) == number
    if 0 < number < len(scores):
        assert scores[chosen].max() <= scores[~chosen].min()


@QUICK
@given(ratio=st.floats(0, 0.99), scope=st.sampled_from(("local", "global")))
def test_ratios_are_exact(ratio: float, scope: str) -> None:
    tensors = list(weights_of(pruned(mlp_graph(), ratio=ratio, scope=scope)).values())
    groups = [tensors] if scope == "global" else [[tensor] for tensor in tensors]
    for group in groups:
        assert zeros(group) == round(ratio * sum(tensor.numel() for tensor in group))


def test_masks_that_keep_everything_are_the_identity() -> None:
    graph = mlp_graph()
    result = pruned(graph, ratio=0.0)
    assert count(result)["masked"] == 2
    assert_same_results(graph, result, tolerance=0.0)


def test_half_goes_without_options() -> None:
    assert [zeros([tensor]) for tensor in weights_of(pruned(mlp_graph())).values()] == [128, 48]


def test_small_weights_go_by_threshold() -> None:
    graph = mlp_graph()
    before, after = weights_of(graph), weights_of(pruned(graph, threshold=0.1))
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor.masked_fill(tensor.abs() < 0.1, 0))


def test_sigma_is_relative_to_each_layers_deviation() -> None:
    graph = mlp_graph()
    before, after = weights_of(graph), weights_of(pruned(graph, sigma=0.7))
    for name, tensor in before.items():
        limit = 0.7 * tensor.double().std(correction=0)
        assert torch.equal(after[name], tensor.masked_fill(tensor.abs() < limit, 0))


def test_every_kind_of_weight_is_masked_tied_ones_once() -> None:
    graph, tokens = everything()
    result = pruned(graph, ratio=0.4)
    verify(result)
    masked = named(result, "masked")
    names = sorted({user.name for operation in masked for user in operation.result.users})
    assert names == ["conv", "conv_transpose", "linear", "lstm", "take"]
    assert len(masked) == 9
    (tied,) = [operation for operation in masked if any(user.name == "take" for user in operation.result.users)]
    assert {user.name for user in tied.result.users} == {"take", "linear"}
    keys = {operation.operand(1).producer.attributes["key"] for operation in masked}  # type: ignore[union-attr]
    assert {"embedding.weight.mask", "lstm.weight_ih_l0.mask", "encoder.self_attn.in_proj_weight.mask"} <= keys
    Interpreter(result)(tokens)


def test_patterns_choose_the_ratio_of_a_layer() -> None:
    tensors = weights_of(pruned(mlp_graph(), ratios={"2": 0.75, "*": 0.25}))
    assert [zeros([tensor]) for tensor in tensors.values()] == [64, 72]
    tensors = weights_of(pruned(mlp_graph(), ratios={"2": 0.75}))
    assert [zeros([tensor]) for tensor in tensors.values()] == [0, 72]
    tensors = weights_of(pruned(mlp_graph(), ratios={"2": 0.75}, ratio=0.5))
    assert [zeros([tensor]) for tensor in tensors.values()] == [128, 72]


def test_excluded_layers_stay() -> None:
    result = pruned(mlp_graph(), exclude=("0",))
    assert [zeros([tensor]) for tensor in weights_of(result).values()] == [0, 48]
    assert count(result)["masked"] == 1


def test_what_is_tied_to_an_excluded_layer_stays_and_the_reason_is_told() -> None:
    graph, _ = everything()
    tracer = whet.passes.Tracer()
    result = UnstructuredPruning(exclude=("head",)).run(graph, Context(tracer=tracer)).graph
    assert not any(user.name == "take" for item in named(result, "masked") for user in item.result.users)


def test_pruning_again_keeps_what_was_pruned() -> None:
    first = pruned(mlp_graph(), ratio=0.3, criterion="random")
    second = pruned(first, ratio=0.6)
    assert count(second)["masked"] == 2, "masks do not pile up"
    for before, after in zip(weights_of(first).values(), weights_of(second).values(), strict=True):
        assert zeros([after]) == round(0.6 * after.numel())
        assert bool((after[before == 0] == 0).all())
    again = UnstructuredPruning(ratio=0.5)(second)
    assert not again.modified and again.graph is second


def test_asking_for_what_is_done_already_is_an_error() -> None:
    with pytest.raises(PassError, match="could change nothing"):
        pruned(pruned(mlp_graph(), ratio=0.6), ratio=0.5)


@pytest.mark.parametrize(
    "criterion", ["gradient", "taylor", Movement(iterations=5), HardConcrete(iterations=5), "lamp", "random"], ids=repr
)
def test_every_criterion_prunes_as_much_as_asked_and_repeats(criterion: str | Criterion) -> None:
    context = Context(train=batches(), seed=3)
    first = pruned(mlp_graph(), context, criterion=criterion, ratio=0.5, scope="global")
    tensors = list(weights_of(first).values())
    assert zeros(tensors) == round(0.5 * sum(tensor.numel() for tensor in tensors))
    second = pruned(mlp_graph(), context, criterion=criterion, ratio=0.5, scope="global")
    assert print_graph(first) == print_graph(second)


def test_the_passed_tensors_are_never_written() -> None:
    graph = mlp_graph()
    text = print_graph(graph)
    for criterion in (Movement(iterations=5), HardConcrete(iterations=5)):
        pruned(graph, Context(train=batches()), criterion=criterion)
    assert print_graph(graph) == text


def test_gradual_pruning_follows_the_cubic_schedule_with_recovery_between() -> None:
    seen: list[int] = []

    class Watch(Pass):
        def run(self, graph: Graph, context: Context) -> PassResult:
            seen.append(zeros(list(weights_of(graph).values())[:1]))
            return PassResult(graph, False)

    result = pruned(mlp_graph(), ratio=0.8, steps=3, recovery=Watch())
    assert seen == [round(0.8 * cubic(step, 3) * 256) for step in (1, 2)]
    assert zeros(list(weights_of(result).values())[:1]) == round(0.8 * 256)
    assert cubic(3, 3) == 1.0 and cubic(1, 2) == 0.875


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.0}, "ratio is the share of elements to prune, in [0, 1); got 1.0"),
        ({"ratio": -0.1}, "got -0.1"),
        ({"ratio": float("nan")}, "got nan"),
        ({"ratios": {"0": 1.5}}, "0 is the share of elements to prune"),
        ({"ratio": 0.5, "threshold": 0.1}, "takes one of ratio (and ratios), threshold and sigma"),
        ({"threshold": 0.1, "ratios": {"0": 0.5}}, "takes one of"),
        ({"threshold": 0.0}, "threshold must be positive"),
        ({"sigma": -1.0}, "sigma must be positive"),
        ({"sigma": 1.0, "criterion": "random"}, "sigma measures magnitudes"),
        ({"criterion": "best"}, "known are gradient, l0, lamp, magnitude, movement, random, taylor"),
        ({"scope": "both"}, "scope is one of local, global, got 'both'"),
        ({"scope": "global", "ratios": {"0": 0.5}}, "ratios are per layer"),
        ({"exclude": ("classifier",)}, "exclude: no layer has a module path like classifier; the paths are 0, 2"),
        ({"ratios": {"fc*": 0.5}}, "ratios: no layer has a module path like fc*; the paths are 0, 2"),
        ({"steps": 0}, "steps must be positive"),
        ({"steps": 2, "threshold": 0.1}, "steps lead to a ratio"),
        ({"recovery": FoldBatchNorm()}, "recovery runs between steps"),
        ({"criterion": "gradient"}, "this needs train data"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PassError, match=re.escape(message)):
        UnstructuredPruning(**options)(mlp_graph())


def test_a_graph_without_weights_is_refused_with_the_reason() -> None:
    graph = import_model(torch.nn.Sequential(torch.nn.ReLU()).eval(), (torch.randn(2, 3),))
    with pytest.raises(PassError, match="could change nothing"):
        pruned(graph)


def test_the_compiled_module_equals_the_interpreter() -> None:
    x = torch.randn(4, 8)
    item = UnstructuredPruning(ratio=0.7)
    compiled = whet.optimize(mlp(), "x86", example_inputs=(x,), passes=[item])
    (ref,) = Interpreter(item(mlp_graph()).graph)(x)
    assert relative_error(torch.as_tensor(compiled(x)), ref) < 1e-4


def test_quantized_weights_are_left_with_the_reason() -> None:
    def body(b: Builder, x: Value) -> Any:
        codes = b.constant(torch.arange(-6, 6, dtype=torch.int8).reshape(3, 4))
        return b.linear(x, b.dequantize(codes, b.constant(torch.tensor(0.5)), b.constant(torch.tensor(0).int())), None)

    with pytest.raises(PassError, match="its weight is quantized: prune first, then quantize"):
        pruned(build(body, (2, 4)))
