"""Structures of inputs and outputs: nested tuples, lists, dicts and records over a flat list of leaves, as
JSON.

A structure (`Spec`) is one of

    {"kind": "leaf", "index": 0}        {"kind": "none"}        {"kind": "constant", "value": 3}
    {"kind": "tuple" | "list", "items": [...]}
    {"kind": "dict", "keys": [...], "items": [...]}
    {"kind": "namedtuple" | "dataclass", "name": "Output", "fields": [...], "items": [...]}

Only Python's own containers come back on a device, where the classes of the model's library are not
installed: a namedtuple is made again with its name and fields, a dataclass becomes a `StructuredOutput`.
"""

from __future__ import annotations

import dataclasses
import keyword
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from whet.errors import InputError

Spec = Mapping[str, Any]

_MISSING: Final = object()
_SCALARS: Final = (bool, int, float, str)
_DEEPEST: Final = 100
_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "leaf": ("index",),
    "none": (),
    "constant": ("value",),
    "tuple": ("items",),
    "list": ("items",),
    "dict": ("keys", "items"),
    "namedtuple": ("name", "fields", "items"),
    "dataclass": ("name", "fields", "items"),
}


class StructuredOutput:
    """A dataclass output of the model, without its class: `out.logits`, `out["logits"]`, `out[0]`.

    Iteration and integer indices pass over the fields that are None, as the outputs of `transformers` do.
    """

    __slots__ = ("_fields", "_name")

    def __init__(self, name: str, fields: Mapping[str, Any]) -> None:
        self._name = name
        self._fields = dict(fields)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name not in self._fields:
            raise AttributeError(f"{self._name} has no field {name!r}; it has {', '.join(self._fields)}")
        return self._fields[name]

    def __getitem__(self, key: str | int | slice) -> Any:
        if isinstance(key, str):
            return self._fields[key]
        return self.to_tuple()[key]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())

    def __len__(self) -> int:
        return len(self.to_tuple())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def keys(self) -> tuple[str, ...]:
        """Names of the fields that are not None."""
        return tuple(name for name, value in self._fields.items() if value is not None)

    def values(self) -> tuple[Any, ...]:
        """The fields that are not None."""
        return self.to_tuple()

    def items(self) -> tuple[tuple[str, Any], ...]:
        """(name, value) of the fields that are not None."""
        return tuple((name, self._fields[name]) for name in self.keys())

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in their order."""
        return tuple(value for value in self._fields.values() if value is not None)

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self._fields.items())
        return f"{self._name}({inside})"


def build(value: Any, is_leaf: Callable[[Any], bool]) -> tuple[Spec, list[Any]]:
    """The structure of `value` and its leaves, in order.

    `is_leaf` says what is a leaf (a tensor); numbers, strings and None become constants of the structure.
    Raises TypeError for a value that is none of these.
    """
    leaves: list[Any] = []
    return _build(value, is_leaf, leaves), leaves


def _build(value: Any, is_leaf: Callable[[Any], bool], leaves: list[Any]) -> Spec:
    if is_leaf(value):
        leaves.append(value)
        return {"kind": "leaf", "index": len(leaves) - 1}
    if value is None:
        return {"kind": "none"}
    if isinstance(value, _SCALARS):
        return {"kind": "constant", "value": value}

    def record(kind: str, fields: Sequence[str]) -> Spec:
        items = [_build(getattr(value, field), is_leaf, leaves) for field in fields]
        return {"kind": kind, "name": type(value).__name__, "fields": list(fields), "items": items}

    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return record("namedtuple", value._fields)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return record("dataclass", [field.name for field in dataclasses.fields(value)])
    if isinstance(value, tuple | list):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {"kind": kind, "items": [_build(item, is_leaf, leaves) for item in value]}
    if isinstance(value, Mapping):
        items = [_build(item, is_leaf, leaves) for item in value.values()]
        return {"kind": "dict", "keys": list(value), "items": items}
    raise TypeError(f"a {type(value).__name__} is neither a leaf, a number, nor a tuple, list, dict or record of these")


def check(spec: Any, leaves: int) -> None:
    """Raise ValueError unless `spec` is a structure whose leaves have the indices 0 .. leaves-1."""
    indices: list[int] = []
    _check(spec, indices, 0)
    if sorted(indices) != list(range(leaves)):
        raise ValueError(f"a structure of {leaves} leaves has the leaf indices {indices[:20]}")


def _check(spec: Any, indices: list[int], depth: int) -> None:
    if depth > _DEEPEST:
        raise ValueError("a structure is nested too deeply")
    if not isinstance(spec, Mapping):
        raise ValueError(f"a structure must be an object, not {type(spec).__name__}")
    kind = spec.get("kind")
    wanted = _FIELDS.get(kind) if isinstance(kind, str) else None
    if wanted is None:
        raise ValueError(f"unknown kind of structure {kind!r}")
    if set(spec) != {"kind", *wanted}:
        raise ValueError(f"a {kind} structure has the fields {sorted(spec)}")
    if kind == "leaf":
        if type(spec["index"]) is not int:
            raise ValueError(f"a leaf has the index {spec['index']!r}")
        indices.append(spec["index"])
    if kind == "constant" and not isinstance(spec["value"], _SCALARS):
        raise ValueError(f"a constant of a structure is {spec['value']!r}")
    if "items" not in wanted:
        return
    if not all(isinstance(spec[name], list) for name in ("keys", "fields", "items") if name in wanted):
        raise ValueError(f"the items of a {kind} structure are not a list")
    names = spec.get("keys", spec.get("fields"))
    if names is not None and len(names) != len(spec["items"]):
        raise ValueError(f"a {kind} structure has {len(names)} names for {len(spec['items'])} items")
    if "keys" in spec and not all(isinstance(key, _SCALARS) for key in names or ()):
        raise ValueError(f"a dict structure has the keys {names}")
    if "fields" in spec and not all(map(_is_name, (spec["name"], *spec["fields"]))):
        raise ValueError(f"a {kind} structure has the names {spec['name']!r}, {names}")
    for item in spec["items"]:
        _check(item, indices, depth + 1)


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name.isidentifier() and not name.startswith("_") and not keyword.iskeyword(name)


def flatten(spec: Spec, value: Any, where: str = "input") -> list[Any]:
    """The leaves of `value`, by the structure `spec`, in the order of their indices.

    Raises InputError that names the place where `value` has another structure; `where` is the name of the
    whole.
    """
    found: dict[int, Any] = {}
    _flatten(spec, value, where, found)
    return [found[index] for index in range(len(found))]


def _flatten(spec: Spec, value: Any, where: str, found: dict[int, Any]) -> None:
    kind = spec["kind"]
    if kind == "leaf":
        if value is None:
            raise InputError(f"{where} is None; the model wants a tensor there")
        found[spec["index"]] = value
        return
    if kind == "none":
        if value is not None:
            raise InputError(f"{where} is a {type(value).__name__}; the model was compiled with None there")
        return
    if kind == "constant":
        if type(value) is not type(spec["value"]) or value != spec["value"]:
            raise InputError(
                f"{where} is {value!r}; the model was compiled for {spec['value']!r} there. "
                "Compile it again for the other"
            )
        return
    for name, item, inner in _children(spec, value, where):
        _flatten(item, inner, name, found)


def _children(spec: Spec, value: Any, where: str) -> Iterator[tuple[str, Spec, Any]]:
    """(name, structure, value) of each item of a container."""
    kind, items = spec["kind"], spec["items"]
    if kind in ("tuple", "list"):
        if not isinstance(value, tuple | list):
            raise InputError(f"{where} is a {type(value).__name__}; the model wants a {kind} of {len(items)}")
        if len(value) != len(items):
            raise InputError(f"{where} has {len(value)} item(s); the model wants a {kind} of {len(items)}")
        yield from ((f"{where}[{i}]", item, value[i]) for i, item in enumerate(items))
        return
    if kind == "dict":
        if not isinstance(value, Mapping):
            raise InputError(f"{where} is a {type(value).__name__}; the model wants a dict of {spec['keys']}")
        if set(value) != set(spec["keys"]):
            raise InputError(f"{where} has the keys {list(value)}; the model wants {spec['keys']}")
        yield from ((f"{where}[{key!r}]", item, value[key]) for key, item in zip(spec["keys"], items, strict=True))
        return
    if kind == "namedtuple" and isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        # Where the model's class is not installed, its values in their order will do.
        yield from _children({"kind": "tuple", "items": items}, value, where)
        return
    for field, item in zip(spec["fields"], items, strict=True):
        inner = value.get(field, _MISSING) if isinstance(value, Mapping) else getattr(value, field, _MISSING)
        if inner is _MISSING:
            raise InputError(f"{where} has no field {field!r}; the model wants a {spec['name']} of {spec['fields']}")
        yield f"{where}.{field}", item, inner


def unflatten(spec: Spec, leaves: Sequence[Any]) -> Any:
    """The value of structure `spec` over `leaves`."""
    kind = spec["kind"]
    if kind == "leaf":
        return leaves[spec["index"]]
    if kind == "none":
        return None
    if kind == "constant":
        return spec["value"]
    items = [unflatten(item, leaves) for item in spec["items"]]
    if kind == "list":
        return items
    if kind == "tuple":
        return tuple(items)
    if kind == "dict":
        return dict(zip(spec["keys"], items, strict=True))
    if kind == "namedtuple":
        return _namedtuple(spec["name"], tuple(spec["fields"]))(*items)
    return StructuredOutput(spec["name"], dict(zip(spec["fields"], items, strict=True)))


@lru_cache(maxsize=256)
def _namedtuple(name: str, fields: tuple[str, ...]) -> Any:
    """One class for all outputs of that name and fields, so that their types compare equal."""
    return namedtuple(name, fields)
