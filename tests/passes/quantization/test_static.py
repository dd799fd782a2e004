"""Static quantization: parameters, what the pass writes, and what it refuses."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.e2e.networks import ResidualConvs, relative_error, seeded
from whet.errors import PassError
from whet.frontend import import_model
from whet.ir import DType, Graph, Interpreter, print_graph, verify
from whet.ir.target import get_target
from whet.passes import Context, PassManager, QuantizeStatic
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
