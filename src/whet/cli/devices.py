"""`whet devices`: what this machine is to Whet."""

from __future__ import annotations

import os
from typing import Any

from whet.cli.output import Json, add_row, console, plain_table, print_json
from whet.errors import TargetError
from whet.runtime.cpu import host_arch, host_features, host_os, physical_cores
from whet.runtime.executor import default_threads
from whet.runtime.library import runtime_library


def devices(as_json: Json = False) -> None:
    """Show this machine's processor, its features, and where the TVM runtime is."""
    found = _here()
    if as_json:
        print_json(found)
        return
    table = plain_table("", "")
    table.show_header = False
    for name, value in found.items():
        add_row(table, name.replace("_", " "), ", ".join(value) if isinstance(value, list) else value)
    console().print(table)


def _here() -> dict[str, Any]:
    try:
        runtime = str(runtime_library())
    except TargetError as error:
        runtime = f"missing: {error}"
    return {
        "architecture": host_arch(),
        "system": host_os(),
        "features": sorted(host_features()),
        "logical_processors": os.cpu_count(),
        "physical_cores": physical_cores(),
        "threads": default_threads(),
        "runtime": runtime,
    }
