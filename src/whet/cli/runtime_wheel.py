"""`whet runtime-wheel`: the small wheel that a device installs beside whet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from whet.cli.output import Json, console, kilobytes, print_json


def runtime_wheel(
    source: Annotated[
        Path | None,
        typer.Argument(help="A wheel of apache-tvm, or a folder where it is installed; else this Python's own."),
    ] = None,
    platform: Annotated[
        str | None, typer.Option(metavar="TAG", help="Download that of another platform: manylinux_2_28_aarch64.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="The folder to write to.")] = Path(),
    as_json: Json = False,
) -> None:
    """Make a wheel of TVM's runtime library alone (3 MB), for devices: `pip install whet whet_runtime-*.whl` there."""
    from whet.runtime_wheel import make_runtime_wheel

    path = make_runtime_wheel(out, source, platform)
    if as_json:
        print_json({"wheel": path, "bytes": path.stat().st_size})
        return
    console().print(f"{path}, {kilobytes(path.stat().st_size)}", markup=False, highlight=False)
