"""Factorize: what layers become, which rank they get, and what stays whole and why."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import whet
from tests.e2e.networks import Encoder
from tests.passes.equality import assert_same_results, build, count, relative_error, weight
from whet.errors import PassError
from whet.frontend import import_model
from whet.ir import Builder, DType, Graph, Interpreter, Value, parse_graph, print_graph
from whet.ir.printer import graph_tensors
from whet.passes import AssignLayout, Context, Factorize, PassManager, Tracer, UnstructuredPruning
from whet.passes.factorization.low_rank import Unit
from whet.passes.factorization.matrices import MatrixSvd
from whet.passes.factorization.whitening import input_rows

QUICK = settings(max_examples=25, deadline=None)


def factored(graph: Graph, context: Context | None = None, **options: Any) -> Graph:
    result = PassManager([Factorize(**options)]).run(graph, context).graph
    text = print_graph(result)
    assert print_graph(parse_graph(text, graph_tensors(result))) == text
    return result


def low_rank(outputs: int, inputs: int, rank: int, seed: int = 0) -> torch.Tensor:
    return weight(outputs, rank, seed=seed) @ weight(rank, inputs, seed=seed + 1)


def linear_graph(matrix: torch.Tensor, bias: bool = True) -> Graph:
    def body(b: Builder, x: Value) -> Any:
        return b.linear(
            x, b.constant(matrix, "fc.weight"), b.constant(weight(len(matrix)), "fc.bias") if bias else None
        )

    return build(body, (3, matrix.shape[1]))


def conv_graph(kernel: torch.Tensor, groups: int = 1, stride: int = 1, dilation: int = 1) -> Graph:
    spatial = kernel.dim() - 2

    def body(b: Builder, x: Value) -> Any:
        attributes = {
            "stride": tuple(range(stride, stride + spatial)),
            "padding": tuple((dim, dim + 1) for dim in range(spatial)),
            "dilation": (dilation,) * spatial,
            "groups": groups,
        }
        return b.conv(x, b.constant(kernel, "conv.weight"), b.constant(weight(len(kernel))), **attributes)

    return build(body, (2, kernel.shape[1] * groups, *(9, 8, 7)[:spatial]))


def constants(graph: Graph) -> dict[str, tuple[int, ...]]:
    return {value.producer.attributes["key"]: value.type.static_shape for value in graph.constants if value.producer}


def tensor_of(graph: Graph, name: str) -> torch.Tensor:
    (tensor,) = [value.constant for value in graph.constants if value.name == name]
    assert tensor is not None
    return tensor


def reasons(graph: Graph, context: Context | None = None, **options: Any) -> list[str]:
    context = context or Context()
    context.tracer = Tracer()
    assert not Factorize(**options).run(graph, context).modified
    return [item.reason for item in context.tracer.declined]


@QUICK
@given(sizes=st.tuples(st.integers(1, 9), st.integers(1, 9)), bias=st.booleans(), seed=st.integers(0, 99))
def test_linear_layers_are_exact_at_full_rank(sizes: tuple[int, int], bias: bool, seed: int) -> None:
    graph = linear_graph(weight(*sizes, seed=seed), bias)
    assert_same_results(graph, factored(graph, rank=min(sizes), allow_larger=True))


@QUICK
@given(
    method=st.sampled_from(("channel", "tucker", "auto", "spatial", "svd")),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.sampled_from(((3, 2), (2, 2))),
    attributes=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)),
    seed=st.integers(0, 99),
)
def test_convolutions_are_exact_at_full_rank(
    method: str, sizes: tuple[int, int], kernel: tuple[int, int], attributes: tuple[int, int, int], seed: int
) -> None:
    stride, dilation, groups = attributes
    groups = groups if method in ("channel", "auto", "svd") else 1
    graph = conv_graph(weight(sizes[0] * groups, sizes[1], *kernel, seed=seed), groups, stride, dilation)
    result = factored(graph, rank=100, method=method, allow_larger=True)
    assert count(result)["conv"] >= 2
    assert_same_results(graph, result)


@pytest.mark.parametrize("kernel", [(3,), (2, 3, 2), (1, 1)])
def test_other_numbers_of_kernel_dimensions(kernel: tuple[int, ...]) -> None:
    graph = conv_graph(weight(4, 6, *kernel))
    for method in ("channel", "tucker"):
        assert_same_results(graph, factored(graph, rank=100, method=method, allow_larger=True))


@pytest.mark.parametrize("kernel", [(3,), (3, 2), (2, 3, 2)])
def test_cp_of_a_tensor_of_that_rank_is_exact(kernel: tuple[int, ...]) -> None:
    shape = (8, 6, *kernel)
    letters = "oiabc"[: len(shape)]
    parts = [weight(size, 2, seed=index) for index, size in enumerate(shape)]
    tensor = torch.einsum(",".join(f"{letter}r" for letter in letters) + "->" + letters, *parts)
    graph = conv_graph(tensor)
    result = factored(graph, rank=2, method="cp", allow_larger=True)
    assert [operation.attributes["groups"] for operation in result.operations if operation.name == "conv"] == [
        1,
        *[2] * len(kernel),
        1,
    ]
    assert_same_results(graph, result, tolerance=1e-4)


def test_channels_last_convolutions() -> None:
    graph = AssignLayout()(
        import_model(nn.Sequential(nn.Conv2d(6, 8, 3), nn.ReLU()).eval(), (torch.randn(1, 6, 7, 7),))
    )
    for method in ("channel", "tucker", "spatial"):
        result = factored(graph.graph, rank=100, method=method, allow_larger=True)
        assert_same_results(graph.graph, result)


def test_names_bias_and_location() -> None:
    graph = linear_graph(low_rank(12, 10, 2))
    result = factored(graph, rank=2)
    assert constants(result) == {"fc.bias": (12,), "fc.weight.v": (2, 10), "fc.weight.u": (12, 2)}
    first, second = [operation for operation in result.operations if operation.name == "linear"]
    assert first.operands[2:] == [None] and second.operand(2).name == "fc.bias"
    assert_same_results(graph, result)


def test_both_factors_have_components_of_equal_norm() -> None:
    result = factored(linear_graph(weight(20, 16)), rank=4)
    u, v = tensor_of(result, "fc.weight.u"), tensor_of(result, "fc.weight.v")
    assert torch.allclose(u.norm(dim=0), v.norm(dim=1), rtol=1e-5)


def test_ratios_and_energies_choose_the_rank() -> None:
    graph = linear_graph(weight(20, 30))
    # 20 · 30 · 0.5 = 300 = 6 · (20 + 30)
    assert constants(factored(graph, ratio=0.5))["fc.weight.u"] == (20, 6)
    values = torch.linalg.svdvals(weight(20, 30).double()).square()
    wanted = int((values.cumsum(0) / values.sum() < 0.5).sum()) + 1
    assert constants(factored(graph, energy=0.5))["fc.weight.u"] == (20, wanted)
    assert constants(factored(linear_graph(low_rank(20, 30, 3)), energy=1 - 1e-9))["fc.weight.u"] == (20, 3)


def two_layers() -> Graph:
    """One weight of low rank and a little noise, and one of full rank, of 24 · 32 elements each."""

    def body(b: Builder, x: Value) -> Any:
        y = b.linear(x, b.constant(low_rank(24, 32, 2) + 0.01 * weight(24, 32, seed=5), "low.weight"), None)
        return b.linear(y, b.constant(weight(32, 24), "full.weight"), None)

    return build(body, (4, 32))


def parameters(graph: Graph) -> int:
    return sum(value.type.numel for value in graph.constants)


@pytest.mark.parametrize("options", [{"budget": 1000}, {"ratio": 1000 / 1536, "scope": "global"}])
def test_budgets_go_where_the_energy_is(options: dict[str, Any]) -> None:
    graph = two_layers()
    result = factored(graph, **options)
    # the full one stays whole, 768; 232 are left for 4 · (24 + 32) of the other
    assert set(constants(result).items()) == {
        ("full.weight", (32, 24)),
        ("low.weight.u", (24, 4)),
        ("low.weight.v", (4, 32)),
    }


def test_small_budgets_lower_every_rank() -> None:
    result = factored(two_layers(), budget=400)
    assert 300 < parameters(result) <= 400
    assert constants(result)["full.weight.u"][1] > constants(result)["low.weight.u"][1]


def test_a_budget_that_cannot_be_met_keeps_the_smallest_ranks_and_says_so() -> None:
    result = Factorize(budget=100)(two_layers())
    assert result.changes["budget missed: 112 parameters are left, 100 were allowed"] == 1
    assert parameters(result.graph) == 112


def test_embeddings() -> None:
    table = low_rank(40, 12, 3)

    def body(b: Builder, x: Value) -> Any:
        return b.take(b.constant(table, "embedding.weight"), x, axis=0)

    graph = build(body, (2, 5), dtype=DType.I64)
    result = factored(graph, energy=1 - 1e-9)
    assert count(result) == {"constant": 2, "take": 1, "linear": 1}
    assert constants(result) == {"embedding.weight.u": (40, 3), "embedding.weight.vt": (12, 3)}
    assert_same_results(graph, result, [torch.randint(0, 40, (2, 5))])


def test_tied_weights_stay_tied() -> None:
    table = low_rank(40, 12, 3)

    def body(b: Builder, x: Value) -> Any:
        shared = b.constant(table, "embedding.weight")
        return b.linear(b.relu(b.take(shared, x, axis=0)), shared, None)

    graph = build(body, (2, 5), dtype=DType.I64)
    result = factored(graph, energy=1 - 1e-9)
    assert count(result) == {"constant": 3, "take": 1, "linear": 3, "relu": 1}
    (u,) = [value for value in result.constants if value.name == "embedding.weight.u"]
    assert {user.name for user in u.users} == {"take", "linear"}
    assert_same_results(graph, result, [torch.randint(0, 40, (2, 5))])


def test_what_is_tied_to_a_layer_that_stays_is_left() -> None:
    def body(b: Builder, x: Value) -> Any:
        shared = b.constant(low_rank(8, 8, 1))
        return b.matmul(b.linear(x, shared, None), shared)

    (reason,) = reasons(build(body, (2, 8)), rank=1)
    assert reason.startswith("its weight is used elsewhere too: %matmul")


def projections(b: Builder, x: Value) -> Any:
    """Query, key and value as three layers that span six dimensions together."""
    common = weight(6, 16)
    parts = [
        b.linear(x, b.constant(weight(16, 6, seed=seed) @ common, f"{name}.weight"), None)
        for seed, name in enumerate(("query", "key", "value"))
    ]
    return b.attention(*parts, None)


def test_projections_may_share_a_factor() -> None:
    graph = build(projections, (1, 5, 16))
    result = factored(graph, energy=1 - 1e-9, joint=True)
    shapes = constants(result)
    assert shapes == {"query.weight.v": (6, 16), **{f"{name}.weight.u": (16, 6) for name in ("query", "key", "value")}}
    assert count(result)["linear"] == 4
    assert_same_results(graph, result)
    apart = factored(graph, energy=1 - 1e-9)
    assert count(apart)["linear"] == 6 and parameters(apart) > parameters(result)


def test_a_transformer_with_fused_projections() -> None:
    model = Encoder(32).eval()
    graph = import_model(model, (torch.zeros(1, 6, dtype=torch.int64), torch.ones(1, 6, dtype=torch.bool)))
    result = factored(graph, rank=4)
    inputs = [torch.arange(6).reshape(1, 6), torch.ones(1, 6, dtype=torch.bool)]
    assert constants(result)["projections.weight.u"] == (96, 4)
    assert all(bool(torch.isfinite(out).all()) for out in Interpreter(result)(*inputs))
    assert_same_results(graph, factored(graph, rank=100, allow_larger=True), inputs)


def anisotropic(count: int = 3) -> list[tuple[torch.Tensor]]:
    """Inputs that lie mostly in few directions."""
    scale = torch.logspace(0, -3, 30)
    return [(weight(64, 30, seed=seed) * scale,) for seed in range(10, 10 + count)]


def test_whitening_is_best_for_the_outputs() -> None:
    matrix = weight(20, 30)

    def body(b: Builder, x: Value) -> Any:
        return b.linear(x, b.constant(matrix, "fc.weight"), None)

    graph = build(body, (64, 30))
    context = Context(calibration=anisotropic())
    plain, whitened = factored(graph, rank=5), factored(graph, context, rank=5, method="whitened")
    (x,) = anisotropic(1)[0]
    ref = x @ matrix.T
    errors = [relative_error(Interpreter(item)(x)[0], ref) for item in (plain, whitened)]
    assert errors[1] < 0.5 * errors[0]
    # no matrix of that rank does better on what was seen
    seen = torch.cat([batch[0] for batch in anisotropic()]).double()
    best = torch.linalg.svdvals(seen @ matrix.double().T)[5:].norm()
    u, v = tensor_of(whitened, "fc.weight.u"), tensor_of(whitened, "fc.weight.v")
    assert float((seen @ (matrix - u @ v).double().T).norm()) <= 1.01 * float(best)


@QUICK
@given(
    kernel=st.sampled_from(((3,), (2, 3), (1, 1))),
    attributes=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 2)),
)
def test_the_rows_of_a_convolution_are_what_its_weight_is_multiplied_with(
    kernel: tuple[int, ...], attributes: tuple[int, int, int]
) -> None:
    stride, dilation, groups = attributes
    tensor = weight(4 * groups, 3, *kernel)
    graph = conv_graph(tensor, groups, stride, dilation)
    (layer,) = [operation for operation in graph.operations if operation.name == "conv"]
    x = weight(*graph.inputs[0].type.static_shape, seed=3)
    rows = input_rows(layer, x)
    products = torch.einsum("grn,gmn->grm", rows, tensor.reshape(groups, 4, -1))
    (y,) = Interpreter(graph)(x)
    bias = layer.operand(2).constant
    assert bias is not None
    y = y - bias.reshape(-1, *[1] * len(kernel))
    wanted = y.reshape(2, groups, 4, -1).permute(1, 0, 3, 2).reshape(groups, -1, 4)
    assert torch.allclose(products, wanted, atol=1e-4)


def test_whitened_convolutions_are_exact_at_full_rank() -> None:
    graph = conv_graph(weight(4, 3, 3, 3))
    data = [(weight(2, 3, 9, 8, seed=seed),) for seed in range(2)]
    result = factored(graph, Context(calibration=data), rank=100, method="whitened", allow_larger=True)
    assert_same_results(graph, result)


def test_pruned_weights_are_factored_as_they_count() -> None:
    graph = UnstructuredPruning(ratio=0.5)(linear_graph(weight(12, 10))).graph
    result = factored(graph, rank=10, allow_larger=True)
    assert count(result)["masked"] == 0
    assert_same_results(graph, result)


def test_layers_stay_whole_where_two_factors_hold_more() -> None:
    graph = linear_graph(weight(8, 8))
    assert reasons(graph, rank=4) == ["factors of rank (4,) hold 64 parameters, the weight 64"]
    with pytest.raises(PassError, match=r"could change nothing:(.|\n)*hold 64 parameters, the weight 64"):
        factored(graph, rank=4)
    assert reasons(graph, ratio=0.1) == ["the smallest factors hold 16 parameters, 6 are 0.1 of the weight's"]


@pytest.mark.parametrize(
    ("method", "groups", "kernel", "reason"),
    [
        ("tucker", 2, (3, 3), "tucker: the convolution has 2 groups"),
        ("cp", 2, (3, 3), "cp: the convolution has 2 groups"),
        ("cp", 1, (1, 1), "cp: a 1x1 kernel has nothing to take apart; channel factors it"),
        ("spatial", 1, (3,), "spatial: the kernel has not two dimensions of more than 1"),
        ("spatial", 1, (1, 3), "spatial: the kernel has not two dimensions of more than 1"),
    ],
)
def test_layers_that_a_method_does_not_fit_stay_whole(
    method: str, groups: int, kernel: tuple[int, ...], reason: str
) -> None:
    assert reasons(conv_graph(weight(4, 2, *kernel), groups), rank=1, method=method) == [reason]


def test_depthwise_convolutions_have_nothing_to_gain() -> None:
    (reason,) = reasons(conv_graph(weight(4, 1, 3, 3), groups=4), rank=1)
    assert reason == "factors of rank (1,) hold 40 parameters, the weight 36"
    assert reasons(linear_graph(weight(9, 9)), rank=1, method="tucker") == ["tucker is no method for linear"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 0.5, "energy": 0.5}, "takes one of ratio, energy, rank and budget"),
        ({"rank": 2, "budget": 5}, "takes one of ratio, energy, rank and budget"),
        ({"ratio": 1.0}, "in (0, 1); got 1.0"),
        ({"ratio": 0.0}, "in (0, 1); got 0.0"),
        ({"energy": 1.1}, "in (0, 1]; got 1.1"),
        ({"energy": 0.0}, "in (0, 1]; got 0.0"),
        ({"energy": float("nan")}, "in (0, 1]; got nan"),
        ({"rank": 0}, "rank must be positive"),
        ({"budget": -1}, "budget must be positive"),
        ({"method": "qr"}, "known are auto, svd, whitened, channel, spatial, tucker, cp"),
        ({"method": "cp"}, "CP has no singular values"),
        ({"method": "cp", "energy": 0.5}, "CP has no singular values"),
        ({"method": "cp", "ratio": 0.5, "scope": "global"}, "CP has no singular values"),
        ({"rank": 2, "scope": "global"}, "scope='global' is for ratio="),
        ({"rank": 2, "scope": "everywhere"}, "scope is one of local, global"),
        ({"rank": 2, "exclude": ("head*",)}, "exclude: no layer has a module path like head*"),
        ({"rank": 2, "method": "whitened"}, "this needs calibration data"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(PassError, match=re.escape(message)):
        Factorize(**options)(linear_graph(weight(20, 20)))


def test_excluded_layers_stay() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)).eval()
    result = factored(import_model(model, (torch.randn(2, 16),)), rank=2, exclude=("0",))
    assert set(constants(result)) == {"0.weight", "0.bias", "1.weight.v", "1.weight.u", "1.bias"}


def test_ranks_of_a_tied_unit_count_the_transposed_factor() -> None:
    unit = Unit((), (), (weight(4, 6),))
    assert MatrixSvd(unit).parameters((2,)) == 20


class Small(nn.Module):
    """A convolution, a pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(6, 12, 3, 2, 1), nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.fc(self.conv(x).relu().mean((2, 3)))
        return y


def test_the_compiled_module_equals_the_interpreter() -> None:
    model, x, item = Small().eval(), torch.randn(1, 6, 9, 9), Factorize(rank=4)
    compiled = whet.optimize(model, "x86", example_inputs=(x,), passes=[item])
    result = item(import_model(model, (x,))).graph
    assert count(result)["conv"] == 3 and count(result)["linear"] == 2
    (ref,) = Interpreter(result)(x)
    assert relative_error(torch.as_tensor(compiled(x)), ref) < 1e-4
