"""Boards as runners: each candidate is built here, sent over TVM's RPC, checked and timed there.

An RPC server runs whatever it is sent: loopback or trusted networks only.
"""

from __future__ import annotations

from typing import Any, Self

from whet.backends.tvm.link import find_linker
from whet.backends.tvm.tuning.runner import LocalRunner
from whet.errors import TuningError
from whet.ir.target import Target

_SESSION_SECONDS = 60


class RemoteRunner(LocalRunner):
    """Boards that a tracker lends by key, or one RPC server.

    Args:
        host, port: of the tracker, or of the server.
        key: what the tracker calls the boards; None: there is no tracker, and one board.
        boards: how many are used at once; None: as many as the tracker has free.
    """

    def __init__(self, host: str, port: int, key: str | None = None, boards: int | None = None) -> None:
        super().__init__(threads=1)
        self.host = host
        self.port = port
        self.key = key
        self.boards = boards

    def remotes(self) -> list[dict[str, Any] | None]:
        """The same place for every worker: the tracker gives each a board of its own."""
        if self.boards is None:
            self.boards = 1 if self.key is None else self._free()
        return [{"host": self.host, "port": self.port, "key": self.key}] * self.boards

    def open(self, target: Target, limit: float) -> Self:
        """See `Runner.open`."""
        super().open(target, limit)
        self._settings["link"] = find_linker(target)
        return self

    def _free(self) -> int:
        from tvm import rpc

        try:
            summary = rpc.connect_tracker(self.host, self.port).summary()
        except Exception as error:
            raise TuningError(f"no tracker answers at {self.host}:{self.port}: {error}") from error
        free = int(summary["queue_info"].get(self.key, {}).get("free", 0))
        if not free:
            raise TuningError(f"the tracker at {self.host}:{self.port} has no free board of key {self.key!r}")
        return free


def session_for(remote: dict[str, Any]) -> Any:
    """A session on a board; in the child that measures one candidate, so that one that hangs is killed with it."""
    from tvm import rpc

    if remote["key"] is None:
        return rpc.connect(remote["host"], remote["port"], session_timeout=_SESSION_SECONDS)
    tracker = rpc.connect_tracker(remote["host"], remote["port"])
    return tracker.request(remote["key"], session_timeout=_SESSION_SECONDS)
