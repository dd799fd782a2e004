"""A board as the host sees it."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import whet.errors
from whet.errors import DecryptionError, DeviceError, WhetError
from whet.remote.module import RemoteModule
from whet.remote.tracker import tracked
from whet.remote.wire import Address, Lost, Wire, pack_tensors, unpack_tensors
from whet.runtime.bundle import read_manifest
from whet.runtime.safetensors import RawTensor

KEY_VARIABLE: Final = "WHET_KEY"
_HELLO_SECONDS: Final = 30.0
_GRACE_SECONDS: Final = 30.0
"""A board ends what takes longer than its limit by itself; one that does not answer even so long after is gone."""


@dataclass(frozen=True)
class DeviceInfo:
    """What a board says of itself; `memory` in bytes, `features` by LLVM's names."""

    name: str
    arch: str
    os: str
    features: tuple[str, ...]
    cores: int
    threads: int
    memory: int
    system: str
    whet: str


class Device:
    """A board on which `whet serve` runs.

    Connects when it is first used, and again where the connection was lost. Requests of several threads take turns.

    Args:
        url: "rpc://host:port".
        key: the server's; None: the environment variable WHET_KEY.
        limit: seconds that one request may take on the board; then its code is ended.

    Raises DeviceError for an address that is none, or without a key.
    """

    def __init__(self, url: str, key: str | None = None, *, limit: float = 600.0) -> None:
        key = key or os.environ.get(KEY_VARIABLE)
        if not key:
            raise DeviceError(f"{url} needs a key: give key=, or set {KEY_VARIABLE}; `whet serve` prints it")
        self.address = Address.parse(url)
        self.limit = limit
        self._key = key.encode()
        self._lock = threading.Lock()
        self._wire: Wire | None = None
        self._info: DeviceInfo | None = None
        self._sessions = 0

    @classmethod
    def tracked(cls, url: str, key: str | None = None, *, name: str = "", limit: float = 600.0) -> list[Device]:
        """The boards that the tracker at `url` knows; with a `name`, those of that name. Raises DeviceError."""
        at_tracker = cls(url, key)
        boards = tracked(at_tracker.address, at_tracker._key)
        found = [board for board in boards if name in ("", board["name"])]
        if not found:
            raise DeviceError(
                f"the tracker {url} knows no board" + (f" {name!r}" if name else "") + f"; it has "
                f"{', '.join(str(board['name']) for board in boards) or 'none'}"
            )
        shared = at_tracker._key.decode()
        return [cls(str(Address(board["host"], board["port"])), shared, limit=limit) for board in found]

    @property
    def info(self) -> DeviceInfo:
        """What the board is. Raises DeviceError where it cannot be reached."""
        if self._info is None:
            with self._lock:
                self._connected()
        assert self._info is not None
        return self._info

    def load(self, path: str | os.PathLike[str], threads: int | None = None) -> RemoteModule:
        """A bundle on the board. Raises what `whet.load` there raises, and DeviceError."""
        try:
            manifest = read_manifest(path, variant=0)
        except DecryptionError as error:
            raise DecryptionError(
                f"{path} is encrypted: load it on the device that holds its key, which is not sent over the network"
            ) from error
        # of a fat bundle the board chooses the variant: all of them take and give the same
        return RemoteModule(self, manifest, Path(path).read_bytes(), threads)

    def run_kernel(
        self,
        library: bytes,
        arguments: Sequence[RawTensor],
        outputs: Sequence[tuple[str, tuple[int, ...]]],
        weights: Sequence[int],
        limit: float,
    ) -> tuple[list[RawTensor], float]:
        """What the kernel of a shared library computes, and seconds of a call: `whet.runtime.kernel_runs.run_kernel`.

        Raises DeviceError.
        """
        heads, parts = pack_tensors(arguments)
        described = [[dtype, list(shape)] for dtype, shape in outputs]
        head = {"do": "kernel", "tensors": heads, "outputs": described, "weights": list(weights), "limit": limit}
        answer, blobs = self.ask(head, [library, *parts])
        return unpack_tensors(answer["tensors"], blobs), float(answer["seconds"])

    @property
    def connected(self) -> bool:
        """Whether there is a connection."""
        return self._wire is not None

    def session(self) -> int:
        """The number of the present connection, which is made where there is none: what was loaded in one before is
        gone with it. Raises DeviceError.
        """
        with self._lock:
            self._connected()
            return self._sessions

    def ask(
        self, head: dict[str, Any], parts: Sequence[bytes] = (), session: int | None = None
    ) -> tuple[dict[str, Any], list[bytes]]:
        """A request and its answer.

        `session` is the one that the request belongs to: a later one does not know of what was loaded then. Raises
        DeviceError where the board is lost, SessionLost where the session is, and what the board raised.
        """
        head = {"limit": self.limit, **head}
        with self._lock:
            wire = self._connected()
            if session is not None and session != self._sessions:
                raise SessionLost(f"{self} was connected anew")
            try:
                wire.send(head, parts)
                answer, blobs = wire.receive(float(head["limit"]) + _GRACE_SECONDS)
            except Lost as error:
                self._drop()
                raise DeviceError(f"{self} was lost in {head['do']!r}: {error}") from error
            except BaseException:
                # an answer that is still to come would be taken for that of the next request
                self._drop()
                raise
        if "error" in answer:
            raise _error(answer["error"])(f"{self}: {answer['message']}")
        return answer, blobs

    def close(self) -> None:
        """End the connection; the next use makes another."""
        with self._lock:
            self._drop()

    def _connected(self) -> Wire:
        if self._wire is not None:
            return self._wire
        wire = Wire.connect(self.address, self._key)
        try:
            wire.send({"do": "hello"})
            answer, _ = wire.receive(_HELLO_SECONDS)
            info = dict(answer["info"])
            self._info = DeviceInfo(**(info | {"features": tuple(info["features"])}))
        except (Lost, KeyError, TypeError) as error:
            wire.close()
            raise DeviceError(f"{self.address} does not answer as a whet server: {error}") from error
        self._wire = wire
        self._sessions += 1
        return wire

    def _drop(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def __str__(self) -> str:
        return str(self.address) if self._info is None else f"{self._info.name} ({self.address})"

    def __repr__(self) -> str:
        return f"Device({str(self.address)!r})"


class SessionLost(DeviceError):
    """The board is there, but what was loaded on it is not."""


def _error(name: str) -> type[WhetError]:
    """The kind of error that the board raised."""
    found = getattr(whet.errors, name, None)
    return found if isinstance(found, type) and issubclass(found, WhetError) else DeviceError
