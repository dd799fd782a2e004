"""Of a fat bundle C++ takes the variant that Python takes."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import whet
from tests.cpp.fat_mutations import fat, variant
from tests.cpp.mutations import zipped
from tests.cpp.programs import HASWELL, NEHALEM, Programs, on_x86, run_bundle
from whet.runtime import cpu, load, read_manifest

pytestmark = pytest.mark.timeout(1200)

_FOREIGN = {"x86_64": "aarch64", "aarch64": "x86_64"}


def test_the_choice_is_pythons(affine_bundle: Path, plain: Programs, tmp_path: Path) -> None:
    """Over random sets of features, ties among them: the most features that are all here, of two as good the first."""
    generator = random.Random(0)
    here = sorted(cpu.host_features())
    bundle = affine_bundle.read_bytes()
    paths = []
    for number in range(30):
        names = [f"t{index}" for index in range(generator.randint(2, 6))]
        made = [variant(bundle, "plain", features=[])]
        for name in names:
            features = generator.sample(here, generator.randint(0, min(4, len(here))))
            features += ["amx-quantum"] if generator.random() < 0.3 else []
            arch = _FOREIGN[cpu.host_arch()] if generator.random() < 0.2 else cpu.host_arch()
            made.append(variant(bundle, name, features=features, arch=arch))
        generator.shuffle(made)
        paths.append(tmp_path / f"{number}.whet")
        paths[-1].write_bytes(zipped(fat(made)))
    expected = [("ok", read_manifest(path).target.name) for path in paths]
    assert len(set(expected)) > 3
    assert plain.verdicts("target", paths) == expected


def test_no_byte_of_the_others_is_read(affine_bundle: Path, plain: Programs, tmp_path: Path) -> None:
    bundle = affine_bundle.read_bytes()
    broken = {**fat([variant(bundle, "later", features=["amx-quantum"]), bundle]), "0.whet": b"broken"}
    (tmp_path / "fat.whet").write_bytes(zipped(broken))
    assert plain.verdicts("target", [tmp_path / "fat.whet"]) == [("ok", "x86")]
    assert load(tmp_path / "fat.whet").manifest.target.name == "x86"


def test_a_model_for_four_processors(plain: Programs, tmp_path: Path) -> None:
    """The numbers of the bundle for the best target alone, in Python and in C++."""
    model, x = torch.nn.Linear(32, 16).eval(), torch.randn(3, 32)
    names = ("avx2", "avx512", "arm", "cortex-a76")
    modules = {name: whet.optimize(model, name, example_inputs=(x,)) for name in names}
    whet.save_fat(tmp_path / "fat.whet", list(modules.values()))
    chosen = read_manifest(tmp_path / "fat.whet").target.name
    assert plain.verdicts("target", [tmp_path / "fat.whet"]) == [("ok", chosen)]
    modules[chosen].save(tmp_path / "alone.whet")
    (actual,) = run_bundle(plain, tmp_path / "fat.whet", [x.numpy()])
    np.testing.assert_array_equal(actual, load(tmp_path / "alone.whet")(x.numpy()))
    np.testing.assert_array_equal(actual, load(tmp_path / "fat.whet")(x.numpy()))


@pytest.mark.skipif(
    shutil.which("qemu-x86_64-static") is None or cpu.host_arch() != "x86_64",
    reason="qemu-x86_64-static emulates other processors of this architecture: Debian's qemu-user-static has it",
)
@pytest.mark.parametrize(("core", "target"), [(HASWELL, "avx2"), (NEHALEM, "x86-64-v2")], ids=["Haswell", "Nehalem"])
def test_a_plainer_processor(core: str, target: str, plain: Programs, tmp_path: Path) -> None:
    """What CPUID says counts, not what the operating system says of the machine around it."""
    model, x = torch.nn.Linear(32, 16).eval(), torch.randn(3, 32)
    modules = [whet.optimize(model, name, example_inputs=(x,)) for name in ("x86-64-v2", "avx2", "avx512", "arm")]
    whet.save_fat(tmp_path / "fat.whet", modules)
    emulated = on_x86(plain, core)
    assert emulated.verdicts("target", [tmp_path / "fat.whet"]) == [("ok", target)]
    (actual,) = run_bundle(emulated, tmp_path / "fat.whet", [x.numpy()])
    np.testing.assert_allclose(actual, model(x).detach().numpy(), rtol=1e-4, atol=1e-5)
    whet.save_fat(tmp_path / "large.whet", modules[2:])
    ((status, message),) = emulated.verdicts("target", [tmp_path / "large.whet"])
    assert status == "other device" and "nothing that runs on this device" in message
