"""The runtimes that are compared: what each installs, which engine prepares its model, how one start is made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.footprint.installs import Requirements, pinned, whet_wheels
from whet import __version__

# What ExecuTorch's runtime imports of the packages that its wheel requires; coremltools, scikit-learn and sixteen more
# serve its exporter. PyTorch it imports without requiring it.
_EXECUTORCH = ("torch", "numpy", "flatbuffers", "ruamel.yaml", "tabulate")


@dataclass(frozen=True)
class Runtime:
    """One way to run a model.

    Attributes:
        name: as the table shows it.
        version: of the package.
        start: the function of start.py.
        engine: of the benchmarks, that prepares the model; none for the bare interpreter.
        files: what the engine leaves that is shipped.
        requirements: what is installed, given a folder in which wheels may be made.
        note: what else one should know.
    """

    name: str
    version: str
    start: str
    engine: str | None
    files: tuple[str, ...]
    requirements: Callable[[Path], Requirements]
    note: str = ""


WHET = Runtime(
    "whet", __version__, "whet", "whet", ("model.whet",), lambda folder: Requirements(whet_wheels(folder / "made"))
)


def peers() -> list[Runtime]:
    """Runtimes of others, and Python with numpy, of which all of them are made. Raises PackageNotFoundError."""
    return [
        Runtime("python, numpy", version("numpy"), "python", None, (), lambda _: Requirements((pinned("numpy"),))),
        Runtime(
            "onnxruntime",
            version("onnxruntime"),
            "onnxruntime",
            "ort",
            ("model.onnx", "model.onnx.data"),
            lambda _: Requirements((pinned("onnxruntime"),)),
        ),
        Runtime(
            "openvino",
            version("openvino"),
            "openvino",
            "openvino",
            ("model.xml", "model.bin"),
            lambda _: Requirements((pinned("openvino"),)),
        ),
        Runtime(
            "executorch",
            version("executorch"),
            "executorch",
            "executorch",
            ("model.pte",),
            lambda _: Requirements(tuple(map(pinned, _EXECUTORCH)), (pinned("executorch"),)),
            "with PyTorch, which its Python runtime imports; of its 22 requirements only those that a start needs",
        ),
    ]
