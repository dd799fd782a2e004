"""Code for every device of the catalogue runs on that processor, emulated or real; which do not is said by name."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

import whet
from tests.cpp.programs import HASWELL, NEHALEM, Programs, on_core, on_x86, run_bundle
from tests.e2e.arm_models import flat, integer_regions
from tests.e2e.networks import ResidualConvs, relative_error, seeded
from tests.static_programs import build, run, same_bits
from whet.frontend import import_model
from whet.ir import Graph, Interpreter
from whet.ir.target import CATALOGUE, get_target
from whet.passes import Context, PassManager, QuantizeStatic
from whet.runtime.cpu import host_arch, host_features

pytestmark = [pytest.mark.arm, pytest.mark.timeout(600)]


@dataclass(frozen=True)
class Place:
    """Where code is run: an emulator and its -cpu, this machine where it has the features, or (`why`) nowhere."""

    emulator: str = ""
    core: str = ""
    why: str = ""

    @property
    def words(self) -> str:
        """For the name of the test."""
        if self.why:
            return f"not run: {self.why}"
        return f"{self.core.partition(',')[0]}" if self.emulator else "this machine"


def aarch64(core: str) -> Place:
    return Place("qemu-aarch64-static", core)


def x86(core: str) -> Place:
    return Place("qemu-x86_64-static", core)


NATIVE = Place()
# The emulator knows no core with SVE, i8mm, bf16 or named A78AE. Its "max" shows that the numbers are right, not that
# a board runs the code.
NUMBERS_ONLY = aarch64("max")
MACOS = Place(why="macOS links and runs it")
GPU = Place(why="a GPU runs it")
PLACES = {
    "x86-64-v2": x86(NEHALEM),
    "avx2": x86(HASWELL),
    "x86-64-v3": x86(HASWELL),
    "avx512": NATIVE,
    "x86-64-v4": NATIVE,
    "avx512-vnni": NATIVE,
    "zen4": NATIVE,
    "sapphire-rapids": NATIVE,
    "arm": aarch64("cortex-a53"),
    "armv8.2": aarch64("cortex-a76"),
    "armv9": NUMBERS_ONLY,
    "cortex-a72": aarch64("cortex-a72"),
    "cortex-a76": aarch64("cortex-a76"),
    "raspberry-pi-3": aarch64("cortex-a53"),
    "raspberry-pi-4": aarch64("cortex-a72"),
    "raspberry-pi-5": aarch64("cortex-a76"),
    "jetson-orin": NUMBERS_ONLY,
    "jetson-orin-gpu": GPU,
    "neoverse-n1": aarch64("neoverse-n1"),
    "graviton2": aarch64("neoverse-n1"),
    "graviton3": NUMBERS_ONLY,
    "graviton4": NUMBERS_ONLY,
    "apple-m1": MACOS,
    "apple-m2": MACOS,
    # With NEON and VFPv3, no more.
    "armv7": Place("qemu-arm-static", "cortex-a8"),
    "cuda": GPU,
}


def runner(name: str, place: Place, request: pytest.FixtureRequest) -> Programs:
    """The C++ runtime on that processor; skips where there is none."""
    if place.emulator == "qemu-aarch64-static":
        return on_core(request.getfixturevalue("cross"), place.core)
    if host_arch() != "x86_64":
        pytest.skip(f"{name}: this machine is {host_arch()}")
    plain: Programs = request.getfixturevalue("plain")
    if place.emulator:
        return on_x86(plain, place.core)
    missing = sorted(set(get_target(name).features) - host_features())
    if missing:
        pytest.skip(f"{name}: this machine has no {', '.join(missing)}, which the emulator has not either")
    return plain


def outputs(
    name: str, graph: Graph, inputs: tuple[Tensor, ...], folder: Path, request: pytest.FixtureRequest
) -> list[Tensor]:
    """Of the graph compiled for the device, on the processor that its place says."""
    place = PLACES[name]
    compiled = whet.optimize(graph, name)
    if not get_target(name).runtime:
        compiled.export_c(folder)
        program = build(folder, "LDFLAGS=-static")
        return run(program, compiled.manifest, [inputs], (place.emulator, "-cpu", place.core))[0]
    programs = runner(name, place, request)
    folder.mkdir()
    compiled.save(folder / "m.whet")
    return [torch.from_numpy(item) for item in run_bundle(programs, folder / "m.whet", [x.numpy() for x in inputs])]


def test_each_device_has_a_place() -> None:
    assert PLACES.keys() == CATALOGUE.keys()
    for name, place in PLACES.items():
        assert not place.emulator or shutil.which(place.emulator), f"{name}: {place.emulator} is missing"


@pytest.mark.parametrize("name", PLACES, ids=[f"{name} ({place.words})" for name, place in PLACES.items()])
def test_a_small_network(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """In float to 1e-4 of PyTorch, and every region of integers bit for bit the interpreter's."""
    if PLACES[name].why:
        pytest.skip(f"{name}: {PLACES[name].why}")
    model, x = seeded(ResidualConvs()), torch.randn(1, 3, 33, 33)
    graph = import_model(model, (x,))
    (actual,) = outputs(name, graph, (x,), tmp_path / "f32", request)
    assert relative_error(actual, model(x)) < 1e-4
    context = Context(target=get_target(name), calibration=[(x,)])
    regions, integers = integer_regions(PassManager([QuantizeStatic()]).run(graph, context).graph, (x,))
    found = outputs(name, regions, integers, tmp_path / "int8", request)
    expected = flat(Interpreter(regions)(*integers))
    assert all(same_bits(left, right) for left, right in zip(found, expected, strict=True))
