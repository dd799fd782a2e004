"""The TVM runtime of this process: found and loaded once, without the compiler and without torch.

A device needs numpy, tvm_ffi and one file of 3 MB, libtvm_runtime.so. Where the compiler is already imported,
its runtime is the one; two runtimes in one process would each have their own registries and thread pools.
"""

from __future__ import annotations

import ctypes
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, Final

from whet.errors import TargetError
from whet.runtime import pins
from whet.runtime.finding import RUNTIME, check_version, file_name, find, runtime_library

# A function that every TVM runtime registers: its presence says that one is loaded.
_WITNESS: Final = "runtime.config_threadpool"
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
    """The module tvm_ffi. Raises TargetError where it is not installed, or not in the version that fits."""
    try:
        with _without_torch():
            module = import_module("tvm_ffi")
    except ImportError as error:
        raise TargetError(
            f"the TVM runtime needs tvm_ffi ({error}): pip install apache-tvm-ffi=={pins.TVM_FFI}"
        ) from error
    check_version("apache-tvm-ffi", str(module.__version__), pins.TVM_FFI, str(Path(str(module.__file__)).parent))
    return module


@cache
def runtime_function(name: str) -> Any:
    """A global function of the loaded runtime."""
    return tvm_ffi().get_global_func(name)


def load_runtime(device: str = "cpu", beside: Path | None = None) -> None:
    """Load libtvm_runtime, and what `device` needs besides, unless this process has them.

    It is taken from an installed apache-tvm, else from an installed whet-runtime, else from the folder `beside`; where
    apache-tvm is not installed, a file that the environment variable WHET_RUNTIME_LIBRARY names comes first. Raises
    TargetError that says where it was looked for, which version does not fit, or what the loader said.
    """
    with _lock:
        if not _registered(_WITNESS):
            library = runtime_library(beside)
            _open(library)
            sys.meta_path.insert(0, _OneRuntime(library))
        if device not in _DEVICE_LIBRARIES:
            return
        name, witness = _DEVICE_LIBRARIES[device]
        if not _registered(witness):
            _open(find(name, beside))


class _OneRuntime:
    """An import hook: refuses to import a tvm whose runtime is not the one that this process has.

    TVM ends the process when the second one registers its functions.
    """

    def __init__(self, library: Path) -> None:
        self._library = library

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "tvm":
            return None
        found = PathFinder.find_spec(name, path)
        if found is None or found.origin is None:
            return None
        other = Path(found.origin).parent / "lib" / file_name(RUNTIME)
        if other.is_file() and not other.samefile(self._library):
            raise ImportError(
                f"this process runs compiled models with {self._library}, and {other} would be a second TVM runtime "
                "in it. Import tvm before the first model is loaded",
                name=name,
            )
        return None


def _registered(name: str) -> bool:
    return tvm_ffi().get_global_func(name, allow_missing=True) is not None


def _open(path: Path) -> None:
    try:
        # Global, because the libraries of bundles find the runtime's symbols in the process.
        ctypes.CDLL(str(path), ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise TargetError(f"the TVM runtime {path} cannot be loaded: {error}") from error
