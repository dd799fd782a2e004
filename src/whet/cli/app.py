"""The commands together, and what becomes of their errors."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Final

import typer

import whet
from whet.cli.bench import bench
from whet.cli.catalogues import passes, targets
from whet.cli.devices import devices
from whet.cli.inspect import inspect
from whet.cli.keys import keygen, sign, verify
from whet.cli.optimize import optimize, tune
from whet.cli.run import run_bundle
from whet.cli.runtime_wheel import runtime_wheel
from whet.cli.serve import serve, track
from whet.errors import InternalError, WhetError

DEBUG: Final = "--debug"
OK: Final = 0
FAILED: Final = 1
DEFECT: Final = 3
INTERRUPTED: Final = 130

COMMANDS: Final[Mapping[str, Callable[..., None]]] = {
    "optimize": optimize,
    "tune": tune,
    "run": run_bundle,
    "bench": bench,
    "inspect": inspect,
    "keygen": keygen,
    "sign": sign,
    "verify": verify,
    "targets": targets,
    "passes": passes,
    "devices": devices,
    "serve": serve,
    "tracker": track,
    "runtime-wheel": runtime_wheel,
}


def run(arguments: Sequence[str]) -> int:
    """Run a command line without the program's name; the exit status (see `whet.cli.main`)."""
    app = make_app(debug=DEBUG in arguments)
    try:
        app([item for item in arguments if item != DEBUG], prog_name="whet")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else OK
    return OK


def make_app(debug: bool) -> typer.Typer:
    """The commands; `debug` shows stack traces."""
    app = typer.Typer(
        name="whet",
        help="Sharpen a trained PyTorch model for one device: compress it, compile it, run it there.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name, command in COMMANDS.items():
        app.command(name)(_guarded(command, debug))
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        print(whet.__version__)
        raise typer.Exit


def _options(
    debug: Annotated[bool, typer.Option(DEBUG, help="Show where an error came from (anywhere in the line).")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Nothing but the options that all commands have."""


def _guarded(command: Callable[..., None], debug: bool) -> Callable[..., None]:
    """The command, with errors as one line and an exit status."""

    @functools.wraps(command)
    def guarded(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt as error:
            raise _complaint("interrupted", error, INTERRUPTED, debug) from error
        except WhetError as error:
            raise _complaint(f"error: {error}", error, FAILED, debug) from error
        except InternalError as error:
            message = f"a defect of Whet ({type(error).__name__}), please report it: {error}"
            raise _complaint(message, error, DEFECT, debug) from error

    return guarded


def _complaint(message: str, error: BaseException, status: int, debug: bool) -> typer.Exit:
    if debug:
        traceback.print_exception(error)
    notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
    print(f"whet: {message}{notes}", file=sys.stderr)
    return typer.Exit(status)
