"""Static quantization: parameters, what the pass writes, and what it refuses."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import whet
from tests.e2e.networks import ResidualConvs, relative_error, seeded
from tests.passes.equality import build, count, weight
from whet.errors import PassError
from whet.frontend import import_model
from whet.ir import Builder, DType, Graph, Interpreter, Value, print_graph, verify
from whet.ir.target import get_target
from whet.passes import Context, PassManager, QuantizeStatic, Tracer
from whet.passes.quantization.parameters import asymmetric, quantize_weight, symmetric_per_channel

BATCHES = [(torch.randn(1, 3, 33, 33, generator=torch.Generator().manual_seed(seed)),) for seed in range(3)]


def quantized(model: torch.nn.Module, **options: object) -> Graph:
    """The graph of a model after the pass, for u8 activations."""
    context = Context(target=get_target("avx512-vnni"), calibration=BATCHES)
    return PassManager([QuantizeStatic(**options)]).run(import_model(model, BATCHES[0]), context).graph  # type: ignore[arg-type]


@given(
    st.floats(-1e6, 1e6, allow_nan=False), st.floats(-1e6, 1e6, allow_nan=False), st.sampled_from([DType.U8, DType.I8])
)
def test_zero_is_exact_and_the_range_is_covered(first: float, second: float, dtype: DType) -> None:
    low, high = min(first, second), max(first, second)
    affine = asymmetric(low, high, dtype)
    bottom, top = dtype.integer_range
    scale, zero_point = affine.scale.item(), int(affine.zero_point)
    assert bottom <= zero_point <= top and scale > 0
    # one step of slack at each end: the zero point is rounded
    assert (bottom - zero_point - 1) * scale <= min(low, 0.0) * (1 - 1e-6)
    assert (top - zero_point + 1) * scale >= max(high, 0.0) * (1 - 1e-6)


def test_weights_use_the_symmetric_range_and_err_by_half_a_step() -> None:
    weight = torch.randn(7, 5, 3, 3)
    weight[2] = 0
    affine = symmetric_per_channel(weight)
    integers = quantize_weight(weight, affine)
    assert integers.dtype is torch.int8 and integers.min() >= -127
    restored = integers.double() * affine.scale.double().reshape(-1, 1, 1, 1)
    assert bool(((restored - weight).abs() <= affine.scale.reshape(-1, 1, 1, 1) * 0.5 * (1 + 1e-5)).all())


def test_every_layer_becomes_integer_and_the_answer_stays_near() -> None:
    model = seeded(ResidualConvs())
    graph = quantized(model)
    verify(graph)
    names = [operation.name for operation in graph.operations]
    assert names.count("conv_integer") == 4 and names.count("linear_integer") == 1
    assert names.count("sum_integer") == 1
    assert not {"conv", "linear", "batch_norm"} & set(names)
    for (x,) in BATCHES:
        assert relative_error(Interpreter(graph)(x)[0], model(x)) < 0.1


def test_the_text(golden: Callable[[str, str], None]) -> None:
    """A golden file of structure alone: weights and scales depend on torch's random numbers."""
    text = print_graph(quantized(seeded(ResidualConvs())), locations=False)
    lines = [line for line in text.splitlines() if " = constant " not in line and "_structure" not in line]
    golden("passes_quantize_static.txt", re.sub(r"zero_point = \d+", "zero_point = _", "\n".join(lines)))


def test_the_targets_instructions_choose_the_activations() -> None:
    graph = import_model(seeded(ResidualConvs()), BATCHES[0])
    for target, dtype in (("avx512-vnni", DType.U8), ("cortex-a76", DType.I8)):
        context = Context(target=get_target(target), calibration=BATCHES)
        result = QuantizeStatic().run(graph, context).graph
        assert {op.result.type.dtype for op in result.operations if op.name == "quantize"} == {dtype}


def test_excluded_layers_stay_real() -> None:
    graph = quantized(seeded(ResidualConvs()), exclude=("stem", "class*"))
    names = [operation.name for operation in graph.operations]
    assert names.count("conv") == 1 and names.count("linear") == 1 and names.count("conv_integer") == 3


def test_a_pattern_that_fits_nothing_is_an_error() -> None:
    with pytest.raises(PassError, match=r"no layer has a module path like missing\.\*"):
        quantized(seeded(ResidualConvs()), exclude=("missing.*",))


@pytest.mark.parametrize(
    ("calibration", "said"),
    [
        (None, "calibration="),
        ([], "empty"),
        ((batch for batch in BATCHES), "read only once"),
        ([(torch.full((1, 3, 33, 33), math.nan),)], "batch 0 has NaN"),
    ],
)
def test_useless_calibration_data(calibration: object, said: str) -> None:
    context = Context(target=get_target("avx2"), calibration=calibration)  # type: ignore[arg-type]
    with pytest.raises(PassError, match=said):
        QuantizeStatic().run(import_model(seeded(ResidualConvs()), BATCHES[0]), context)


def test_a_factory_of_batches_will_do() -> None:
    context = Context(target=get_target("avx2"), calibration=lambda: iter(BATCHES))
    assert QuantizeStatic().run(import_model(seeded(ResidualConvs()), BATCHES[0]), context).modified


def test_the_given_graph_is_left_alone() -> None:
    graph = import_model(seeded(ResidualConvs()), BATCHES[0])
    before = print_graph(graph)
    QuantizeStatic().run(graph, Context(target=get_target("avx2"), calibration=BATCHES))
    assert print_graph(graph) == before


class Branches(torch.nn.Module):
    """What is added, concatenated and pooled: convolutions' results, straight and through activations."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.third = (torch.nn.Conv2d(3, 8, 3, padding=1) for _ in range(3))
        self.inner, self.outer = torch.nn.Conv2d(8, 8, 1), torch.nn.Conv2d(24, 16, 3)
        self.classifier = torch.nn.Linear(16 * 9, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.relu(torch.relu(self.left(x)) + self.right(x))
        joined = torch.cat([total, self.inner(total), torch.nn.functional.hardtanh(self.third(x), -0.5, 0.5)], 1)
        pooled = torch.nn.functional.avg_pool2d(torch.nn.functional.max_pool2d(joined, 2), 2, 1)
        last = torch.nn.functional.adaptive_avg_pool2d(torch.nn.functional.relu6(self.outer(pooled)), 3)
        return self.classifier(last.flatten(1))


def test_additions_concats_and_pools_read_codes() -> None:
    """One operand of an addition of two convolutions stays in the kernel that makes it; all else is 8-bit."""
    torch.manual_seed(0)
    model, batches = Branches().eval(), [(torch.randn(2, 3, 18, 18),) for _ in range(2)]
    context = Context(target=get_target("x86"), calibration=batches)
    graph = PassManager([QuantizeStatic()]).run(import_model(model, batches[0]), context).graph
    found = count(graph)
    assert found["conv_integer"] == 5 and found["linear_integer"] == 1 and found["sum_pool_integer"] == 2
    for name in ("concat", "max_pool", "reshape"):
        assert {op.result.type.dtype for op in graph.operations if op.name == name} == {DType.U8}
    (add,) = (op for op in graph.operations if op.name == "add")
    assert sorted(str(value.producer.name) for value in add.operands if value and value.producer) == [
        "dequantize",
        "relu",
    ]
    compiled = whet.optimize(graph, "x86")
    for (x,) in batches:
        assert torch.equal(compiled(x), Interpreter(graph)(x)[0])
        assert relative_error(compiled(x), model(x)) < 0.05


def test_without_folding_the_graph_is_a_real_one() -> None:
    model = seeded(ResidualConvs())
    graph, folded = quantized(model, fold=False), quantized(model)
    found = count(graph)
    assert found["conv"] == 4 and found["linear"] == 1 and found["conv_integer"] == 0
    assert found["dequantize"] == found["quantize"] + 5
    for (x,) in BATCHES:
        assert relative_error(Interpreter(graph)(x)[0], Interpreter(folded)(x)[0]) < 0.02


def test_tokens_keep_a_real_residual_stream() -> None:
    def body(b: Builder, x: Value) -> Value:
        norm = b.layer_norm(x, b.constant(weight(16)), b.constant(weight(16, seed=1)), rank=1, epsilon=1e-5)
        return b.add(norm, b.linear(b.gelu(b.linear(norm, b.constant(weight(32, 16)))), b.constant(weight(16, 32))))

    graph = build(body, (2, 5, 16))
    context = Context(calibration=[(weight(2, 5, 16, seed=4),)])
    result = PassManager([QuantizeStatic()]).run(graph, context).graph
    (add,) = (op for op in result.operations if op.name == "add")
    assert "layer_norm" in [value.producer.name for value in add.operands if value and value.producer]
    assert count(result)["linear_integer"] == 2


def test_a_bias_beside_weights_of_zero_survives() -> None:
    """A pruned channel is its bias; a scale of nothing would take it away."""

    def body(b: Builder, x: Value) -> Value:
        rows = weight(4, 16)
        rows[1] = 0
        return b.linear(x, b.constant(rows), b.constant(torch.tensor([0.5, 3.0, -1.0, 0.0])))

    graph = build(body, (2, 16))
    x = weight(2, 16, seed=1)
    result = PassManager([QuantizeStatic()]).run(graph, Context(calibration=[(x,)])).graph
    assert count(result)["add"] == 0
    assert Interpreter(result)(x)[0][:, 1].tolist() == [pytest.approx(3.0, rel=1e-5)] * 2


@pytest.mark.parametrize("options", [{"bits": 5}, {"weight_bits": 3}, {"symmetric": True}, {"per_channel": False}])
@pytest.mark.parametrize("dtype", [DType.U8, DType.I8])
def test_other_formats(options: dict[str, object], dtype: DType) -> None:
    model = seeded(ResidualConvs())
    graph = quantized(model, activation_dtype=dtype, **options)
    (x,) = BATCHES[0]
    assert relative_error(Interpreter(graph)(x)[0], model(x)) < 0.5
    if options.get("bits") == 5:
        low, high = (0, 31) if dtype is DType.U8 else (-16, 15)
        graph.outputs = [op.operand(0) for op in graph.operations if op.name == "conv_integer"]
        graph.output_structure = None
        for codes in Interpreter(graph)(x):
            assert low <= codes.min() and codes.max() <= high


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"observer": "best"}, "no observer 'best'"),
        ({"operations": ("softmax",)}, "cannot quantize softmax"),
        ({"bits": 1}, "from 2 to 8"),
        ({"weight_observer": "kl"}, "minmax, mse"),
    ],
)
def test_options_that_cannot_be(options: dict[str, object], said: str) -> None:
    with pytest.raises(PassError, match=said):
        quantized(seeded(ResidualConvs()), **options)


def test_what_calibration_does_not_reach() -> None:
    graph = build(lambda b, x: b.linear(x, b.constant(weight(3, 8))), (0, 8))
    with pytest.raises(PassError, match=r"never reached %x0: f32\[0, 8\]"):
        QuantizeStatic().run(graph, Context(calibration=[(torch.zeros(0, 8),)]))


def test_values_that_are_not_finite() -> None:
    graph = build(lambda b, x: b.linear(b.log(x), b.constant(weight(3, 8))), (2, 8))
    with pytest.raises(PassError, match=r"%log.* of log at .* is not finite"):
        QuantizeStatic().run(graph, Context(calibration=[(torch.full((2, 8), -1.0),)]))


def test_a_sum_too_long_stays_real_and_is_told() -> None:  # numerics: Q6
    def body(b: Builder, x: Value) -> Value:
        return b.linear(x, b.constant(torch.ones(1, 66312)))

    tracer, graph = Tracer(), build(body, (1, 66312))
    context = Context(calibration=[(torch.ones(1, 66312),)], tracer=tracer)
    assert not QuantizeStatic().run(graph, context).modified
    assert "sums 66312 products, of which 32 bits hold 66311" in tracer.report()
