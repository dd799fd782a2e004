"""`whet tracker`: knows which boards there are. Boards tell it of themselves; clients ask, then go to the boards."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from whet.errors import DeviceError
from whet.remote.wire import Address, Lost, Wire

DEFAULT_PORT: Final = 9189
_HEARTBEAT_SECONDS: Final = 5.0
_SILENCE_SECONDS: Final = 15.0
"""A board that says nothing for so long is gone."""
_AGAIN_SECONDS: Final = 5.0

Say = Callable[[str], None]


@dataclass(frozen=True)
class Announcement:
    """A board as it speaks of itself: its name, the port that it listens on, and what it is."""

    name: str
    port: int
    info: Mapping[str, Any]


class Tracker:
    """The list of boards.

    Args:
        key: that boards and clients must have.
        host, port: where it listens; port 0 takes a free one, which is in `address` then.
        say: is told what happens.

    Raises DeviceError where it cannot listen there.
    """

    def __init__(self, key: str, host: str = "127.0.0.1", port: int = DEFAULT_PORT, say: Say = print) -> None:
        if len(key) < 8:
            raise DeviceError("the key must have at least 8 characters")
        self._key = key.encode()
        self._say = say
        self._boards: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()
        try:
            self._listener = socket.create_server((host, port))
        except OSError as error:
            raise DeviceError(f"cannot listen on {host}:{port}: {error.strerror or error}") from error
        self.address = Address(host, self._listener.getsockname()[1])

    def run(self) -> None:
        """Serve until interrupted or closed."""
        number = 0
        while True:
            try:
                client, peer = self._listener.accept()
            except OSError:
                return
            number += 1
            threading.Thread(target=self._serve, args=(number, client, str(peer[0])), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        # close alone does not wake a thread that waits in accept
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def boards(self) -> list[dict[str, Any]]:
        """The boards that are there now."""
        with self._lock:
            return sorted(self._boards.values(), key=lambda board: str(board["name"]))

    def _serve(self, number: int, client: socket.socket, peer: str) -> None:
        try:
            wire = Wire.accept(client, self._key)
        except Lost as error:
            self._say(f"{peer}: refused: {error}")
            return
        try:
            while True:
                head, _ = wire.receive(_SILENCE_SECONDS)
                if head.get("do") == "announce":
                    self._note(number, peer, head)
                wire.send({"boards": self.boards()} if head.get("do") == "list" else {})
        except Lost as error:
            with self._lock:
                board = self._boards.pop(number, None)
            if board is not None:
                self._say(f"{board['name']} at {board['host']}:{board['port']} is gone: {error}")
        finally:
            wire.close()

    def _note(self, number: int, peer: str, head: Mapping[str, Any]) -> None:
        board = {"name": str(head["name"]), "host": peer, "port": int(head["port"]), "info": head["info"]}
        with self._lock:
            self._boards[number] = board
        self._say(f"{board['name']} at {peer}:{board['port']} is there")


def announce(tracker: Address, key: bytes, board: Announcement, say: Say) -> None:
    """Tell a tracker of a board for as long as this process runs; again where the connection is lost."""
    while True:
        try:
            wire = Wire.connect(tracker, key)
            wire.send({"do": "announce", "name": board.name, "port": board.port, "info": dict(board.info)})
            while True:
                wire.receive(_SILENCE_SECONDS)
                time.sleep(_HEARTBEAT_SECONDS)
                wire.send({"do": "alive"})
        except (DeviceError, Lost) as error:
            say(f"the tracker {tracker} does not answer ({error}); trying again in {_AGAIN_SECONDS:g} s")
            time.sleep(_AGAIN_SECONDS)


def tracked(tracker: Address, key: bytes) -> list[dict[str, Any]]:
    """The boards that a tracker knows. Raises DeviceError."""
    wire = Wire.connect(tracker, key)
    try:
        wire.send({"do": "list"})
        head, _ = wire.receive(_SILENCE_SECONDS)
        boards: list[dict[str, Any]] = head["boards"]
        return boards
    except (Lost, KeyError) as error:
        raise DeviceError(f"the tracker {tracker} did not answer: {error}") from error
    finally:
        wire.close()
