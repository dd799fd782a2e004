"""Trained models saved here run on emulated cores: by Python, C++ and static C alike, with this machine's numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import whet
from benchmarks import datasets
from tests.cpp.programs import on_core, run_bundle
from tests.e2e.arm_models import MODELS, flat, graph_for, integer_regions
from tests.e2e.networks import relative_error
from tests.e2e.test_arm import run_on
from tests.e2e.test_arm_static import run_static
from tests.static_programs import same_bits
from whet.ir import Interpreter

pytestmark = [pytest.mark.arm, pytest.mark.timeout(1800)]

CORES = ("cortex-a72", "cortex-a76")
CASES = (
    ("mobilenet", "int8"),
    ("minilm", "int8"),
    ("mobilenet", "f32"),
    ("minilm", "f32"),
    ("voice_encoder", "f32"),
    ("lenet5", "f32"),
    ("lenet5", "int8"),
)


def cosine(left: Tensor, right: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(left.double().flatten(), right.double().flatten(), dim=0))


@pytest.mark.parametrize(("name", "precision"), CASES)
def test_every_way_to_run_it(name: str, precision: str, cross: Path, arm_device: Path, tmp_path: Path) -> None:
    """Python, C++ and static C: the same bits on one core, and this machine's outputs.

    On one graph, so that the integers are the same on every processor: the outputs of integer models bit for bit, of
    float ones to 1e-4. Between the integers of MiniLM softmax and norms are floats, of which a rounded one may differ.
    """
    model = MODELS[name]
    graph, inputs = graph_for(name, "cortex-a72", precision)
    here = flat(whet.optimize(graph, "x86")(*inputs[0]))
    agrees_with_the_model(name, precision, inputs[0], here)
    for core in CORES:
        bundle = tmp_path / f"{core}.whet"
        compiled = whet.optimize(graph, core)
        compiled.save(bundle)
        python, printed = run_on(core, arm_device, bundle, inputs[0])
        assert f"target: {core}" in printed and "modules: []" in printed
        arrays = run_bundle(on_core(cross, core), bundle, [item.numpy() for item in inputs[0]])
        others = [[torch.from_numpy(item) for item in arrays]]
        if model.static:
            others += run_static(compiled, tmp_path / core, [inputs[0]])
        for other in others:
            assert all(same_bits(left, right) for left, right in zip(other, python, strict=True)), core
        for actual, expected in zip(python, here, strict=True):
            if precision == "f32":
                assert relative_error(actual, expected) < 1e-4
            elif model.integer_end:
                assert same_bits(actual, expected)
            else:
                assert cosine(actual, expected) >= 0.999


def agrees_with_the_model(name: str, precision: str, inputs: tuple[Tensor, ...], actual: list[Tensor]) -> None:
    """Of several outputs the first counts."""
    with torch.no_grad():
        result = MODELS[name].load()(*inputs)
    expected: Tensor = result if isinstance(result, Tensor) else result[0]
    assert relative_error(actual[0], expected) < (1e-4 if precision == "f32" else MODELS[name].int8_error)
    if name == "mobilenet":
        assert datasets.cat_or_dog(actual[0][0].numpy()) == datasets.cat_or_dog(expected[0].numpy())


# numerics: Q1, Q5
@pytest.mark.parametrize("name", ["mobilenet", "minilm", "lenet5"])
def test_every_integer_region_bit_for_bit(name: str, arm_device: Path, tmp_path: Path) -> None:
    graph, inputs = graph_for(name, "cortex-a72", "int8")
    regions, integers = integer_regions(graph, inputs[0])
    assert {item.name for item in regions.operations} & {"conv_integer", "linear_integer"}
    expected = flat(Interpreter(regions)(*integers))
    for core in CORES:
        whet.optimize(regions, core).save(tmp_path / "m.whet")
        actual, _ = run_on(core, arm_device, tmp_path / "m.whet", integers)
        wrong = [
            v for v, left, right in zip(regions.outputs, actual, expected, strict=True) if not same_bits(left, right)
        ]
        assert not wrong, core
