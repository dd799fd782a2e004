"""`whet serve`: gives clients this machine, each a process of its own, one at a time while it measures.

A process a client, because compiled code may crash or never end: that costs its client one request, and nobody else
anything. This process loads no compiled code, so that it can start others for as long as the machine runs.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from whet.errors import DeviceError
from whet.remote.tracker import Announcement, announce
from whet.remote.wire import DEFAULT_PORT, Address, Lost, Wire
from whet.remote.work import Work, board_info

LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_TICK_SECONDS: Final = 0.5
_PROOF_SECONDS: Final = 10.0

Say = Callable[[str], None]


def make_key() -> str:
    """A key that nobody guesses: 128 random bits."""
    return secrets.token_urlsafe(16)


@dataclass
class Server:
    """A board's server.

    Args:
        key: that clients must have.
        host: address to listen on; other machines reach it on another than the loopback's only.
        port: 0 takes a free one; it is in `address` then.
        name: of this board, for people.
        tracker: "rpc://host:port" of the tracker that is told of this board; its key is the same.
        say: is told what happens.

    Raises DeviceError where it cannot listen there.
    """

    key: str
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    name: str = field(default_factory=socket.gethostname)
    tracker: str | None = None
    say: Say = print

    def __post_init__(self) -> None:
        if len(self.key) < 8:
            raise DeviceError("the key must have at least 8 characters: it guards this machine")
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            self._listener.bind((self.host, self.port))
        except OSError as error:
            self._listener.close()
            hint = ": choose another --port" if error.errno == errno.EADDRINUSE else ""
            raise DeviceError(f"cannot listen on {self.host}:{self.port}: {error.strerror or error}{hint}") from error
        self._listener.listen()
        self.address = Address(self.host, self._listener.getsockname()[1])
        self._children: dict[int, Path] = {}

    def run(self) -> None:
        """Serve until interrupted; then every client's process ends too."""
        folder = Path(tempfile.mkdtemp(prefix="whet-serve-"))
        self._listener.settimeout(_TICK_SECONDS)
        announcing = self._announce()
        try:
            while True:
                self._reap()
                try:
                    client, peer = self._listener.accept()
                except TimeoutError:
                    continue
                self._start(client, str(peer[0]), folder)
        finally:
            for child in (*self._children, *announcing):
                _end(child)
            self._listener.close()
            shutil.rmtree(folder, ignore_errors=True)

    def _announce(self) -> list[int]:
        """A process that tells the tracker of this board, again where the connection is lost."""
        if self.tracker is None:
            return []
        tracker = Address.parse(self.tracker)
        child = os.fork()
        if child:
            return [child]
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._listener.close()
        info = board_info(self.name)
        try:
            announce(tracker, self.key.encode(), Announcement(self.name, self.address.port, info), self.say)
        finally:
            os._exit(1)

    def _start(self, client: socket.socket, peer: str, folder: Path) -> None:
        place = Path(tempfile.mkdtemp(dir=folder))
        child = os.fork()
        if child:
            client.close()
            self._children[child] = place
            return
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        self._listener.close()
        status = 1
        try:
            self._serve(client, peer, place)
            status = 0
        finally:
            # nothing of the server's own ending may run twice
            os._exit(status)

    def _serve(self, client: socket.socket, peer: str, place: Path) -> None:
        # who connects and says nothing must not stay
        signal.setitimer(signal.ITIMER_REAL, _PROOF_SECONDS)
        try:
            wire = Wire.accept(client, self.key.encode())
        except Lost as error:
            self.say(f"{peer}: refused: {error}")
            return
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.say(f"{peer}: connected")
        try:
            Work(self.name, place, place.parent / "turn").serve(wire)
        except Lost:
            self.say(f"{peer}: left")

    def _reap(self) -> None:
        """Clear up after processes that ended."""
        for child, place in list(self._children.items()):
            done, status = os.waitpid(child, os.WNOHANG)
            if not done:
                continue
            del self._children[child]
            shutil.rmtree(place, ignore_errors=True)
            if os.WIFSIGNALED(status):
                number = os.WTERMSIG(status)
                why = "took too long" if number == signal.SIGALRM else signal.strsignal(number)
                self.say(f"a client's code was ended: {why}")


def _end(child: int) -> None:
    try:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    except (ProcessLookupError, ChildProcessError):
        # it has ended by itself
        return
