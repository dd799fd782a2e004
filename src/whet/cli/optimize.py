"""`whet optimize` and `whet tune`: from a model to a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from whet.cli import models
from whet.cli.keys import Encrypt, Sealing, Sign
from whet.cli.output import Json, console, print_json
from whet.errors import InputError

if TYPE_CHECKING:
    from whet.backends.base import CompiledModule, Report
    from whet.backends.tuning import TuningReport

Model = Annotated[str, typer.Argument(metavar="MODEL", help=models.HELP)]
Target = Annotated[str, typer.Option("--target", "-t", help="The device: `whet targets` lists them.")]
Passes = Annotated[
    Path | None, typer.Option("--passes", "-p", metavar="RECIPE", help="A recipe (TOML): passes and their options.")
]
Seed = Annotated[int | None, typer.Option(help="Of every random choice; else the recipe's, else 0.")]
Database = Annotated[Path | None, typer.Option(help="Folder of tuning records; by default in the user's cache.")]
Reference = "module:attribute"

_TARGETS = (
    '"x86" (this machine) unless given; `whet targets` lists them. Several make one bundle, of which each device takes '
    "the best for it."
)


def optimize(
    model: Model,
    out: Annotated[Path, typer.Option("--out", "-o", help="The bundle to write.")],
    target: Annotated[list[str] | None, typer.Option("--target", "-t", help=_TARGETS)] = None,
    passes: Passes = None,
    calibration: Annotated[str | None, typer.Option(metavar=Reference, help="Batches of inputs to observe.")] = None,
    train: Annotated[str | None, typer.Option(metavar=Reference, help="Batches (*inputs, labels).")] = None,
    evaluate: Annotated[str | None, typer.Option(metavar=Reference, help="Function model -> quality.")] = None,
    objective: Annotated[str | None, typer.Option(help="The entry of the quality that counts.")] = None,
    seed: Seed = None,
    backend: Annotated[str, typer.Option(help='"tvm", or an installed one.')] = "tvm",
    dump: Annotated[Path | None, typer.Option(help="Folder for the graph's text after each pass.")] = None,
    sign: Sign = None,
    encrypt: Encrypt = None,
    as_json: Json = False,
) -> None:
    """Compress and compile a model, and write the bundle that `whet run` and whet.load run on the device."""
    sealing = Sealing.checked(sign, encrypt)
    given = {"calibration": calibration, "train": train, "evaluate": evaluate, "objective": objective, "seed": seed}
    compiled = [
        # models and generators are made anew: a pass may train one, and data is used up
        _optimize(_arguments(model, passes, given), name, backend=backend, dump=dump)
        for name in target or ("x86",)
    ]
    _save(compiled, out, sealing)
    _report(compiled, out, as_json)


def tune(
    model: Model,
    target: Target = "x86",
    passes: Passes = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Also write the tuned bundle.")] = None,
    trials: Annotated[int | None, typer.Option(help="Candidates in all; by default as many as fit the time.")] = None,
    time_limit: Annotated[float, typer.Option(help="Seconds in all.")] = 1200.0,
    patience: Annotated[int, typer.Option(help="Candidates without a better one, after which a kernel is left.")] = 32,
    database: Database = None,
    device: Annotated[
        list[str] | None, typer.Option("--device", metavar="rpc://HOST:PORT", help="Measure there; may be repeated.")
    ] = None,
    tracker: Annotated[
        str | None, typer.Option(metavar="rpc://HOST:PORT", help="Measure on all boards of this tracker.")
    ] = None,
    seed: Seed = None,
    sign: Sign = None,
    encrypt: Encrypt = None,
    as_json: Json = False,
) -> None:
    """Search for faster kernels on the device; what is found serves every later `whet optimize` for it.

    Ctrl-C keeps what was found: the same command goes on from there. The key of boards is taken from WHET_KEY.
    """
    from whet.backends.tuning import Tuning
    from whet.remote import Device

    sealing = Sealing.checked(sign, encrypt)
    if out is None and sealing.asked:
        raise InputError("--sign and --encrypt are for the bundle that --out names: give --out FILE")
    arguments = _arguments(model, passes, {"seed": seed})
    boards = [Device(url) for url in device or ()] + (Device.tracked(tracker) if tracker else [])
    tuning = Tuning(trials=trials, time_limit=time_limit, patience=patience, database=database, runner=boards or None)
    compiled = _optimize(arguments, target, tuning=tuning)
    if out is not None:
        _save([compiled], out, sealing)
    _report([compiled], out, as_json)


def _arguments(model: str, recipe: Path | None, given: dict[str, Any]) -> dict[str, Any]:
    """What `whet.optimize` is called with: the command line's word before the recipe's, and that before the model's."""
    from whet.passes.recipe import Recipe, read_recipe
    from whet.passes.references import resolve

    # read first: a mistake in it is found before the model is made
    read = Recipe(()) if recipe is None else read_recipe(recipe)
    arguments = models.read_model(model)
    arguments["passes"] = read.passes
    for name in ("calibration", "train", "evaluate", "objective", "seed"):
        value = given.get(name) if given.get(name) is not None else getattr(read, name)
        if value is not None:
            arguments[name] = resolve(value) if name in ("calibration", "train", "evaluate") else value
    return arguments


def _optimize(arguments: dict[str, Any], target: str, **more: Any) -> CompiledModule:
    import whet

    model = arguments.pop("model")
    return whet.optimize(model, target, **arguments, **more)


def _save(compiled: Sequence[CompiledModule], out: Path, sealing: Sealing) -> None:
    """One bundle, fat where there are several modules."""
    if len(compiled) == 1:
        compiled[0].save(out, sign=sealing.sign, encrypt=sealing.encrypt)
        return
    import whet

    whet.save_fat(out, compiled, sign=sealing.sign, encrypt=sealing.encrypt)


def _report(compiled: Sequence[CompiledModule], out: Path | None, as_json: bool) -> None:
    reports = [item.report() for item in compiled]
    if as_json:
        shown = [_as_json(report, out) for report in reports]
        print_json(shown[0] if len(shown) == 1 else shown)
        return
    for report in reports:
        console().print(str(report), markup=False, highlight=False)
    if out is not None:
        console().print(f"{out}: {out.stat().st_size / 1e6:.2f} MB", markup=False)


def _as_json(report: Report, out: Path | None) -> dict[str, Any]:
    return {
        "target": report.target,
        "backend": report.backend,
        "operations": report.operations,
        "kernels": [vars(item) for item in report.kernels],
        "weight_bytes": report.weight_bytes,
        "seconds": report.seconds,
        "passes": [vars(item) for item in report.passes],
        "tuning": None if report.tuning is None else _tuning_as_json(report.tuning),
        "bundle": None if out is None else str(out),
        "bundle_bytes": None if out is None else out.stat().st_size,
    }


def _tuning_as_json(tuned: TuningReport) -> dict[str, Any]:
    return {
        "speedup": tuned.speedup,
        "seconds": tuned.seconds,
        "tasks": [vars(item) for item in tuned.tasks],
        "untuned": tuned.untuned,
        "lost": dict(tuned.lost),
    }
