"""`whet run`: a bundle on inputs from files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from whet.cli.inputs import Files, Sizes, Threads, read_inputs
from whet.cli.keys import Bundle, Key, Trust, check_for_board
from whet.cli.output import Json, add_row, console, plain_table, print_json
from whet.remote import Device
from whet.runtime import load
from whet.runtime.structure import flatten

_SHOWN = 5
"""Elements of an output that are printed."""

Board = Annotated[
    str | None, typer.Option(metavar="rpc://HOST:PORT", help="A board that runs `whet serve`; its key: WHET_KEY.")
]


def run_bundle(
    bundle: Bundle,
    files: Files = None,
    size: Sizes = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", metavar="FILE.npz", help="Write the outputs.")] = None,
    seed: Annotated[int, typer.Option(help="Of random inputs.")] = 0,
    threads: Threads = None,
    device: Board = None,
    trust: Trust = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Run a bundle once, here or on a board, and print its outputs."""
    start = time.perf_counter()
    if device is not None:
        check_for_board(bundle, trust, key)
        module: Any = Device(device).load(bundle, threads)
    else:
        module = load(bundle, threads, trusted=trust or None, key=key)
    loaded = time.perf_counter()
    args, kwargs = read_inputs(module.manifest, files or (), size or (), seed)
    called = time.perf_counter()
    outputs = module(*args, **kwargs)
    seconds = {"load": loaded - start, "call": time.perf_counter() - called}
    leaves = flatten(module.manifest.output_structure, outputs, "output")
    named = {spec.name: np.asarray(leaf) for spec, leaf in zip(module.manifest.outputs, leaves, strict=True)}
    if out is not None:
        with out.open("wb") as file:
            np.savez(file, **named)  # type: ignore[arg-type]
    described = [_described(name, array) for name, array in named.items()]
    if as_json:
        print_json({"outputs": described, "seconds": seconds, "file": None if out is None else str(out)})
        return
    table = plain_table("output", "type", "shape", "min", "max", "mean", "first elements")
    for item in described:
        numbers = (f"{item[key]:.6g}" if item[key] is not None else "" for key in ("min", "max", "mean"))
        add_row(table, item["name"], item["dtype"], item["shape"], *numbers, " ".join(map(str, item["first"])))
    console().print(table)
    console().print(f"loaded in {seconds['load']:.3f} s, first call {seconds['call'] * 1e3:.2f} ms", highlight=False)


def _described(name: str, array: np.ndarray[Any, Any]) -> dict[str, Any]:
    wide = array.astype(np.float64)
    some = bool(wide.size)
    return {
        "name": name,
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "min": float(wide.min()) if some else None,
        "max": float(wide.max()) if some else None,
        "mean": float(wide.mean()) if some else None,
        "first": [f"{item:.6g}" for item in wide.reshape(-1)[:_SHOWN]],
    }
