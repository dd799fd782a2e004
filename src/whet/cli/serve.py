"""`whet serve` and `whet tracker`: this machine for others, and the list of machines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whet.remote import commands, tracker, wire
from whet.remote.server import LOOPBACK

Host = Annotated[str, typer.Option(help=commands.HOST_HELP)]
KeyFile = Annotated[Path | None, typer.Option(metavar="FILE", help=commands.KEY_HELP)]


def serve(
    host: Host = LOOPBACK[0],
    port: Annotated[int, typer.Option(help="0: any free one.")] = wire.DEFAULT_PORT,
    key_file: KeyFile = None,
    name: Annotated[str, typer.Option(help="Of this board; by default the host's.")] = "",
    at_tracker: Annotated[
        str | None, typer.Option("--tracker", metavar="rpc://HOST:PORT", help="Tell this tracker of the board.")
    ] = None,
) -> None:
    """Let whoever has the key run models and kernels on this machine, until Ctrl-C."""
    commands.serve(host, port, key_file, name, at_tracker)


def track(
    host: Host = LOOPBACK[0],
    port: Annotated[int, typer.Option(help="0: any free one.")] = tracker.DEFAULT_PORT,
    key_file: KeyFile = None,
) -> None:
    """Keep the list of boards that `whet serve --tracker` tells of themselves, until Ctrl-C."""
    commands.track(host, port, key_file)
