"""Where the libraries of the TVM runtime lie: named by hand, in an installed package, or beside the bundle.

Packages are looked up as files, so that nothing of them is imported.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from types import MappingProxyType
from typing import Final

from whet.errors import TargetError
from whet.runtime import pins

LIBRARY_VARIABLE: Final = "WHET_RUNTIME_LIBRARY"
RUNTIME: Final = "tvm_runtime"
_SUFFIXES: Final[Mapping[str, str]] = MappingProxyType({"Darwin": ".dylib", "Windows": ".dll"})


@dataclass(frozen=True)
class _Package:
    """A distribution that holds libraries, and the folder of them below site-packages."""

    distribution: str
    folder: str


_TVM: Final = _Package("apache-tvm", "tvm/lib")
# Whoever imports tvm gets the library that lies beside it: where that is installed, no other may be loaded.
_PACKAGES: Final = (_TVM, _Package("whet-runtime", "whet_runtime/lib"))


def runtime_library(beside: Path | None = None) -> Path:
    """The file of libtvm_runtime that a process is to load.

    Raises TargetError that says where it was looked for, or that a package is of another version, or that two
    runtimes would meet in one process.
    """
    given = os.environ.get(LIBRARY_VARIABLE)
    if not given:
        return find(RUNTIME, beside)
    if not Path(given).is_file():
        raise TargetError(f"{LIBRARY_VARIABLE} names {given}, which is not a file")
    installed = _installed(_TVM, file_name(RUNTIME))
    if installed is not None and not installed.samefile(given):
        raise TargetError(
            f"{LIBRARY_VARIABLE} names {given}, but apache-tvm is installed with {installed}, which `import tvm` "
            f"loads: two TVM runtimes end a process. Unset {LIBRARY_VARIABLE}, or uninstall apache-tvm"
        )
    return Path(given).resolve()


def find(library: str, beside: Path | None) -> Path:
    """A library of TVM's by its plain name (`tvm_runtime_cuda`). Raises TargetError as `runtime_library` does."""
    name = file_name(library)
    given = os.environ.get(LIBRARY_VARIABLE)
    near = Path(given).resolve().parent / name if given else None
    if near is not None and near.is_file():
        return near
    for package in _PACKAGES:
        found = _installed(package, name)
        if found is not None:
            return found
    if beside is not None and (beside / name).is_file():
        return (beside / name).resolve()
    raise TargetError(
        f"{name} was not found: not in an installed apache-tvm or whet-runtime"
        + (f", not in {beside}" if beside is not None else "")
        + f". Install one of them (a wheel that `whet runtime-wheel` made, or pip install apache-tvm=={pins.TVM}), "
        f"or name the file in {LIBRARY_VARIABLE}"
    )


def file_name(library: str) -> str:
    """The library's file on this system."""
    prefix = "" if platform.system() == "Windows" else "lib"
    return f"{prefix}{library}{_SUFFIXES.get(platform.system(), '.so')}"


def _installed(package: _Package, name: str) -> Path | None:
    """The file in the first place on sys.path that has it. Raises TargetError where the package is of another version
    than Whet's; one without metadata (a build of one's own) is taken as it is.
    """
    for entry in sys.path:
        site = Path(entry or ".")
        file = site / package.folder / name
        if not file.is_file():
            continue
        for found in distributions(name=package.distribution, path=[str(site)]):
            check_version(package.distribution, found.version, pins.TVM, str(site))
        return file.resolve()
    return None


def check_version(package: str, version: str, wanted: str, where: str) -> None:
    """Raise TargetError unless the package has the version that Whet is pinned to."""
    if version == wanted:
        return
    raise TargetError(f"{package} {version} is installed in {where}; this whet runs with {wanted} and no other version")
