"""The TVM runtime of this process: found and loaded once, without the compiler and without torch.

A device needs numpy, tvm_ffi and one file of 3 MB, libtvm_runtime.so. Where the compiler is already imported,
its runtime is the one; two runtimes in one process would each have their own registries and thread pools.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Final

from whet.errors import TargetError

LIBRARY_VARIABLE: Final = "WHET_RUNTIME_LIBRARY"
# A function that every TVM runtime registers: its presence says that one is loaded.
_WITNESS: Final = "runtime.config_threadpool"
_SUFFIXES: Final[Mapping[str, str]] = MappingProxyType({"Darwin": ".dylib", "Windows": ".dll"})
# What a kind of device needs besides the runtime: (library, a function that it registers).
_DEVICE_LIBRARIES: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {"cuda": ("tvm_runtime_cuda", "device_api.cuda")}
)
_lock = threading.Lock()


class _HideTorch:
    """An import hook under which torch is not installed, for one thread."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] == "torch" and threading.get_ident() == self.thread:
            raise ModuleNotFoundError(f"{name} is hidden while tvm_ffi is imported", name=name)
        return None


@contextmanager
def _without_torch() -> Iterator[None]:
    """tvm_ffi imports torch where it is installed (seconds, 200 MB) though nothing here uses it."""
    if "torch" in sys.modules:
        yield
        return
    hook: Any = _HideTorch()
    sys.meta_path.insert(0, hook)
    try:
        yield
    finally:
        sys.meta_path.remove(hook)


@cache
def tvm_ffi() -> Any:
    """The module tvm_ffi. Raises TargetError where it is not installed."""
    try:
        with _without_torch():
            return import_module("tvm_ffi")
    except ImportError as error:
        raise TargetError(
            f"the TVM runtime needs tvm_ffi ({error}): pip install apache-tvm-ffi==0.1.14.post1"
        ) from error


@cache
def runtime_function(name: str) -> Any:
    """A global function of the loaded runtime."""
    return tvm_ffi().get_global_func(name)


def load_runtime(device: str = "cpu", beside: Path | None = None) -> None:
    """Load libtvm_runtime, and what `device` needs besides, unless this process has them.

    It is taken from the environment variable WHET_RUNTIME_LIBRARY (a file), or from an installed apache-tvm,
    or from the folder `beside`. Raises TargetError that says where it was looked for, or what the loader
    said.
    """
    with _lock:
        if not _registered(_WITNESS):
            _open(runtime_library(beside))
        if device not in _DEVICE_LIBRARIES:
            return
        name, witness = _DEVICE_LIBRARIES[device]
        if not _registered(witness):
            _open(_find(_file_name(name), beside))


def _registered(name: str) -> bool:
    return tvm_ffi().get_global_func(name, allow_missing=True) is not None


def runtime_library(beside: Path | None = None) -> Path:
    """The file of libtvm_runtime that `load_runtime` takes. Raises TargetError that says where it was looked for."""
    given = os.environ.get(LIBRARY_VARIABLE)
    if not given:
        return _find(_file_name("tvm_runtime"), beside)
    if not Path(given).is_file():
        raise TargetError(f"{LIBRARY_VARIABLE} names {given}, which is not a file")
    return Path(given).resolve()


def _find(name: str, beside: Path | None) -> Path:
    """The library in an installed apache-tvm (looked up as a file, so that nothing is imported) or in
    `beside`.
    """
    folders = [Path(entry or ".") / "tvm" / "lib" for entry in sys.path]
    if os.environ.get(LIBRARY_VARIABLE):
        folders.insert(0, Path(os.environ[LIBRARY_VARIABLE]).resolve().parent)
    if beside is not None:
        folders.append(beside)
    for folder in folders:
        if (folder / name).is_file():
            return (folder / name).resolve()
    raise TargetError(
        f"{name} was not found: not in an installed apache-tvm"
        + (f", not in {beside}" if beside is not None else "")
        + f". Install it (pip install apache-tvm==0.27.0.post1), or name the file in {LIBRARY_VARIABLE}"
    )


def _file_name(name: str) -> str:
    prefix = "" if platform.system() == "Windows" else "lib"
    return f"{prefix}{name}{_SUFFIXES.get(platform.system(), '.so')}"


def _open(path: Path) -> None:
    try:
        # Global, because the libraries of bundles find the runtime's symbols in the process.
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise TargetError(f"the TVM runtime {path} cannot be loaded: {error}") from error
