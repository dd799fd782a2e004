"""Static programs on emulated ARM cores: the bundle's numbers bit for bit, and near this machine's."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import whet
from benchmarks import datasets, splits
from benchmarks.baselines import load_baseline
from benchmarks.models.trained import load_mobilenet
from tests.e2e.networks import Counter, relative_error
from tests.e2e.test_arm import run_on
from tests.static_programs import build, run, same_bits
from whet.backends.base import CompiledModule
from whet.frontend import import_model
from whet.ir import Graph
from whet.ir.target import get_target
from whet.passes import Context, PassManager, QuantizeStatic

pytestmark = [pytest.mark.arm, pytest.mark.timeout(1800)]

EMULATORS = {
    "cortex-a72": ("qemu-aarch64-static", "-cpu", "cortex-a72"),
    "cortex-a76": ("qemu-aarch64-static", "-cpu", "cortex-a76"),
    "armv7": ("qemu-arm-static", "-cpu", "cortex-a7"),
}


def digits() -> list[Tensor]:
    images = splits.mnist().test.images
    return [images[index : index + 1] for index in range(8)]


def pictures() -> list[Tensor]:
    return [torch.from_numpy(datasets.preprocess_imagenet(item.image)) for item in datasets.cats_and_dogs()[::40]]


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[Tensor]]]] = {
    "lenet5": (functools.partial(load_baseline, "lenet5"), digits),
    "mobilenet": (load_mobilenet, pictures),
}


def graph_for(name: str, target: str, precision: str) -> tuple[Graph, list[Tensor]]:
    """The model as `target` wants it, and inputs; the same graph can be compiled for other targets."""
    load, load_inputs = MODELS[name]
    inputs = load_inputs()
    graph = import_model(load(), (inputs[0],))
    if precision == "f32":
        return graph, inputs
    context = Context(target=get_target(target), calibration=[(x,) for x in inputs])
    return PassManager([QuantizeStatic()]).run(graph, context).graph, inputs


def run_static(compiled: CompiledModule, folder: Path, calls: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    """Outputs of the exported program on the emulated core, without any library there."""
    target = compiled.target.name
    program = compiled.export_c(folder)
    print(program)
    assert program.arena_bytes < 1.5 * program.live_bytes
    return run(build(folder, "LDFLAGS=-static"), compiled.manifest, calls, EMULATORS[target])


@pytest.mark.parametrize("target", ["cortex-a72", "cortex-a76"])
@pytest.mark.parametrize("precision", ["f32", "int8"])
@pytest.mark.parametrize("name", MODELS)
def test_the_bundles_numbers_bit_for_bit(
    name: str, precision: str, target: str, arm_device: Path, tmp_path: Path
) -> None:
    graph, inputs = graph_for(name, target, precision)
    compiled = whet.optimize(graph, target)
    ((actual,),) = run_static(compiled, tmp_path / "program", [inputs[:1]])
    compiled.save(tmp_path / "m.whet")
    (expected,), _ = run_on(target, arm_device, tmp_path / "m.whet", inputs[:1])
    assert same_bits(actual, expected)
    agrees_with_this_machine(graph, precision, inputs[0], actual)


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_lenet_on_32_bit_arm(precision: str, tmp_path: Path) -> None:
    graph, inputs = graph_for("lenet5", "armv7", precision)
    outputs = run_static(whet.optimize(graph, "armv7"), tmp_path, [[x] for x in inputs[:2]])
    for x, (actual,) in zip(inputs, outputs, strict=False):
        agrees_with_this_machine(graph, precision, x, actual)


def agrees_with_this_machine(graph: Graph, precision: str, x: Tensor, actual: Tensor) -> None:
    here = whet.optimize(graph, "x86")(x)
    if precision == "int8":
        assert same_bits(actual, here)
    assert relative_error(actual, here) < 1e-4
    assert actual.argmax() == here.argmax()


def test_state_on_32_bit_arm(tmp_path: Path) -> None:
    calls = [[torch.full((4,), float(number))] for number in range(3)]
    compiled = whet.optimize(Counter().eval(), "armv7", example_inputs=(calls[0][0],))
    outputs = run_static(compiled, tmp_path, calls)
    assert [(mean.tolist(), int(count)) for mean, count in outputs] == [
        ([0.0] * 4, 1),
        ([0.5] * 4, 2),
        ([1.0] * 4, 3),
    ]


@pytest.mark.skipif(find_spec("ziglang") is None, reason="zig is not installed: pip install 'whet[cross]'")
def test_zig_builds_it(tmp_path: Path) -> None:
    graph, inputs = graph_for("lenet5", "armv7", "int8")
    compiled = whet.optimize(graph, "armv7")
    compiled.export_c(tmp_path)
    program = build(tmp_path, "LDFLAGS=-static", f"CC={sys.executable} -m ziglang cc -target arm-linux-musleabihf")
    ((actual,),) = run(program, compiled.manifest, [inputs[:1]], EMULATORS["armv7"])
    agrees_with_this_machine(graph, "int8", inputs[0], actual)
