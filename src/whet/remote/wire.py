"""Messages between two machines: a JSON object and any number of binary parts; both sides prove that they have the key.

The proof is `multiprocessing.connection`'s challenge (HMAC over a random message), in both directions. Nothing is
pickled: what arrives is JSON and bytes.
"""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, answer_challenge, deliver_challenge
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np

from whet.errors import DeviceError
from whet.runtime.dtypes import DTYPES
from whet.runtime.safetensors import RawTensor

DEFAULT_PORT: Final = 9190
SCHEME: Final = "rpc"
_HEAD_LIMIT: Final = 64 << 20
_PART_LIMIT: Final = 8 << 30
_MOST_PARTS: Final = 4096
_CONNECT_SECONDS: Final = 10.0
_STALL_SECONDS: Final = 60.0
"""A message that has begun to arrive goes on within this time, or its sender is gone."""


class Lost(Exception):
    """The other side is gone, or does not answer in time."""


@dataclass(frozen=True)
class Address:
    """Where a server listens."""

    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> Address:
        """ "rpc://host:port"; without a port, 9190. Raises DeviceError."""
        parts = urlsplit(url)
        try:
            port = parts.port or DEFAULT_PORT
        except ValueError as error:
            raise DeviceError(f"{url!r}: {error}") from error
        if parts.scheme != SCHEME or not parts.hostname or parts.path not in ("", "/"):
            raise DeviceError(f"{url!r} is no address of a device: write rpc://host:port")
        return cls(parts.hostname, port)

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{SCHEME}://{host}:{self.port}"


class Wire:
    """One connection, whose other side has the same key."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @classmethod
    def connect(cls, address: Address, key: bytes) -> Wire:
        """Reach a server. Raises DeviceError: nobody there, or another key."""
        try:
            made = socket.create_connection((address.host, address.port), timeout=_CONNECT_SECONDS)
        except OSError as error:
            raise DeviceError(f"{address} cannot be reached: {error}. Is `whet serve` running there?") from error
        connection = _connection(made)
        try:
            answer_challenge(connection, key)
            deliver_challenge(connection, key)
        except AuthenticationError as error:
            connection.close()
            raise DeviceError(f"{address} refused the key: `whet serve` printed or was given another one") from error
        except (OSError, EOFError) as error:
            connection.close()
            raise DeviceError(f"{address} is no whet server, or ended the connection: {error}") from error
        return cls(connection)

    @classmethod
    def accept(cls, client: socket.socket, key: bytes) -> Wire:
        """The server's side of a fresh connection. Raises Lost for a client without the key."""
        connection = _connection(client)
        try:
            deliver_challenge(connection, key)
            answer_challenge(connection, key)
        except (AuthenticationError, OSError, EOFError) as error:
            connection.close()
            raise Lost(f"no proof of the key: {error}") from error
        return cls(connection)

    def send(self, head: Mapping[str, Any], parts: Sequence[Any] = ()) -> None:
        """Raises Lost."""
        try:
            self._connection.send_bytes(json.dumps({**head, "parts": len(parts)}).encode())
            for part in parts:
                self._connection.send_bytes(part)
        except OSError as error:
            raise Lost(str(error)) from error

    def receive(self, seconds: float | None = None) -> tuple[dict[str, Any], list[bytes]]:
        """The next message. Raises Lost where none comes within `seconds` (None: ever), or the other side ends."""
        try:
            if not self._connection.poll(seconds):
                raise Lost(f"no answer within {seconds:g} s")
            head = json.loads(self._connection.recv_bytes(_HEAD_LIMIT))
            count = head.pop("parts")
            if not (type(count) is int and 0 <= count <= _MOST_PARTS):
                raise Lost(f"a message of {count} parts")
            return head, [self._connection.recv_bytes(_PART_LIMIT) for _ in range(count)]
        except (OSError, EOFError) as error:
            raise Lost(str(error) or "the connection ended") from error
        except (ValueError, KeyError, AttributeError) as error:
            raise Lost(f"not a message of whet: {error}") from error

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def _connection(made: socket.socket) -> Connection:
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    # python's own time limits would make the descriptor non-blocking, which a Connection cannot use
    made.settimeout(None)
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        made.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", int(_STALL_SECONDS), 0))
    return Connection(made.detach())


def pack_tensors(tensors: Sequence[RawTensor]) -> tuple[list[dict[str, Any]], list[Any]]:
    """Types and shapes for the head of a message, and the bytes for its parts."""
    heads = [{"dtype": item.dtype, "shape": list(item.array.shape)} for item in tensors]
    return heads, [np.ascontiguousarray(item.array).tobytes() for item in tensors]


def unpack_tensors(heads: Sequence[Mapping[str, Any]], parts: Sequence[bytes]) -> list[RawTensor]:
    """What `pack_tensors` packed. Raises ValueError where sizes do not fit."""
    return [_tensor(head, part) for head, part in zip(heads, parts, strict=True)]


def _tensor(head: Mapping[str, Any], part: bytes) -> RawTensor:
    element = DTYPES[head["dtype"]]
    # a copy, so that compiled code may be given its address: bytes cannot be written to
    array = np.frombuffer(bytearray(part), element.storage).reshape(head["shape"])
    return RawTensor(element.name, array)
