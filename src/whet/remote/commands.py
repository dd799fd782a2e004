"""`whet serve` and `whet tracker`, which a board must run without the packages that the other commands want."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from whet.errors import DeviceError, WhetError
from whet.remote import tracker, wire
from whet.remote.device import KEY_VARIABLE
from whet.remote.server import LOOPBACK, Server, make_key
from whet.remote.tracker import Tracker

SERVE_HELP: Final = "Let whoever has the key run models and kernels on this machine, until Ctrl-C."
TRACK_HELP: Final = "Keep the list of boards that `whet serve --tracker` tells of themselves, until Ctrl-C."
HOST_HELP: Final = "Address to listen on: other machines reach it on another than loopback only."
KEY_HELP: Final = f"Holds the key; else {KEY_VARIABLE}, else a new one is made and printed."
NAMES: Final = ("serve", "tracker")
_INTERRUPTED: Final = 130


def serve(host: str, port: int, key_file: Path | None, name: str, at_tracker: str | None) -> None:
    """Serve until interrupted. Raises DeviceError."""
    server = Server(
        key=_key(key_file), host=host, port=port, name=name or socket.gethostname(), tracker=at_tracker, say=_say
    )
    _warn(host)
    _say(f"{server.name} serves on {server.address}")
    server.run()


def track(host: str, port: int, key_file: Path | None) -> None:
    """Track boards until interrupted. Raises DeviceError."""
    served = Tracker(_key(key_file), host, port, _say)
    _warn(host)
    _say(f"tracking on {served.address}")
    served.run()


def main(arguments: Sequence[str]) -> int:
    """The two commands without typer; the exit status, as of `whet.cli.main`."""
    parser = argparse.ArgumentParser(prog="whet", description="Commands of a board.")
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve", description=SERVE_HELP)
    tracking = commands.add_parser("tracker", description=TRACK_HELP)
    for one, port in ((serving, wire.DEFAULT_PORT), (tracking, tracker.DEFAULT_PORT)):
        one.add_argument("--host", default=LOOPBACK[0], help=HOST_HELP)
        one.add_argument("--port", type=int, default=port, help="0: any free one")
        one.add_argument("--key-file", type=Path, help=KEY_HELP)
    serving.add_argument("--name", default="", help="of this board; by default the host's")
    serving.add_argument("--tracker", metavar="rpc://HOST:PORT", help="tell this tracker of the board")
    options = parser.parse_args(arguments)
    try:
        if options.command == "serve":
            serve(options.host, options.port, options.key_file, options.name, options.tracker)
        else:
            track(options.host, options.port, options.key_file)
    except WhetError as error:
        print(f"whet: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    return 0


def _key(file: Path | None) -> str:
    if file is not None:
        try:
            return file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise DeviceError(f"cannot read the key in {file}: {error}") from error
    given = os.environ.get(KEY_VARIABLE)
    if given:
        return given
    made = make_key()
    _say(f"key: {made}  (clients need it: whet.Device(..., key=), or {KEY_VARIABLE})")
    return made


def _warn(host: str) -> None:
    if host not in LOOPBACK:
        print(
            f"whet: warning: {host} can be reached from the network: whoever has the key runs code here as this user, "
            "and nothing is encrypted. On a network that you do not trust, stay on 127.0.0.1 behind an ssh tunnel.",
            file=sys.stderr,
        )


def _say(text: str) -> None:
    # whoever waits for the address reads it through a pipe
    print(text, flush=True)
