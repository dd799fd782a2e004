"""The C++ runtime cross-compiled, on emulated cores: the numbers of the Python runtime there, and who is refused."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import whet
from benchmarks.models.small import LeNet5, LeNet300
from tests.cpp.forgeries import Keys
from tests.cpp.programs import Programs, on_core
from tests.e2e.test_arm import run_on
from whet.frontend import import_model
from whet.ir.target import get_target
from whet.passes import Context, PassManager, QuantizeStatic
from whet.runtime import join_bundles, read_bundle, read_manifest, write_bundle

pytestmark = [pytest.mark.arm, pytest.mark.timeout(2400)]


@pytest.fixture(scope="session")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A bundle of LeNet-300-100 (f32) and one of LeNet-5 (int8), for each core."""
    folder = tmp_path_factory.mktemp("bundles")
    digits = torch.rand(2, 1, 28, 28)
    np.save(folder / "x.npy", digits.numpy())
    found = {"x": folder / "x.npy"}
    for target in ("cortex-a72", "cortex-a76"):
        for name, network, passes in (("f32", LeNet300, ()), ("int8", LeNet5, (QuantizeStatic(),))):
            torch.manual_seed(0)
            compiled = whet.optimize(
                network().eval(), target, example_inputs=(digits,), passes=passes, calibration=[(digits,)]
            )
            found[f"{target} {name}"] = folder / f"{target}-{name}.whet"
            compiled.save(found[f"{target} {name}"])
    return found


@pytest.fixture(scope="session")
def fat(bundles: dict[str, Path]) -> Path:
    """LeNet-5 with the same integers for four processors; the bundle for TARGET alone lies beside it."""
    digits = torch.from_numpy(np.load(bundles["x"]))
    torch.manual_seed(0)
    context = Context(target=get_target("arm"), calibration=[(digits,)])
    graph = PassManager([QuantizeStatic()]).run(import_model(LeNet5().eval(), (digits,)), context).graph
    folder = bundles["x"].parent / "fat"
    folder.mkdir()
    paths = [folder / f"{target}.whet" for target in ("avx2", "avx512", "arm", "cortex-a76")]
    for path in paths:
        whet.optimize(graph, path.stem).save(path)
    join_bundles(folder / "fat.whet", paths)
    return folder / "fat.whet"


@pytest.mark.parametrize("core", ["cortex-a72", "cortex-a76"])
@pytest.mark.parametrize("kind", ["f32", "int8"])
def test_the_numbers_of_python_on_the_same_core(
    core: str, kind: str, bundles: dict[str, Path], cross: Path, arm_device: Path, tmp_path: Path
) -> None:
    bundle = bundles[f"{core} {kind}"]
    programs = on_core(cross, core)
    programs.output("run_bundle", bundle, bundles["x"], "--output", tmp_path / "out", "--threads", "1")
    digits = torch.from_numpy(np.load(bundles["x"]))
    (expected,), _ = run_on(core, arm_device, bundle, [digits])
    np.testing.assert_array_equal(np.load(tmp_path / "out.0.npy"), expected.numpy())


def test_signed_and_encrypted(cross: Path, bundles: dict[str, Path], tmp_path: Path) -> None:
    """On a core without instructions for AES; who changes the bundle is found out there too."""
    programs = on_core(cross, "cortex-a72")
    assert programs.output("drive", "crypto") == "1\n"
    keys = Keys.make(tmp_path)
    public, plain, sealed = tmp_path / "ours.pub", bundles["cortex-a72 int8"], tmp_path / "sealed.whet"
    found = read_bundle(plain, for_this_host=False)
    (tmp_path / "lib.so").write_bytes(found.library)
    lock = {"sign": keys.ours, "encrypt": keys.secret}
    write_bundle(sealed, found.manifest, tmp_path / "lib.so", found.weights, **lock)
    programs.output("run_bundle", plain, bundles["x"], "--output", tmp_path / "plain", "--threads", "1")
    options = ("--trust", public, "--key", keys.secret, "--output", tmp_path / "out", "--threads", "1")
    programs.output("run_bundle", sealed, bundles["x"], *options)
    assert (tmp_path / "out.0.npy").read_bytes() == (tmp_path / "plain.0.npy").read_bytes()
    line = f"{sealed}\t{tmp_path / 'theirs.pub'}\t{keys.secret}"
    assert programs.run("drive", "secured", "open", lines=[line]).stdout.startswith("not trusted\t")


@pytest.mark.parametrize(("core", "chosen"), [("cortex-a72", "arm"), ("cortex-a76", "cortex-a76")])
def test_one_bundle_for_four_processors(
    core: str,
    chosen: str,
    fat: Path,
    bundles: dict[str, Path],
    cross: Path,
    plain: Programs,
    arm_device: Path,
    tmp_path: Path,
) -> None:
    """Python and C++ take the variant for the core that they run on, and its numbers are those of its own bundle."""
    assert on_core(cross, core).verdicts("target", [fat]) == [("ok", chosen)]
    on_core(cross, core).output("run_bundle", fat, bundles["x"], "--output", tmp_path / "out", "--threads", "1")
    digits = torch.from_numpy(np.load(bundles["x"]))
    actual = np.load(tmp_path / "out.0.npy")
    for path in (fat, fat.with_name(f"{chosen}.whet")):
        (expected,), printed = run_on(core, arm_device, path, [digits])
        assert f"target: {chosen}" in printed
        np.testing.assert_array_equal(actual, expected.numpy())
    # On this machine the same file gives the same integers.
    ((status, target),) = plain.verdicts("target", [fat])
    assert (status, target) == ("ok", read_manifest(fat).target.name)
    np.testing.assert_array_equal(actual, whet.load(fat)(digits.numpy()))


def test_no_variant_for_the_core(fat: Path, cross: Path, arm_device: Path, tmp_path: Path) -> None:
    join_bundles(tmp_path / "fat.whet", [fat.with_name(f"{name}.whet") for name in ("avx2", "cortex-a76")])
    words = ("nothing that runs on this device", "avx2", "dotprod")
    ((status, message),) = on_core(cross, "cortex-a72").verdicts("open", [tmp_path / "fat.whet"])
    assert status == "other device" and all(word in message for word in words)
    with pytest.raises(RuntimeError) as refused:
        run_on("cortex-a72", arm_device, tmp_path / "fat.whet", [torch.zeros(2, 1, 28, 28)])
    assert all(word in str(refused.value) for word in words)


def test_a_bundle_for_a_larger_core(bundles: dict[str, Path], cross: Path, arm_device: Path, plain: Programs) -> None:
    """cortex-a76 on cortex-a72 would stop with an illegal instruction; on x86 it is not even the architecture."""
    path = bundles["cortex-a76 int8"]
    ((status, message),) = on_core(cross, "cortex-a72").verdicts("open", [path])
    assert status == "other device" and "processor with" in message and "dotprod" in message
    ((status, message),) = plain.verdicts("open", [path])
    assert status == "other device" and "compiled for aarch64 linux" in message
    refused = subprocess.run(
        [arm_device / "py64", "-c", f"import whet; whet.load({str(path)!r})"],
        env={**os.environ, "QCPU": "cortex-a72", "PYTHONPATH": str(Path(whet.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert refused.returncode == 1 and "dotprod" in refused.stderr.splitlines()[-1]
    with pytest.raises(whet.errors.BundleError, match="compiled for aarch64"):
        whet.load(path)


@pytest.mark.parametrize("core", ["cortex-a72", "cortex-a76"])
def test_features_are_those_that_python_finds(core: str, cross: Path, arm_device: Path) -> None:
    code = "from whet.runtime.cpu import host_features; print(','.join(sorted(host_features())))"
    python = subprocess.run(
        [arm_device / "py64", "-c", code],
        env={**os.environ, "QCPU": core, "PYTHONPATH": str(Path(whet.__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert on_core(cross, core).output("drive", "features") == python.stdout


def test_without_files_in_memory(bundles: dict[str, Path], cross: Path, tmp_path: Path) -> None:
    """Nothing is left in the folder for temporary files, whichever way the library was loaded."""
    ((status, message),) = on_core(cross, "cortex-a72").verdicts(
        "open", [bundles["cortex-a72 f32"]], TMPDIR=str(tmp_path)
    )
    assert (status, message) == ("ok", "")
    assert list(tmp_path.iterdir()) == []
