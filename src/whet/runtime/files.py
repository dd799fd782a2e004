"""Files that are written whole or not at all, and what the system's errors with them mean."""

from __future__ import annotations

import errno
import io
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, Final

from whet.errors import BundleError

WRITING: Final[Mapping[int, str]] = {
    errno.ENOSPC: "the disk is full: free some space or save to another one",
    errno.EDQUOT: "the disk quota is used up: free some space or save to another disk",
    errno.EFBIG: "the file is larger than the system allows: raise the limit (ulimit -f) or save elsewhere",
    errno.EACCES: "no permission: choose a folder that this user may write to",
    errno.EPERM: "no permission: choose a folder that this user may write to",
    errno.EROFS: "the file system is read-only: choose another folder",
    errno.ENOENT: "the folder does not exist: make it first",
    errno.ENOTDIR: "a part of the path is a file, not a folder: choose another path",
    errno.EISDIR: "it is a folder: give the name of a file in it",
    errno.ENAMETOOLONG: "the name is too long: choose a shorter one",
}
READING: Final[Mapping[int, str]] = {
    errno.ENOENT: "there is no such file",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "it is a folder: give the name of a file in it",
    errno.EACCES: "no permission to read it",
}


@contextmanager
def io_errors(doing: str, ways_out: Mapping[int, str]) -> Iterator[None]:
    """Turn errors of the system into BundleError, with the reason that the table has for them."""
    try:
        yield
    except OSError as error:
        reason = ways_out.get(error.errno or 0, error.strerror or str(error))
        raise BundleError(f"{doing}: {reason}") from error


class ReadOnly(io.RawIOBase):
    """A file of a known size that can only be read; `readinto` is left to what it is made of."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move within the file."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position


def write_whole(target: Path, write: Callable[[BinaryIO], None]) -> None:
    """A file that is there whole or not at all."""
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(8)}.tmp")
    # Opened by hand: the modules for temporary files would leave a file that only its owner can read.
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o666)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name durable, where folders can be opened (POSIX)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
