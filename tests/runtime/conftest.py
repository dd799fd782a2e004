"""Small compiled models, made by hand with Relax, as bundles; and a way to run them where torch and tvm are
missing.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from whet.runtime import Dimension, Manifest, StateSpec, TargetSpec, TensorSpec, write_bundle
from whet.runtime.cpu import host_arch
from whet.runtime.structure import build

Array = np.ndarray[Any, np.dtype[Any]]

# Refuses what a device has not, in whichever way it is asked for.
BLOCKER = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "tvm"):
            raise ModuleNotFoundError(f"{name} is blocked", name=name)

sys.meta_path.insert(0, Blocked())
"""


@dataclass(frozen=True)
class Model:
    """A compiled model: its library, what it says of itself, and its weights."""

    library: Path
    manifest: Manifest
    weights: Mapping[str, Array]

    def save(self, path: Path) -> Path:
        write_bundle(path, self.manifest, self.library, self.weights)
        return path


def host_target(**changes: Any) -> TargetSpec:
    fields: dict[str, Any] = {"name": "x86", "triple": "", "arch": host_arch(), "os": "linux", "features": ()}
    return TargetSpec(**{**fields, **changes})


def call_structure(*args: Any, **kwargs: Any) -> Any:
    """Structure of a call whose tensors are written as the letter "t"."""
    return build((args, kwargs), lambda value: value == "t")[0]


def output_structure(value: Any) -> Any:
    return build(value, lambda leaf: leaf == "t")[0]


def compile_library(module: Any, path: Path, objects: Sequence[Path] = ()) -> Path:
    """The module as a library, into which `objects` are linked too."""
    import tvm

    target = tvm.target.Target({"kind": "llvm", "num-cores": 2})
    tvm.compile(_parallel(module), target=target).export_library(str(path), addons=[str(item) for item in objects])
    return path


def _parallel(module: Any) -> Any:
    """The same module, in which the rows of matrix products are spread over TVM's workers."""
    import tvm

    schedule = tvm.s_tir.Schedule(tvm.relax.transform.LegalizeOps()(module))
    if "matmul" in {name.name_hint for name in schedule.mod.get_global_vars()}:
        schedule.work_on("matmul")
        schedule.parallel(schedule.get_loops(schedule.get_sblock("matmul"))[0])
    return schedule.mod


def build_main(inputs: Mapping[str, tuple[tuple[Any, ...], str]], body: Callable[..., list[Any]]) -> Any:
    """A Relax module whose `main` has these inputs ((shape, dtype); a string is a symbol) and returns a
    tuple.
    """
    import tvm
    from tvm import relax

    symbols: dict[str, Any] = {}

    def size(dim: Any) -> Any:
        return symbols.setdefault(dim, tvm.tirx.Var(dim, "int64")) if isinstance(dim, str) else dim

    variables = [
        relax.Var(name, relax.TensorType([size(dim) for dim in shape], dtype))
        for name, (shape, dtype) in inputs.items()
    ]
    builder = relax.BlockBuilder()
    with builder.function("main", variables):
        with builder.dataflow():
            results = body(builder, *variables)
            output = builder.emit_output(relax.Tuple(results))
        builder.emit_func_output(output)
    return builder.get()


def affine_module() -> Any:
    """What the fixture `affine` is compiled from."""
    from tvm import relax

    def body(builder: Any, x: Any, mask: Any, w: Any, b: Any) -> list[Any]:
        kept = builder.emit(relax.op.where(mask, x, relax.const(0.0)))
        product = builder.emit(relax.op.matmul(kept, w))
        return [builder.emit(relax.op.add(product, b)), builder.emit(relax.op.logical_not(mask))]

    return build_main(
        {
            "x": (("s0", 8), "float32"),
            "mask": (("s0", 8), "bool"),
            "w": ((8, 4), "float32"),
            "b": ((4,), "float32"),
        },
        body,
    )


@pytest.fixture(scope="session")
def affine(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """{"y": where(mask, x, 0) @ w + b, "rest": (not mask, None)}; x and mask have s0 rows, 2..64 and even."""
    generator = np.random.default_rng(1)
    weights = {"b": generator.normal(size=4).astype("f4"), "w": generator.normal(size=(8, 4)).astype("f4")}
    manifest = Manifest(
        target=host_target(),
        inputs=(TensorSpec("x", ("s0", 8), "f32"), TensorSpec("mask", ("s0", 8), "bool")),
        outputs=(TensorSpec("y", ("s0", 4), "f32"), TensorSpec("rest", ("s0", 8), "bool")),
        weights=("w", "b"),
        input_structure=call_structure("t", mask="t"),
        output_structure=output_structure({"y": "t", "rest": ("t", None)}),
        parameters=("x",),
        dimensions={"s0": Dimension(2, 64, 2)},
        versions={"whet": "0.1.0", "tvm": "0.27.0"},
    )
    library = compile_library(affine_module(), tmp_path_factory.mktemp("affine") / "lib.so")
    return Model(library, manifest, weights)


@pytest.fixture(scope="session")
def counter(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """total = state + x; returns total, and keeps it; a second state keeps x itself, and is returned as
    `last`.
    """
    from tvm import relax

    def body(builder: Any, x: Any, total: Any, last: Any, scale: Any) -> list[Any]:
        summed = builder.emit(relax.op.add(total, relax.op.multiply(x, scale)))
        return [summed, last, summed, x]

    shape = ((4,), "float32")
    module = build_main({"x": shape, "total": shape, "last": shape, "scale": shape}, body)
    manifest = Manifest(
        target=host_target(),
        inputs=(TensorSpec("x", (4,), "f32"),),
        outputs=(TensorSpec("total", (4,), "f32"), TensorSpec("last", (4,), "f32")),
        weights=("scale",),
        state=(StateSpec("total", (4,), "f32", "total0"), StateSpec("last", (4,), "f32", "last0")),
        input_structure=call_structure("t"),
        output_structure=output_structure(("t", "t")),
    )
    weights = {
        "scale": np.full(4, 2, "f4"),
        "total0": np.array([1, 2, 3, 4], "f4"),
        "last0": np.full(4, -1, "f4"),
    }
    return Model(compile_library(module, tmp_path_factory.mktemp("counter") / "lib.so"), manifest, weights)


@pytest.fixture(scope="session")
def affine_bundle(affine: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return affine.save(tmp_path_factory.mktemp("bundle") / "affine.whet")


@pytest.fixture(scope="session")
def counter_bundle(counter: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return counter.save(tmp_path_factory.mktemp("bundle") / "counter.whet")


DeviceRun = Callable[..., str]


@pytest.fixture
def on_device(tmp_path: Path) -> DeviceRun:
    """Run Python code in a process of its own where torch and tvm cannot be imported; returns what it
    printed.
    """

    def run(code: str, *args: str | Path, **environment: str) -> str:
        import os

        script = tmp_path / "script.py"
        script.write_text(BLOCKER + textwrap.dedent(code))
        clean = {name: text for name, text in os.environ.items() if not name.startswith(("TVM_", "WHET_", "OMP_"))}
        done = subprocess.run(
            [sys.executable, str(script), *map(str, args)],
            capture_output=True,
            text=True,
            timeout=120,
            env={**clean, **environment},
        )
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout

    return run
