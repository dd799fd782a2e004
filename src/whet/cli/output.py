"""Results for people and for programs."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

Json = Annotated[bool, typer.Option("--json", help="Print JSON on the standard output.")]

_FILE_WIDTH = 160


def console() -> Console:
    """The standard output; wide enough for tables where it is no terminal."""
    here = Console()
    return here if here.is_terminal else Console(width=_FILE_WIDTH)


def print_json(value: Any) -> None:
    """One JSON document."""
    json.dump(value, sys.stdout, indent=1, default=str)
    sys.stdout.write("\n")


def plain_table(*columns: str, title: str | None = None) -> Table:
    """A table whose cells are text as it is."""
    shown = Table(title=title, title_justify="left")
    for name in columns:
        shown.add_column(name, overflow="fold")
    return shown


def add_row(table: Table, *cells: object) -> None:
    """A row of plain text: square brackets are no markup."""
    from rich.text import Text

    table.add_row(*(Text(str(cell)) for cell in cells))


def kilobytes(size: float) -> str:
    """1234567 -> "1,234.6 kB"."""
    return f"{size / 1e3:,.1f} kB"
