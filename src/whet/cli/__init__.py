"""The command `whet`. It needs the extra `cli` (typer and rich), which `compile` brings; `whet serve` does not."""

from __future__ import annotations

import sys
from collections.abc import Sequence

_EXTRA = ("typer", "rich")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status: 0 done, 1 an error that the user can mend, 2 wrong usage, 3 a defect of Whet,
    130 interrupted.
    """
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        from whet.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        return _without_extra(given, str(error.name))
    return run(given)


def _without_extra(arguments: Sequence[str], missing: str) -> int:
    """What a board can do that has the least of packages."""
    from whet.remote import commands

    if arguments and arguments[0] in commands.NAMES:
        return commands.main(arguments)
    print(f"whet: this command needs {missing}: pip install 'whet[cli]'", file=sys.stderr)
    return 1


def entry_point() -> None:
    """The installed command."""
    raise SystemExit(main())
