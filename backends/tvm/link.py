"""Linking compiled objects into the shared library of a bundle, with whatever linker this machine has."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from whet.errors import InternalError, TargetError
from whet.ir.target import Target
from whet.runtime.cpu import host_arch, host_os
from whet.runtime.objects import OBJECTS

# First part of the triple -> (Debian's cross compiler, triple for clang, triple for zig with the oldest glibc that
# the TVM runtime runs on).
_LINKERS = {
    "x86_64": ("x86_64-linux-gnu-gcc", "x86_64-linux-gnu", "x86_64-linux-gnu.2.28"),
    "aarch64": ("aarch64-linux-gnu-gcc", "aarch64-linux-gnu", "aarch64-linux-gnu.2.28"),
    "arm": ("arm-linux-gnueabihf-gcc", "arm-linux-gnueabihf", "arm-linux-gnueabihf.2.28"),
}
_STATIC = {"x86_64": "x86_64-linux-musl", "aarch64": "aarch64-linux-musl", "arm": "arm-linux-musleabihf"}
_SHARED = ("-shared", "-fPIC", "-s")
# By operating system. A Mach-O library says which symbols it expects of others; all of the TVM runtime's are.
_LINKING_THERE = {
    "linux": ("cc", *_SHARED),
    "darwin": ("clang", "-arch", "arm64", "-dynamiclib", "-undefined", "dynamic_lookup"),
}


def compiler_name(target: Target) -> str:
    """The C compiler for `target` by its usual name on this machine, there or not."""
    return "cc" if target.arch == host_arch() and host_os() == "linux" else _LINKERS[target.arch][0]


def static_triple(target: Target) -> str:
    """The target in zig's words, with a C library that can be linked into the program."""
    return _STATIC[target.arch]


def find_linker(target: Target) -> list[str]:
    """The command that links a shared library for `target`. Raises TargetError that says what to install."""
    if target.os != "linux":
        raise TargetError(
            f"{target.name}: code for {target.os} is linked there, not here: compiled.save_object(folder) writes the "
            "object files, and says how"
        )
    gcc, clang_triple, zig_triple = _LINKERS[target.arch]
    if target.arch == host_arch() and host_os() == "linux":
        for compiler in ("cc", "gcc", "clang"):
            if shutil.which(compiler):
                return [compiler]
    if shutil.which(gcc):
        return [gcc]
    if shutil.which("clang") and shutil.which("ld.lld"):
        return ["clang", f"--target={clang_triple}", "-fuse-ld=lld", "-nostdlib"]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc", "-target", zig_triple]
    raise TargetError(
        f"no linker for {target.name} ({target.triple}) was found. Install one of: {gcc} (Debian: "
        f"apt-get install gcc-{gcc.removesuffix('-gcc').replace('x86_64', 'x86-64')}), clang with lld, "
        'or the pip package ziglang: pip install "whet[cross]"'
    )


def export_library(executable: Any, path: Path, target: Target) -> None:
    """Write the executable as a shared library. Raises TargetError where linking fails, with the linker's words."""
    executable.export_library(str(path), fcompile=linked_by(find_linker(target), target.name))


def export_objects(executable: Any) -> tuple[bytes, bytes]:
    """The object files of the executable: the kernels, and the program that calls them."""
    found: list[bytes] = []

    def keep(output: str, objects: Sequence[str], options: Sequence[str] | None = None, **_: Any) -> None:
        found.extend(Path(item).read_bytes() for item in objects)

    keep.output_format = "so"  # type: ignore[attr-defined]
    with tempfile.TemporaryDirectory(prefix="whet-") as folder:
        executable.export_library(str(Path(folder) / "lib.so"), fcompile=keep)
    if len(found) != len(OBJECTS):
        raise InternalError(f"the code generator wrote {len(found)} objects in place of {len(OBJECTS)}")
    return found[0], found[1]


def link_command(target: Target) -> tuple[str, ...]:
    """What links a shared library for `target` on a machine of its own system."""
    return _LINKING_THERE[target.os]


def linked_by(linker: Sequence[str], name: str) -> Any:
    """What TVM's `export_library` calls to link objects with a command, for the target of that name."""

    def link(output: str, objects: Sequence[str], options: Sequence[str] | None = None, **_: Any) -> None:
        command = [*linker, *_SHARED, "-o", output, *objects, *(options or ())]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        if finished.returncode:
            raise TargetError(f"linking for {name} failed: {' '.join(command)}\n{finished.stderr}")

    link.output_format = "so"  # type: ignore[attr-defined]
    return link
