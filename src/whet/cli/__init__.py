"""The command `whet`. It needs the extra `cli` (typer and rich), which `compile` brings."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0 done, 1 an error that the user can mend, 2 wrong usage, 3 a defect of Whet,
    130 interrupted.
    """
    try:
        from whet.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "click"):
            raise
        print(f"whet: the command needs {error.name}: pip install 'whet[cli]'", file=sys.stderr)
        return 1
    return run(sys.argv[1:] if arguments is None else list(arguments))


def entry_point() -> None:
    """The installed command."""
    raise SystemExit(main())
