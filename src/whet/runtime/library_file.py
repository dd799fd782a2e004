"""The file that the system's loader takes a library from: it loads from files only."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

# memfd_create(2): Linux only. fcntl has these names in Python 3.12 and later only.
_ADD_SEALS: Final = 1033
_SEALS: Final = 1 | 2 | 4 | 8
"""F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE: what was verified is what runs."""


@contextmanager
def folder_file(library: bytes) -> Iterator[str]:
    """A file in a folder of its own, which is closed to other users. Raises OSError."""
    with tempfile.TemporaryDirectory(prefix="whet-") as folder:
        path = Path(folder) / "lib.so"
        path.write_bytes(library)
        yield str(path)


@contextmanager
def secret_file(library: bytes) -> Iterator[str]:
    """A file in memory, for code that must not come to a disk; where the system has none, or runs no code in them,
    a file in a folder that is closed to other users. Raises OSError.
    """
    descriptor = _in_memory(library)
    if descriptor is None:
        with folder_file(library) as path:
            yield path
        return
    try:
        yield _path_of(descriptor)
    finally:
        os.close(descriptor)


def _path_of(descriptor: int) -> str:
    return f"/proc/self/fd/{descriptor}"


def _in_memory(library: bytes) -> int | None:
    if not hasattr(os, "memfd_create"):
        return None
    try:
        descriptor = os.memfd_create("whet", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    except OSError:
        return None
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(library)
        fcntl.fcntl(descriptor, _ADD_SEALS, _SEALS)
        # A system may forbid to run what is in such a file.
        mmap.mmap(descriptor, 1, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC).close()
        descriptor = _with_a_name_of_its_own(descriptor)
        if os.access(_path_of(descriptor), os.R_OK):
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


def _with_a_name_of_its_own(descriptor: int) -> int:
    """The loader takes two files of one name for one library, and a library stays loaded after its file is closed."""
    while _is_loaded(_path_of(descriptor)):
        another = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, descriptor + 1)
        os.close(descriptor)
        descriptor = another
    return descriptor


def _is_loaded(path: str) -> bool:
    with suppress(OSError):
        # Never unloaded by ctypes, and that is right: it was loaded before.
        ctypes.CDLL(path, os.RTLD_NOLOAD | os.RTLD_LAZY)
        return True
    return False
