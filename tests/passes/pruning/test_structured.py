"""StructuredPruning: what goes, how much, by which criterion, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import whet
from benchmarks.models.small import ResNetCifar
from tests.passes.equality import build, relative_error, weight
from tests.passes.networks import convolutional_graphs
from tests.passes.pruning.structures import NETWORKS, attention, network
from tests.strategies import example_inputs, random_graphs
from whet.errors import PassError
from whet.frontend import import_model
from whet.ir import Builder, Graph, Interpreter, Value, print_graph, verify
from whet.ir.target import get_target
from whet.passes import Budget, Context, Pass, PassManager, PassResult, StructuredPruning
from whet.passes.pruning.budget import flops, parameters, stored_bytes
from whet.passes.pruning.importance import CRITERIA, Taylor
from whet.passes.pruning.structured import prunable_groups


def two_layers(b: Builder, x: Value) -> Value:
    """16 -> 32 -> 4, with names."""
    b.location = whet.ir.Location("net.first")
    y = b.relu(b.linear(x, b.constant(weight(32, 16), "first.weight"), b.constant(weight(32), "first.bias")))
    b.location = whet.ir.Location("net.second")
    result: Value = b.linear(y, b.constant(weight(4, 32, seed=1), "second.weight"), None)
    return result


def mlp() -> Graph:
    return build(two_layers, (8, 16))


def tensors(graph: Graph) -> dict[str, torch.Tensor]:
    return {value.name: value.constant for value in graph.constants if value.constant is not None}


def kept_rows(graph: Graph, original: Graph) -> list[int]:
    """Which neurons of `mlp` are left."""
    rows, left = tensors(original)["first.weight"], tensors(graph)["first.weight"]
    return [int((rows == row).all(1).nonzero()[0, 0]) for row in left]


def data() -> Context:
    inputs = weight(8, 16, seed=3)
    return Context(train=[(inputs, torch.arange(8) % 4)], calibration=[(inputs,)])


def imported(blocks: int) -> Graph:
    """A ResNet for CIFAR with random statistics and scales."""
    torch.manual_seed(0)
    model = ResNetCifar(blocks).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.7, 1.3)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    graph = import_model(model, (torch.randn(1, 3, 32, 32),))
    graph.input_structure = graph.output_structure = None
    return graph


@pytest.fixture(scope="module")
def resnet() -> Graph:
    return imported(blocks=3)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_group_loses_its_share_and_the_outputs_keep_their_shape(name: str) -> None:
    graph = network(name)
    result = StructuredPruning(ratio=0.5, round_to=1)(graph)
    verify(result.graph)
    assert [value.type for value in result.graph.outputs] == [value.type for value in graph.outputs]
    assert result.changes["group pruned"] == sum(group.size > 1 for group in prunable_groups(graph))
    assert max(flops(result.graph) / flops(graph), parameters(result.graph) / parameters(graph)) < 0.8
    for out in Interpreter(result.graph)(weight(2, 3, 4, 4)):
        assert bool(torch.isfinite(out).all())


@settings(max_examples=40, deadline=None)
@given(graph=st.one_of(random_graphs(), convolutional_graphs()), ratio=st.floats(0.3, 0.9))
def test_what_is_left_of_random_graphs_is_valid(graph: Graph, ratio: float) -> None:
    text = print_graph(graph)
    result = StructuredPruning(ratio=ratio, criterion="random", round_to=1)(graph)
    assert print_graph(graph) == text
    verify(result.graph)
    for before, after in zip(graph.outputs, result.graph.outputs, strict=True):
        assert before.type.same_as(after.type)
    inputs = example_inputs(graph)
    for out, ref in zip(Interpreter(result.graph)(*inputs), Interpreter(graph)(*inputs), strict=True):
        assert out.shape == ref.shape


def test_layers_that_begin_with_the_same_zeros_do_not_depend_on_each_other() -> None:
    graph = network("recurrent")
    text = print_graph(graph)
    assert [group.size for group in prunable_groups(graph)] == [6, 6]
    assert print_graph(graph) == text


def test_resnet_20_at_half_the_channels_is_a_quarter(resnet: Graph) -> None:
    result = StructuredPruning(ratio=0.5, round_to=1)(resnet)
    assert flops(result.graph) / flops(resnet) < 0.28
    assert parameters(result.graph) / parameters(resnet) < 0.28
    # in each of three stages the sum's channels and those within three blocks
    assert result.changes == {"unit removed": 4 * (8 + 16 + 32), "group pruned": 12}


def test_a_pruned_resnet_compiles_and_equals_the_interpreter() -> None:
    graph, prune = imported(blocks=1), StructuredPruning(ratio=0.7, round_to=4)
    compiled = whet.optimize(graph, target="x86", passes=[prune])
    x = weight(1, 3, 32, 32)
    expected = Interpreter(prune(graph).graph)(x)[0]
    assert expected.shape == (1, 10)
    assert relative_error(torch.as_tensor(compiled(x)), expected) < 1e-4


def test_key_heads_go_with_all_query_heads_that_share_them() -> None:
    graph = build(attention(2), (2, 3, 4, 4))
    small = tensors(StructuredPruning(ratio=0.5, round_to=1)(graph).graph)
    assert small["query.weight"].shape == (8, 4)
    assert small["key.weight"].shape == small["value.weight"].shape == (4, 4)
    assert small["out.weight"].shape == (4, 8)
    whole = tensors(graph)
    # two query heads of four rows each, next to each other, and the key head that they share
    embed = [int((whole["embed.weight"] == row).flatten(1).all(1).nonzero()[0, 0]) for row in small["embed.weight"]]
    block = next(
        at for at in (0, 1) if torch.equal(small["key.weight"], whole["key.weight"][4 * at : 4 * at + 4, embed])
    )
    assert torch.equal(small["query.weight"], whole["query.weight"][8 * block : 8 * block + 8, embed])


def test_l1_of_one_layer_is_the_sum_of_its_row() -> None:
    graph = mlp()
    result = StructuredPruning(ratio=0.25, round_to=1, readers=False)(graph)
    sums = tensors(graph)["first.weight"].abs().sum(1)
    assert kept_rows(result.graph, graph) == sorted(sums.argsort()[8:].tolist())
    assert torch.equal(
        tensors(result.graph)["second.weight"], tensors(graph)["second.weight"][:, kept_rows(result.graph, graph)]
    )


def test_taylor_removes_what_changes_the_loss_least() -> None:
    graph, context = mlp(), data()
    silent = tensors(graph)["second.weight"]
    silent[:, [3, 7]] = 0.0  # nobody reads these neurons
    for criterion in ("taylor", "hessian", Taylor(batches=1)):
        result = StructuredPruning(ratio=2 / 32, criterion=criterion, round_to=1)(graph, context)
        assert set(range(32)) - set(kept_rows(result.graph, graph)) == {3, 7}, criterion


def test_activation_removes_neurons_that_never_fire() -> None:
    graph, context = mlp(), data()
    tensors(graph)["first.bias"][[4, 9, 11]] = -100.0
    result = StructuredPruning(ratio=3 / 32, criterion="activation", round_to=1)(graph, context)
    assert set(range(32)) - set(kept_rows(result.graph, graph)) == {4, 9, 11}


def test_fpgm_removes_duplicates() -> None:
    graph = mlp()
    rows = tensors(graph)["first.weight"]
    rows[[5, 6]] = rows.mean(0)  # the median of all
    result = StructuredPruning(ratio=2 / 32, criterion="fpgm", round_to=1, readers=False)(graph)
    assert set(range(32)) - set(kept_rows(result.graph, graph)) == {5, 6}


def test_bn_scale_ranks_by_gamma_and_leaves_what_has_none(resnet: Graph) -> None:
    result = StructuredPruning(ratio=0.5, criterion="bn_scale", round_to=1)(resnet)
    assert result.changes["group pruned"] == 12
    with pytest.raises(PassError, match=r"(?s)could change nothing.*'bn_scale' says nothing of its channels"):
        PassManager([StructuredPruning(criterion="bn_scale")]).run(mlp())


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_prunes_by_half_and_repeats(criterion: str) -> None:
    graph = mlp() if criterion != "bn_scale" else network("residual")
    options = StructuredPruning(criterion=criterion, round_to=1)
    result = options(graph, data())
    assert parameters(result.graph) < 0.6 * parameters(graph)
    assert print_graph(options(graph, data()).graph) == print_graph(result.graph)


def unequal(b: Builder, x: Value) -> Value:
    """Two hidden layers, most neurons of the second are small; the layers around it have one structure."""
    y = b.relu(b.linear(x, b.constant(weight(32, 16)), None))
    scale = torch.where(torch.arange(32) < 24, 1e-3, 1.0).reshape(-1, 1)
    y = b.relu(b.linear(y, b.constant(weight(32, 32) * scale, "small"), None))
    result: Value = b.linear(y, b.constant(weight(4, 32, seed=1), "head"), None)
    return result


def test_global_ranking_takes_where_it_costs_least() -> None:
    graph = build(unequal, (8, 16))
    options = {"ratio": 0.4, "round_to": 1, "readers": False}
    local = tensors(StructuredPruning(**options)(graph).graph)["small"]
    everywhere = tensors(StructuredPruning(scope="global", **options)(graph).graph)["small"]
    assert tuple(local.shape) == (20, 20)
    assert everywhere.shape[0] == 8 and everywhere.shape[1] == 31
    limited = tensors(StructuredPruning(scope="global", limit=0.5, **options)(graph).graph)["small"]
    assert limited.shape[0] == 16


def test_isomorphic_ranking_compares_only_groups_of_one_structure() -> None:
    def body(b: Builder, x: Value) -> tuple[Value, Value]:
        y = b.linear(x, b.constant(1e-3 * weight(16, 16), "plain"), None)
        z = b.linear(b.tanh(x), b.constant(weight(16, 16), "squashed"), None)
        return b.linear(y, b.constant(weight(4, 16)), None), b.linear(b.tanh(z), b.constant(weight(4, 16)), None)

    graph = build(body, (8, 16))

    def left(scope: str) -> list[int]:
        small = tensors(StructuredPruning(scope=scope, round_to=1)(graph).graph)
        return [len(small[name]) for name in ("plain", "squashed")]

    assert left("isomorphic") == [8, 8]
    assert sum(left("global")) == 16


BUDGETS = [
    (Budget("flops", 0.5), "global", flops, 0.5),
    (Budget("parameters", 0.4), "local", parameters, 0.4),
    (Budget("bytes", 0.7), "isomorphic", stored_bytes, 0.7),
    (Budget("parameters", 120_000), "global", parameters, 120_000 / 272_000),
]


@pytest.mark.parametrize("budget, scope, measure, share", BUDGETS)
def test_a_budget_is_kept_and_used(
    resnet: Graph, budget: Budget, scope: str, measure: Callable[[Graph], int], share: float
) -> None:
    result = StructuredPruning(budget=budget, scope=scope, round_to=1)(resnet)
    left = measure(result.graph)
    assert left <= budget.limit(resnet)
    assert left / measure(resnet) > share - 0.05
    assert not any("missed" in change for change in result.changes)


def test_a_budget_that_cannot_be_met_leaves_the_best_graph_and_says_so() -> None:
    graph = mlp()
    result = StructuredPruning(budget=Budget("parameters", 0.01), limit=0.75, round_to=1)(graph)
    assert len(tensors(result.graph)["first.weight"]) == 8
    (missed,) = [change for change in result.changes if "missed" in change]
    assert missed.startswith(f"budget missed: {parameters(result.graph)} parameters are left, 7 were allowed")
    verify(result.graph)


def test_rounding() -> None:
    graph = mlp()

    def left(**options: object) -> int:
        target = options.pop("target", None)
        context = Context(target=None if target is None else get_target(str(target)))
        result = StructuredPruning(**options)(graph, context)  # type: ignore[arg-type]
        return len(tensors(result.graph)["first.weight"])

    assert left(ratio=0.4, round_to=1) == 20
    assert left(ratio=0.4, round_to=8) == 24
    assert left(ratio=0.4, target="avx2") == 20  # eight lanes; 8 of 12 would be too few, so four do
    assert left(ratio=0.5, target="avx512") == 16
    assert left(ratio=0.4) == 20


def test_excluded_layers_keep_their_shapes() -> None:
    graph = network("attention")
    for operation in graph.operations:
        if operation.name == "linear":
            operation.location = whet.ir.Location(f"block.{operation.operand(1).name}")
    small = StructuredPruning(ratio=0.5, exclude=("block.query*",), round_to=1)(graph).graph
    assert tensors(small)["query.weight"].shape == tensors(graph)["query.weight"].shape
    assert tensors(small)["key.weight"].shape == tensors(graph)["key.weight"].shape
    with pytest.raises(PassError, match=r"no layer has a module path like nothing\*"):
        StructuredPruning(exclude=("nothing*",))(graph)


@dataclass(frozen=True)
class Remember(Pass):
    """A recovery that only notes what it was given."""

    seen: list[int] = field(default_factory=list)

    def run(self, graph: Graph, context: Context) -> PassResult:
        self.seen.append(len(tensors(graph)["first.weight"]))
        return PassResult(graph, False)


def test_steps_remove_equally_much_with_recovery_after_each() -> None:
    recovery = Remember()
    StructuredPruning(ratio=0.75, steps=3, recovery=recovery, round_to=1)(mlp())
    assert recovery.seen == [24, 16, 8]
    recovery.seen.clear()
    budget = Budget("parameters", 0.5)
    result = StructuredPruning(budget=budget, steps=2, recovery=recovery, round_to=1)(mlp())
    assert recovery.seen[0] == 24 and parameters(result.graph) <= 0.5 * parameters(mlp())


def test_no_ratio_removes_nothing() -> None:
    graph = network("residual")
    result = StructuredPruning(ratio=0.0)(graph)
    assert not result.modified and result.graph is graph


def wrong() -> Iterator[tuple[dict[str, object], str]]:
    yield {"ratio": 1.0}, r"in \[0, 1\); got 1.0"
    yield {"ratio": -0.1}, r"in \[0, 1\); got -0.1"
    yield {"limit": 1.5}, "limit"
    yield {"ratio": 0.5, "budget": Budget("flops", 0.5)}, "a ratio or a budget, not both"
    yield {"criterion": "l3"}, "criterion is one of .*'taylor'.*; got 'l3'"
    yield {"scope": "wide"}, "scope is one of local, global, isomorphic; got 'wide'"
    yield {"steps": 0}, "steps must be at least 1"
    yield {"round_to": 0}, "round_to must be at least 1"
    yield {"criterion": "taylor"}, "train data"
    yield {"criterion": "activation"}, "calibration data"


@pytest.mark.parametrize("options, message", list(wrong()))
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(PassError, match=message):
        StructuredPruning(**options)(mlp())  # type: ignore[arg-type]


@pytest.mark.parametrize("kind, amount", [("watts", 0.5), ("flops", 0.0), ("flops", 1.5), ("bytes", 0), ("bytes", -4)])
def test_bad_budgets_are_refused(kind: str, amount: float) -> None:
    with pytest.raises(PassError, match=r"Budget's (kind is one of|amount is)"):
        Budget(kind, amount)
