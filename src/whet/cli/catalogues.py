"""`whet targets` and `whet passes`: what there is to choose from."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Annotated, Any

import typer

from whet.cli.output import Json, add_row, console, plain_table, print_json


def targets(as_json: Json = False) -> None:
    """List the devices that Whet compiles for."""
    from whet.ir.target import get_target, target_names

    found = [get_target("cuda:sm_80" if name == "cuda:sm_NN" else name) for name in target_names()]
    if as_json:
        print_json([dataclasses.asdict(item) | {"integer_dots": item.integer_dots} for item in found])
        return
    table = plain_table("target", "architecture", "processor", "vectors", "int8 dot products", "features")
    for name, item in zip(target_names(), found, strict=True):
        vectors = "" if item.kind == "cuda" else f"{item.vector_bits} bits"
        add_row(
            table,
            name,
            item.device_arch or item.arch,
            item.cpu,
            vectors,
            ", ".join(item.integer_dots),
            ", ".join(item.features),
        )
    console().print(table)


def passes(
    name: Annotated[str | None, typer.Argument(help="One pass: all that its documentation says.")] = None,
    as_json: Json = False,
) -> None:
    """List the passes of Whet and of installed packages, with their options."""
    from whet.passes.plugins import available, find

    kinds = {item: find(item) for item in ([name] if name else sorted(available()))}
    described = [_described(item, kind) for item, kind in kinds.items()]
    if as_json:
        print_json(described)
        return
    if name:
        _print_one(described[0])
        return
    table = plain_table("pass", "what it does", "options")
    for item in described:
        options = ", ".join(f"{option['name']}={option['default']}" for option in item["options"])
        add_row(table, item["name"], item["summary"], options)
    console().print(table)


def _described(name: str, kind: type) -> dict[str, Any]:
    from whet.passes.recipe import options_of

    text = inspect.getdoc(kind) or ""
    return {
        "name": name,
        "from": kind.__module__,
        "summary": text.split("\n\n")[0].replace("\n", " "),
        "text": text,
        "options": [
            {"name": option, "type": str(field.type), "default": _default(field)}
            for option, field in options_of(kind).items()
        ],
    }


def _default(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        return repr(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return repr(field.default_factory())
    return "(required)"


def _print_one(item: dict[str, Any]) -> None:
    here = console()
    here.print(f"{item['name']}  ({item['from']})\n\n{item['text']}\n", markup=False, highlight=False)
    if not item["options"]:
        return
    table = plain_table("option", "type", "default")
    for option in item["options"]:
        add_row(table, option["name"], option["type"], option["default"])
    here.print(table)
