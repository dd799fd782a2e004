"""A bundle runs in a process that has numpy, tvm_ffi and the TVM runtime, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.runtime.conftest import Array, DeviceRun, Model, host_target
from whet.runtime import Manifest, TensorSpec, write_bundle


def _expected(model: Model, x: Array, mask: Array) -> Array:
    result: Array = np.where(mask, x, 0) @ model.weights["w"] + model.weights["b"]
    return result


def test_runs_without_torch_and_tvm(affine: Model, affine_bundle: Path, on_device: DeviceRun, tmp_path: Path) -> None:
    """Results, structure, and what was imported on the way."""
    x = np.random.rand(6, 8).astype("f4")
    mask = np.random.rand(6, 8) > 0.5
    np.savez(tmp_path / "in.npz", x=x, mask=mask)
    printed = on_device(
        """
        import json, time
        start = time.perf_counter()
        import whet
        import numpy as np
        loaded = whet.load(sys.argv[1])
        given = np.load(sys.argv[2])
        out = loaded(given["x"], mask=given["mask"])
        seconds = time.perf_counter() - start
        np.savez(sys.argv[3], y=out["y"], rest=out["rest"][0])
        modules = {name.partition(".")[0] for name in sys.modules}
        structure = [list(out), type(out["rest"]).__name__, out["rest"][1]]
        print(json.dumps([*structure, seconds, sorted(modules), repr(loaded)]))
        """,
        affine_bundle,
        tmp_path / "in.npz",
        tmp_path / "out.npz",
    )
    keys, kind, rest, seconds, modules, shown = json.loads(printed)
    out = np.load(tmp_path / "out.npz")
    np.testing.assert_allclose(out["y"], _expected(affine, x, mask), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(out["rest"], ~mask)
    assert (keys, kind, rest) == (["y", "rest"], "tuple", None)
    assert not {"torch", "tvm"} & set(modules)
    assert "float32[s0, 8]" in shown
    assert seconds < 10


def test_torch_is_not_imported_where_it_is_installed(affine_bundle: Path, on_device: DeviceRun) -> None:
    """tvm_ffi by itself imports torch wherever it finds it."""
    printed = on_device(
        """
        sys.meta_path.pop(0)
        import whet
        whet.load(sys.argv[1])
        print("torch" in sys.modules, "tvm" in sys.modules)
        import torch  # and afterwards it is there, and its tensors are taken
        out = whet.load(sys.argv[1])(torch.ones(2, 8), mask=torch.ones(2, 8, dtype=torch.bool))
        print(type(out["y"]).__module__, tuple(out["y"].shape))
        """,
        affine_bundle,
    )
    assert printed.splitlines() == ["False False", "torch (2, 4)"]


def test_peak_memory(affine: Model, on_device: DeviceRun, tmp_path: Path) -> None:
    """The weights are in memory once: with 14 MB of them the whole process stays under 100 MB."""
    weights = {**affine.weights, "ballast": np.random.rand(14 << 18).astype("f4")}
    write_bundle(tmp_path / "m.whet", affine.manifest, affine.library, weights)
    printed = on_device(
        """
        import whet
        import numpy as np
        loaded = whet.load(sys.argv[1])
        loaded(np.ones((2, 8), "f4"), mask=np.ones((2, 8), bool))
        # Not getrusage: after fork and exec its maximum is the parent's.
        with open("/proc/self/status") as status:
            print(next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM")))
        """,
        tmp_path / "m.whet",
    )
    assert float(printed) < 100


def test_runtime_named_by_variable_or_beside_the_bundle(
    affine_bundle: Path, on_device: DeviceRun, tmp_path: Path
) -> None:
    """Without apache-tvm on the path, one file of 3 MB serves."""
    import tvm

    library = Path(tvm.__file__).parent / "lib" / "libtvm_runtime.so"
    code = """
        sys.path = [entry for entry in sys.path if "site-packages" not in entry] + [sys.argv[2]]
        import whet
        import numpy as np
        from whet.errors import TargetError
        try:
            print(whet.load(sys.argv[1])(np.ones((2, 8), "f4"), mask=np.ones((2, 8), bool))["y"].shape)
        except TargetError as error:
            print(error)
        """
    # A folder of the packages that a device has.
    packages = tmp_path / "packages"
    packages.mkdir()
    import whet

    source = Path(whet.__file__).parents[1]
    (packages / "whet").symlink_to(source / "whet")
    site = Path(np.__file__).parents[1]
    for item in site.iterdir():
        if item.name.startswith(("numpy", "tvm_ffi", "apache_tvm_ffi", "typing_extensions", "ml_dtypes")):
            (packages / item.name).symlink_to(item)
    bundle = tmp_path / "device" / "m.whet"
    bundle.parent.mkdir()
    shutil.copy(affine_bundle, bundle)
    missing = on_device(code, bundle, packages)
    assert "libtvm_runtime.so was not found" in missing and "WHET_RUNTIME_LIBRARY" in missing
    assert on_device(code, bundle, packages, WHET_RUNTIME_LIBRARY=str(library)).strip() == "(2, 4)"
    wrong = on_device(code, bundle, packages, WHET_RUNTIME_LIBRARY=str(tmp_path / "none.so"))
    assert "none.so" in wrong
    shutil.copy(library, bundle.parent)
    assert on_device(code, bundle, packages).strip() == "(2, 4)"


def test_compiler_imported_first_or_afterwards(affine_bundle: Path, on_device: DeviceRun) -> None:
    """Both ways the process has one runtime, and both the bundle and the compiler work."""
    for first, second in (("tvm", "whet"), ("whet", "tvm")):
        printed = on_device(
            f"""
            sys.meta_path.pop(0)
            import numpy as np, whet
            def use_whet():
                whet.load(sys.argv[1])(np.ones((2, 8), "f4"), mask=np.ones((2, 8), bool))
            def use_tvm():
                import tvm
                assert tvm.target.Target({{"kind": "llvm"}})
            use_{first}(); use_{second}(); use_whet()
            with open("/proc/self/maps") as maps:
                print(len({{line.split()[-1] for line in maps if "libtvm_runtime.so" in line}}))
            """,
            affine_bundle,
        )
        assert printed.strip() == "1"


def test_half_precision_types(on_device: DeviceRun, tmp_path: Path) -> None:
    """float16 and bfloat16 in and out; without ml_dtypes bfloat16 comes as bits and goes out as float32."""
    from tvm import relax

    from tests.runtime.conftest import build_main, call_structure, compile_library, output_structure

    def body(builder: object, h: object, b: object, w: object) -> list[object]:
        return [relax.op.add(h, h), relax.op.multiply(b, w)]

    module = build_main(
        {"h": ((4,), "float16"), "b": ((4,), "bfloat16"), "w": ((4,), "bfloat16")},
        lambda builder, h, b, w: [builder.emit(item) for item in body(builder, h, b, w)],
    )
    manifest = Manifest(
        target=host_target(),
        inputs=(TensorSpec("h", (4,), "f16"), TensorSpec("b", (4,), "bf16")),
        outputs=(TensorSpec("h", (4,), "f16"), TensorSpec("b", (4,), "bf16")),
        weights=("w",),
        input_structure=call_structure("t", "t"),
        output_structure=output_structure(["t", "t"]),
    )
    ml_dtypes = pytest.importorskip("ml_dtypes")
    library = compile_library(module, tmp_path / "lib.so")
    write_bundle(tmp_path / "m.whet", manifest, library, {"w": np.array([1, 2, 3, 4], ml_dtypes.bfloat16)})
    code = """
        import numpy as np, whet
        loaded = whet.load(sys.argv[1])
        ones = np.array([0x3F80] * 4, "u2")  # 1.0
        if len(sys.argv) > 2:
            import importlib.util
            import whet.runtime.dtypes as dtypes
            dtypes.find_spec = lambda name: None
        h, b = loaded(np.full(4, 1.5, "f2"), ones)
        print(h.dtype, h.tolist(), b.dtype, b.astype("f4").tolist())
        """
    assert on_device(code, tmp_path / "m.whet").strip() == "float16 [3.0, 3.0, 3.0, 3.0] bfloat16 [1.0, 2.0, 3.0, 4.0]"
    plain = on_device(code, tmp_path / "m.whet", "plain").strip()
    assert plain == "float16 [3.0, 3.0, 3.0, 3.0] float32 [1.0, 2.0, 3.0, 4.0]"
