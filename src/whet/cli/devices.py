"""`whet devices`: what this machine is to Whet, or a board, or all boards of a tracker."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Annotated, Any

import typer

from whet.cli.output import Json, add_row, console, plain_table, print_json
from whet.errors import TargetError
from whet.remote import Device
from whet.remote.work import board_info
from whet.runtime.finding import runtime_library


def devices(
    device: Annotated[
        list[str] | None, typer.Option("--device", metavar="rpc://HOST:PORT", help="A board; may be repeated.")
    ] = None,
    tracker: Annotated[str | None, typer.Option(metavar="rpc://HOST:PORT", help="All boards of this tracker.")] = None,
    as_json: Json = False,
) -> None:
    """Show this machine's processor, its features, and where the TVM runtime is; or boards (their key: WHET_KEY)."""
    boards = [Device(url) for url in device or ()] + (Device.tracked(tracker) if tracker else [])
    found = [asdict(board.info) | {"address": str(board.address)} for board in boards] or [_here()]
    if as_json:
        print_json(found)
        return
    for item in found:
        table = plain_table("", "")
        table.show_header = False
        for name, value in item.items():
            add_row(table, name, ", ".join(value) if isinstance(value, list | tuple) else value)
        console().print(table)


def _here() -> dict[str, Any]:
    try:
        runtime = str(runtime_library())
    except TargetError as error:
        runtime = f"missing: {error}"
    return board_info(os.uname().nodename) | {"logical_processors": os.cpu_count(), "runtime": runtime}
