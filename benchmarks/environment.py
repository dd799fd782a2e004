"""Where a benchmark runs: what a saved result has to say of it, and how wide its tables may be."""

from __future__ import annotations

import datetime
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console

PACKAGES = (
    "torch",
    "apache-tvm",
    "numpy",
    "onnx",
    "onnxruntime",
    "openvino",
    "nncf",
    "executorch",
    "torchao",
    "torch-pruning",
    "torchvision",
    "timm",
    "transformers",
)
NOT_INSTALLED = "not installed"

_FILE_WIDTH = 170

# Extensions that decide which kernels an engine has, as /proc/cpuinfo calls them.
_EXTENSIONS = (
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
    "bf16",
    "sve2",
)


def environment() -> dict[str, str]:
    """Date, processor with its vector extensions, versions of Whet's own foundation and of all peers."""
    fields = _cpu_fields()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return {
        "date": datetime.date.today().isoformat(),
        "cpu": fields.get("model name", platform.processor()),
        "extensions": " ".join(name for name in _EXTENSIONS if name in flags),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _cpu_fields() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo, where there is one."""
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return NOT_INSTALLED


def wide_console() -> Console:
    """The terminal; in a file or a pipe, lines long enough that no table is folded."""
    return Console() if sys.stdout.isatty() else Console(width=_FILE_WIDTH)
