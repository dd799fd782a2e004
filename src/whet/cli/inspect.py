"""`whet inspect`: what a bundle holds, without running any of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from whet.cli.drawing import draw_kernels
from whet.cli.keys import Bundle, Key, Trust, shown_encryption, shown_signature
from whet.cli.output import Json, add_row, console, kilobytes, plain_table, print_json
from whet.errors import BundleError, InputError
from whet.runtime.bundle import Trusted, read_manifest, read_variants
from whet.runtime.fat import best_variant
from whet.runtime.host import check_host
from whet.runtime.manifest import Manifest
from whet.runtime.storage_report import StorageReport, storage_report
from whet.runtime.verifying import Verification, verify_bundle


def inspect(
    bundle: Bundle,
    graph: Annotated[
        Path | None, typer.Option(metavar="FILE.svg", help="Draw the kernels and what they hand on.")
    ] = None,
    weights: Annotated[bool, typer.Option(help="List every weight.")] = False,
    kernels: Annotated[bool, typer.Option(help="List every kernel.")] = True,
    variant: Annotated[
        str | None, typer.Option(metavar="TARGET", help="Of a fat bundle; by default the best for this machine.")
    ] = None,
    trust: Trust = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Show a bundle's target, inputs, outputs, kernels with their precision, and sizes; every byte is verified."""
    trusted = trust or None
    number = _variant(bundle, variant, trusted, quiet=as_json)
    found = verify_bundle(bundle, trusted=trusted, key=key)
    manifest = read_manifest(bundle, number, trusted=trusted, key=key)
    storage = storage_report(bundle, number, trusted=trusted, key=key)
    if graph is not None:
        if not manifest.kernels:
            raise InputError(f"{bundle} does not say what its kernels are: save it again with this version")
        graph.write_text(draw_kernels(manifest, bundle.name), encoding="utf-8")
    if as_json:
        print_json(
            {
                "manifest": manifest.to_json(),
                "storage": asdict(storage),
                "runs_here": _refusal(manifest) is None,
                "verified": asdict(found),
            }
        )
        return
    _print_summary(bundle, manifest, storage, found)
    if kernels and manifest.kernels:
        _print_kernels(manifest)
    if weights:
        console().print(str(storage), markup=False, highlight=False)
    if graph is not None:
        console().print(f"drawn: {graph}", markup=False)


def _variant(bundle: Path, name: str | None, trusted: Trusted, quiet: bool) -> int | None:
    """The number of the variant to show; None for a bundle of one target."""
    targets = read_variants(bundle, trusted=trusted)
    if targets is None:
        if name is not None:
            raise InputError(f"--variant {name}: {bundle} is for one target")
        return None
    names = [item.name for item in targets]
    if name is not None and name not in names:
        raise InputError(f"--variant {name}: {bundle} has {', '.join(names)}")
    try:
        number = best_variant(targets, str(bundle)) if name is None else names.index(name)
    except BundleError:
        number = 0
    if not quiet:
        console().print(f"fat bundle of {', '.join(names)}; showing {names[number]}", highlight=False)
    return number


def _refusal(manifest: Manifest) -> str | None:
    """Why this machine cannot run it."""
    try:
        check_host(manifest.target, "this bundle")
    except BundleError as error:
        return str(error)
    return None


def _print_summary(bundle: Path, manifest: Manifest, storage: StorageReport, found: Verification) -> None:
    target = manifest.target
    table = plain_table("", "", title=str(bundle))
    table.show_header = False
    refusal = _refusal(manifest)
    rows = {
        "target": f"{target.name} ({target.triple}{', ' + target.device_arch if target.device_arch else ''})",
        "needs": ", ".join(target.features) or "nothing beyond the architecture",
        "runs here": "yes" if refusal is None else f"no: {refusal}",
        "inputs": "\n".join(map(str, manifest.inputs)),
        "outputs": "\n".join(map(str, manifest.outputs)),
        "state": "\n".join(f"{item.name}: {item.dtype}{list(item.shape)}" for item in manifest.state),
        "dimensions": "\n".join(f"{name}: {item}" for name, item in manifest.dimensions.items()),
        "weights": f"{len(storage.weights)}: {kilobytes(storage.weights_disk)} stored, "
        f"{kilobytes(storage.weights_memory)} loaded ({storage.ratio:.2f} x)",
        "code": kilobytes(storage.library),
        "whole file": kilobytes(storage.file),
        "precisions": "\n".join(f"{count} x {name}" for name, count in _precisions(manifest).most_common()),
        "signature": shown_signature(found),
        "encryption": shown_encryption(found),
        "made by": ", ".join(f"{name} {text}" for name, text in manifest.versions.items()),
        "format": manifest.format_version,
    }
    for name, value in rows.items():
        if value != "":
            add_row(table, name, value)
    console().print(table)


def _precisions(manifest: Manifest) -> Counter[str]:
    """Of all kernels, by the type they multiply (or move) in."""
    return Counter(call.precision for call in manifest.kernels)


def _print_kernels(manifest: Manifest) -> None:
    table = plain_table("", "kernel", "module", "precision", "schedule")
    for index, call in enumerate(manifest.kernels):
        add_row(table, index, " + ".join(call.operations), call.module, call.precision, call.schedule)
    console().print(table)
