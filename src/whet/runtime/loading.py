"""From a bundle on the disk to a module that can be called."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from whet.errors import BundleError, TargetError
from whet.runtime.bundle import Bundle, Trusted, read_bundle
from whet.runtime.device_code import accept_device_code
from whet.runtime.keys import KeySource
from whet.runtime.library import load_runtime, runtime_function, tvm_ffi
from whet.runtime.library_file import folder_file, secret_file
from whet.runtime.manifest import TargetSpec
from whet.runtime.session import LoadedModule, Main, Program

# The virtual machine's own numbers: device types (DLPack's), and the allocator that keeps freed memory for
# the next call.
_CPU: Final = 1
_CUDA: Final = 2
_POOLED: Final = 2
# Devices the virtual machine is told of: shapes are computed on the CPU, which must come last.
_DEVICES: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType({"cpu": (_CPU,), "cuda": (_CUDA, _CPU)})
# DeviceAttrKind of tvm/runtime/device_api.h.
_ATTRIBUTE_EXISTS: Final = 0
_ATTRIBUTE_COMPUTE_VERSION: Final = 4

Observer = Callable[[str, bool], None]
"""Told of every kernel, and every function of the virtual machine, by name: True before it runs, False after."""


def load(
    path: str | os.PathLike[str],
    threads: int | None = None,
    *,
    observer: Observer | None = None,
    trusted: Trusted = None,
    key: KeySource | None = None,
) -> LoadedModule:
    """Load a bundle that `save` wrote.

    `trusted` are public keys (PEM files, or their contents): one of them must have signed the bundle. `key` is what it
    is encrypted with (a file of 32 bytes, or these): given one, only a bundle that is encrypted with it is taken.

    `threads` is the number of cores that all compiled code of this process uses; the first load decides, by
    default the physical cores. `observer` is for profiling: it is called on the thread that runs compiled code,
    which its time slows down. Raises BundleError for a damaged, newer or foreign bundle before any of its
    code is loaded, SignatureError where no trusted key signed it, DecryptionError where the key is missing or
    another, BundleKeyError for what is no key, TargetError where the TVM runtime, the device or the package
    cryptography is missing, InputError for an impossible number of threads.
    """
    bundle = read_bundle(path, trusted=trusted, key=key)
    beside = Path(path).resolve().parent
    target = bundle.manifest.target
    load_runtime(target.device, beside)
    _check_device(target, str(path))
    machine = _load_library(bundle, str(path))
    factory = _machine(machine, target.device, observer)
    program = Program(factory, bundle.manifest, bundle.weights, threads, beside=beside)
    return LoadedModule(bundle.manifest, lambda: program)


def _check_device(target: TargetSpec, source: str) -> None:
    """Raise TargetError unless the accelerator that the code is for is here."""
    if target.device != "cuda":
        return
    accept_device_code()
    device = tvm_ffi().device(target.device, 0)
    attribute = runtime_function("runtime.GetDeviceAttr")
    if not attribute(_CUDA, 0, _ATTRIBUTE_EXISTS):
        raise TargetError(f"{source} was compiled for CUDA, and {device} is not there: is its driver installed?")
    version = str(attribute(_CUDA, 0, _ATTRIBUTE_COMPUTE_VERSION))
    here = "sm_" + version.replace(".", "")
    if target.device_arch is not None and target.device_arch.rstrip("af") != here:
        raise TargetError(
            f"{source} was compiled for {target.device_arch}; this GPU is {here}. Compile it for cuda:{here}"
        )


def _load_library(bundle: Bundle, source: str) -> Any:
    """What makes the virtual machine of a shared library; one that was encrypted is loaded out of memory."""
    try:
        with (secret_file if bundle.encrypted else folder_file)(bundle.library) as path:
            # By the name of the loader: a file in memory has no extension to tell it by.
            return runtime_function("ffi.Module.load_from_file.so")(path, "so")["vm_load_executable"]
    except OSError as error:
        raise BundleError(
            f"cannot load {source}: its library could not be unpacked in {tempfile.gettempdir()} ({error}). "
            "Name a folder with more space in TMPDIR"
        ) from error
    except (RuntimeError, AttributeError) as error:
        raise BundleError(
            f"cannot load the code of {source}: {error}. If {tempfile.gettempdir()} may not hold programs "
            "(noexec), name another folder in TMPDIR; if a library is missing or too old, compile the model "
            "for this system"
        ) from error


def _machine(load_executable: Any, device: str, observer: Observer | None) -> Callable[[], Main]:
    """What makes the virtual machine and gives its `main`."""

    def make() -> Main:
        machine = load_executable()
        machine["vm_initialization"](*(number for kind in _DEVICES[device] for number in (kind, 0, _POOLED)))
        if observer is not None:
            machine["set_instrument"](_instrument(observer))
        main: Main = machine["main"]
        return main

    return make


def _instrument(observer: Observer) -> Callable[..., None]:
    """The observer as the virtual machine calls it: function, name, whether before, result, arguments."""

    def instrument(function: Any, name: str, before: int, result: Any, *arguments: Any) -> None:
        observer(str(name), bool(before))

    return instrument
