"""Recipes: passes and their options as TOML, to the objects and back.

    seed = 0
    calibration = "my_data:calibration"

    [[passes]]
    type = "StructuredPruning"
    budget = { type = "Budget", kind = "flops", amount = 0.5 }

    [[passes]]
    type = "QuantizeStatic"
    exclude = ["head.*"]

`type` is a pass's name (`whet passes` lists them), a name in whet.passes, or "module:Class" of any dataclass. What is
left out has its default; "none" is None where an option may be that. Functions are { import = "module:function" }.
A recipe names code that is run: it is as trustworthy as a program.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Final

import whet.passes
from whet.errors import PassError
from whet.ir.types import DType
from whet.passes.base import Pass
from whet.passes.plugins import available, find
from whet.passes.references import reference_to, resolve
from whet.passes.rewrite.pattern import RewritePattern

Item = Pass | RewritePattern

_TYPE: Final = "type"
_IMPORT: Final = "import"
_NONE: Final = "none"
_SETTINGS: Final[Mapping[str, type]] = {
    "seed": int, "objective": str, "calibration": str, "train": str, "evaluate": str
}  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """Passes, and what `whet.optimize` gives them.

    Attributes:
        passes: in order.
        seed: of random choices; None: the default.
        objective: entry of the quality that counts.
        calibration: name of the batches, "module:attribute"; likewise `train` and `evaluate`.
    """

    passes: tuple[Item, ...]
    seed: int | None = None
    objective: str | None = None
    calibration: str | None = None
    train: str | None = None
    evaluate: str | None = None


def read_recipe(path: str | Path) -> Recipe:
    """The recipe in a TOML file. Raises PassError that names the file and the entry which is wrong."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PassError(f"cannot read the recipe {path}: {error}") from error
    try:
        return parse_recipe(text)
    except PassError as error:
        raise PassError(f"{path}: {error}") from error


def parse_recipe(text: str) -> Recipe:
    """The recipe that a TOML text describes. Raises PassError."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise PassError(f"not TOML: {error}") from error
    entries = table.pop("passes", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise PassError("passes must be an array of tables: begin each with [[passes]]")
    for name, value in table.items():
        if name not in _SETTINGS:
            raise PassError(f"unknown key {name!r}{_near(name, _SETTINGS)}; there are passes, {', '.join(_SETTINGS)}")
        if type(value) is not _SETTINGS[name]:
            raise PassError(f"{name} must be of type {_SETTINGS[name].__name__}, not {value!r}")
    passes = [_item(entry, f"passes[{index}]") for index, entry in enumerate(entries)]
    return Recipe(tuple(passes), **table)


def format_recipe(recipe: Recipe) -> str:
    """The TOML text that `parse_recipe` reads as an equal recipe. Raises PassError for options that have no text."""
    import tomli_w

    settings = {name: getattr(recipe, name) for name in _SETTINGS if getattr(recipe, name) is not None}
    passes = [_encoded(item, type(item).__name__) for item in recipe.passes]
    return tomli_w.dumps(settings | {"passes": passes})


def options_of(kind: type) -> dict[str, dataclasses.Field[Any]]:
    """The options of a pass or pattern: what its constructor takes."""
    if not dataclasses.is_dataclass(kind):
        return {}
    return {field.name: field for field in dataclasses.fields(kind) if field.init}


def _item(entry: dict[str, Any], where: str) -> Item:
    item = _decoded_object(entry, where)
    if not isinstance(item, Pass | RewritePattern):
        raise PassError(f"{where} is a {type(item).__name__}, not a pass")
    return item


def _decoded_object(entry: Mapping[str, Any], where: str) -> Any:
    name = entry.get(_TYPE)
    if not isinstance(name, str):
        raise PassError(f'{where} has no type: write type = "NameOfThePass"')
    kind = _class(name, where)
    options = options_of(kind)
    given = {key: value for key, value in entry.items() if key != _TYPE}
    for key in given:
        if key not in options:
            raise PassError(f"{where}: {name} has no option {key!r}{_near(key, options)}; it has {_listed(options)}")
    hints = typing.get_type_hints(kind)
    values = {key: _decoded(value, hints[key], f"{where}.{key}") for key, value in given.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise PassError(f"{where}: {name} {str(error).partition(') ')[2] or error}") from error


def _class(name: str, where: str) -> type:
    if ":" in name:
        found = resolve(name)
    elif name in available():
        found = find(name)
    elif name in whet.passes.__all__:
        found = getattr(whet.passes, name)
    else:
        raise PassError(f"{where}: there is no pass {name!r}{_near(name, available())}; `whet passes` lists them")
    if not isinstance(found, type):
        raise PassError(f"{where}: {name} is no class")
    return found


def _decoded(value: Any, hint: Any, where: str) -> Any:
    decoded = _converted(value, hint, where)
    if not _fits(decoded, hint):
        raise PassError(f"{where} is {value!r}; it must be {_shown(hint)}")
    return decoded


def _converted(value: Any, hint: Any, where: str) -> Any:
    choices = _choices(hint)
    if value == _NONE and type(None) in choices:
        return None
    if isinstance(value, str) and DType in choices:
        return _dtype(value, where)
    if isinstance(value, list):
        return tuple(_converted(item, Any, f"{where}[{index}]") for index, item in enumerate(value))
    if isinstance(value, dict) and set(value) == {_IMPORT}:
        return resolve(value[_IMPORT])
    if isinstance(value, dict) and _TYPE in value:
        return _decoded_object(value, where)
    if isinstance(value, dict):
        return {key: _converted(item, Any, f"{where}.{key}") for key, item in value.items()}
    # 1 is written for 1.0
    return float(value) if type(value) is int and float in choices and int not in choices else value


def _dtype(name: str, where: str) -> DType:
    try:
        return DType(name)
    except ValueError:
        raise PassError(f"{where} is {name!r}; it is one of {', '.join(item.value for item in DType)}") from None


def _choices(hint: Any) -> tuple[Any, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, as deep as options go: tuples, mappings, unions."""
    return any(_fits_one(value, choice) for choice in _choices(hint))


def _fits_one(value: Any, hint: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (origin is None and not isinstance(hint, type)):
        return True
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        repeated = len(arguments) == 2 and arguments[1] is Ellipsis
        hints = [arguments[0]] * len(value) if repeated else list(arguments)
        return len(hints) == len(value) and all(map(_fits, value, hints))
    if origin is not None and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(item, arguments[1]) for item in value.values())
    if origin is not None or getattr(hint, "_is_protocol", False):
        return callable(value) or dataclasses.is_dataclass(value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, hint)


def _shown(hint: Any) -> str:
    return " or ".join(_shown_one(item) for item in _choices(hint))


def _shown_one(hint: Any) -> str:
    if hint is type(None):
        return f'"{_NONE}"'
    return getattr(hint, "__name__", None) or str(hint)


def _encoded(value: Any, where: str) -> Any:
    if value is None:
        return _NONE
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _encoded(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_encoded(item, f"{where}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, RewritePattern) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        return _encoded_object(value, where)
    try:
        return {_IMPORT: reference_to(value)}
    except PassError as error:
        raise PassError(f"{where} cannot be written to a recipe: {error}") from error


def _encoded_object(item: Any, where: str) -> dict[str, Any]:
    kind = type(item)
    given = {name: getattr(item, name) for name, field in options_of(kind).items() if not _is_default(item, field)}
    return {_TYPE: _class_name(kind)} | {name: _encoded(value, f"{where}.{name}") for name, value in given.items()}


def _class_name(kind: type) -> str:
    name = kind.__name__
    if name in available() and find(name) is kind:
        return name
    if name in whet.passes.__all__ and getattr(whet.passes, name) is kind:
        return name
    return reference_to(kind)


def _is_default(item: Any, field: dataclasses.Field[Any]) -> bool:
    if field.default is not dataclasses.MISSING:
        default = field.default
    elif field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    else:
        return False
    value = getattr(item, field.name)
    return type(value) is type(default) and bool(value == default)


def _near(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _listed(options: Mapping[str, Any]) -> str:
    return ", ".join(options) or "none"
