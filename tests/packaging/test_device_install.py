"""A device with the two wheels and what they require: it runs bundles, quickly, and with one TVM runtime only."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path

import numpy as np
import pytest
import torch

import whet
from benchmarks.models.mobilenet import MobileNetV2
from tests.packaging.conftest import REQUIRED, run
from whet.runtime import load, pins
from whet.runtime_wheel import make_runtime_wheel

TVM_SITE = Path(str(distribution("apache-tvm").locate_file("")))

BEGIN = """
import sys
from pathlib import Path
def libraries():
    with open("/proc/self/maps") as maps:
        return sorted({line.split()[-1] for line in maps if "libtvm_runtime.so" in line})
"""

Device = Callable[..., str]


@pytest.fixture
def device(device_python: Path, tmp_path: Path) -> Device:
    """Runs code there, isolated from this environment; what it printed."""

    def execute(code: str, *arguments: str | Path, **environment: str) -> str:
        clean = {name: text for name, text in os.environ.items() if not name.startswith(("TVM_", "WHET_", "OMP_"))}
        done = subprocess.run(
            [str(device_python), "-I", "-c", BEGIN + textwrap.dedent(code), *map(str, arguments)],
            cwd=tmp_path,
            env=clean | environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    return execute


@pytest.fixture
def tvm_folder(tmp_path: Path) -> Path:
    """A folder in which apache-tvm is installed, with a runtime library of its own."""
    folder = tmp_path / "tvm-site"
    (folder / "tvm" / "lib").mkdir(parents=True)
    for item in (TVM_SITE / "tvm").iterdir():
        if item.name != "lib":
            (folder / "tvm" / item.name).symlink_to(item)
    shutil.copy(TVM_SITE / "tvm" / "lib" / "libtvm_runtime.so", folder / "tvm" / "lib")
    info = f"apache_tvm-{pins.TVM}.dist-info"
    (folder / info).symlink_to(TVM_SITE / info)
    (folder / "ml_dtypes").symlink_to(TVM_SITE / "ml_dtypes")
    return folder


def test_results_are_equal(device: Device, affine_bundle: Path, tmp_path: Path) -> None:
    x = np.random.rand(6, 8).astype("f4")
    expected = load(affine_bundle)(x, mask=x > 0.5)["y"]
    np.save(tmp_path / "x.npy", x)
    printed = device(
        """
        import json, whet
        import numpy as np
        from importlib.metadata import distributions
        x = np.load(sys.argv[2])
        np.save(sys.argv[3], whet.load(sys.argv[1])(x, mask=x > 0.5)["y"])
        print(json.dumps([sorted(item.name for item in distributions()), libraries()]))
        """,
        *(affine_bundle, tmp_path / "x.npy", tmp_path / "y.npy"),
    )
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)
    installed, libraries = json.loads(printed)
    assert {item.replace("_", "-") for item in installed} == {*REQUIRED, "whet", "whet-runtime"}
    (library,) = libraries
    assert library.endswith("/whet_runtime/lib/libtvm_runtime.so")


@pytest.mark.slow
def test_what_pip_installs(whet_wheel: Path, runtime_wheel: Path, tmp_path: Path) -> None:
    """`pip install whet` on a device brings neither torch nor the compiler."""
    plan = ["install", "-q", "--dry-run", "--ignore-installed", "--only-binary=:all:", "--report", "plan.json"]
    run([sys.executable, "-m", "pip", *plan, str(whet_wheel), str(runtime_wheel)], tmp_path)
    planned = json.loads((tmp_path / "plan.json").read_text())["install"]
    names = {item["metadata"]["name"].replace("_", "-").lower() for item in planned}
    assert names == {*REQUIRED, "whet", "whet-runtime"}


def test_the_library_of_an_installed_apache_tvm_is_taken(device: Device, affine_bundle: Path, tvm_folder: Path) -> None:
    """...and tvm, imported afterwards, finds it loaded."""
    printed = device(
        """
        sys.path.append(sys.argv[2])
        import whet
        import numpy as np
        module = whet.load(sys.argv[1])
        print(libraries())
        import tvm
        module(np.ones((2, 8), "f4"), mask=np.ones((2, 8), bool))
        print(libraries())
        """,
        *(affine_bundle, tvm_folder),
    )
    assert printed.splitlines() == [str([str(tvm_folder / "tvm" / "lib" / "libtvm_runtime.so")])] * 2


def test_a_second_runtime_is_refused(device: Device, affine_bundle: Path, tvm_folder: Path, tmp_path: Path) -> None:
    """TVM would end the process."""
    printed = device(
        """
        import whet
        import numpy as np
        module = whet.load(sys.argv[1])
        try:
            import tvm
        except ModuleNotFoundError as error:
            print(error)
        sys.path.append(sys.argv[2])
        try:
            import tvm
        except ImportError as error:
            print(error)
        print(len(libraries()), module(np.ones((2, 8), "f4"), mask=np.ones((2, 8), bool))["y"].shape)
        """,
        *(affine_bundle, tvm_folder),
    )
    missing, second, works = printed.splitlines()
    assert missing == "No module named 'tvm'"
    assert "would be a second TVM runtime" in second and "Import tvm before" in second
    assert works == "1 (2, 4)"
    named = """
        sys.path.append(sys.argv[2])
        import whet
        from whet.errors import TargetError
        try:
            whet.load(sys.argv[1])
        except TargetError as error:
            print(error)
        print(len(libraries()))
        """
    shutil.copy(tvm_folder / "tvm" / "lib" / "libtvm_runtime.so", tmp_path)
    own, other = tvm_folder / "tvm" / "lib" / "libtvm_runtime.so", tmp_path / "libtvm_runtime.so"
    refused = device(named, affine_bundle, tvm_folder, WHET_RUNTIME_LIBRARY=str(other)).splitlines()
    assert "two TVM runtimes end a process" in refused[0] and refused[1] == "0"
    assert device(named, affine_bundle, tvm_folder, WHET_RUNTIME_LIBRARY=str(own)) == "1"


def test_another_version_is_refused(device: Device, affine_bundle: Path, tmp_path: Path) -> None:
    code = """
        sys.path.insert(0, sys.argv[2])
        import whet
        from whet.errors import TargetError
        if len(sys.argv) > 3:
            import tvm_ffi
            tvm_ffi.__version__ = sys.argv[3]
        try:
            whet.load(sys.argv[1])
        except TargetError as error:
            print(error)
        print(len(libraries()))
        """
    old = tmp_path / "old"
    for package, folder in (("apache-tvm", "tvm"), ("whet-runtime", "whet_runtime")):
        site = old / folder
        info = site / f"{package.replace('-', '_')}-0.26.0.dist-info"
        (site / folder / "lib").mkdir(parents=True)
        (site / folder / "lib" / "libtvm_runtime.so").write_bytes(b"")
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.4\nName: {package}\nVersion: 0.26.0\n")
        message, count = device(code, affine_bundle, site).splitlines()
        assert (
            message == f"{package} 0.26.0 is installed in {site}; this whet runs with {pins.TVM} and no other version"
        )
        assert count == "0"
    message, count = device(code, affine_bundle, tmp_path, "0.1.15").splitlines()
    assert f"this whet runs with {pins.TVM_FFI} and no other version" in message and count == "0"


MEASURE = """
    import time
    start = time.perf_counter()
    import whet
    module = whet.load(sys.argv[1])
    seconds = time.perf_counter() - start
    import numpy as np
    module(np.ones((1, 3, 224, 224), "f4"))
    # Not getrusage: after fork and exec its maximum is the parent's.
    with open("/proc/self/status") as status:
        print(seconds, next(int(line.split()[1]) * 1024 / 1e6 for line in status if line.startswith("VmHWM")))
    """


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_mobilenet_starts_in_half_a_second_and_100_megabytes(device: Device, tmp_path: Path) -> None:
    """Import, load and first call; the best of five, because other processes take time from this one."""
    picture = (torch.zeros(1, 3, 224, 224),)
    whet.optimize(MobileNetV2().eval(), "x86", example_inputs=picture).save(tmp_path / "m.whet")
    measured = [tuple(map(float, device(MEASURE, tmp_path / "m.whet").split())) for _ in range(5)]
    seconds, megabytes = (min(values) for values in zip(*measured, strict=True))
    assert seconds < 0.5
    assert megabytes < 100


@pytest.mark.arm
def test_the_wheel_of_another_platform(arm_device: Path, whet_wheel: Path, tmp_path: Path) -> None:
    """Made here of the device's apache-tvm, and used there without it."""
    x = torch.rand(1, 1, 28, 28)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)).eval()
    whet.optimize(model, "cortex-a72", example_inputs=(x,)).save(tmp_path / "m.whet")
    np.save(tmp_path / "x.npy", x.numpy())
    wheel = make_runtime_wheel(tmp_path, arm_device / "site64")
    assert "aarch64" in wheel.name
    packages = tmp_path / "packages"
    install = [
        "install",
        "-q",
        "--no-index",
        "--no-deps",
        "--only-binary=:all:",
        "--platform",
        "manylinux_2_28_aarch64",
    ]
    run([sys.executable, "-m", "pip", *install, "--target", str(packages), str(whet_wheel), str(wheel)], tmp_path)
    for item in (arm_device / "site64").iterdir():
        if item.name.startswith(("numpy", "tvm_ffi", "apache_tvm_ffi", "typing_extensions", "zstandard")):
            (packages / item.name).symlink_to(item)
    code = """
sys.path = [entry for entry in sys.path if not entry.endswith("site64")] + [sys.argv[1]]
import numpy as np
import whet
np.save("y.npy", whet.load("m.whet")(np.load("x.npy")))
import platform
print(platform.machine(), [str(Path(path).relative_to(sys.argv[1])) for path in libraries()], "tvm" in sys.modules)
"""
    done = subprocess.run(
        [arm_device / "py64", "-c", BEGIN + code, str(packages)],
        cwd=tmp_path,
        env={name: text for name, text in os.environ.items() if name != "PYTHONPATH"} | {"QCPU": "cortex-a72"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "aarch64 ['whet_runtime/lib/libtvm_runtime.so'] False"
    torch.testing.assert_close(torch.from_numpy(np.load(tmp_path / "y.npy")), model(x).detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.arm
@pytest.mark.timeout(900)
def test_downloaded_and_installed_give_the_same_wheel(arm_device: Path, tmp_path: Path) -> None:
    here = make_runtime_wheel(tmp_path / "installed", arm_device / "site64")
    there = make_runtime_wheel(tmp_path / "downloaded", platform="manylinux_2_28_aarch64")
    assert (here.name, here.read_bytes()) == (there.name, there.read_bytes())
