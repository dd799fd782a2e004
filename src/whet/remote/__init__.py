"""Devices over the network: `whet serve` on the board, `whet.Device` here, a tracker that knows all boards.

Like `whet.runtime`, both sides need numpy, zstandard and the TVM runtime only. A server runs the code that it is
sent, for whoever has its key; nothing is encrypted: loopback, an ssh tunnel, or a network that you trust.
"""

from __future__ import annotations

from whet.remote.device import Device, DeviceInfo
from whet.remote.module import RemoteModule
from whet.remote.server import Server
from whet.remote.tracker import Tracker

__all__ = ["Device", "DeviceInfo", "RemoteModule", "Server", "Tracker"]
