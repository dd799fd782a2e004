"""Passes by name: Whet's own, and those that other packages declare as entry points of "whet.passes"."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Final

from whet.errors import PassError
from whet.passes import CATALOGUE
from whet.passes.base import Pass
from whet.passes.rewrite.pattern import RewritePattern

GROUP: Final = "whet.passes"

PassType = type[Pass] | type[RewritePattern]


def available() -> dict[str, str]:
    """Name of every pass that `find` knows, and the module (and attribute) that it comes from; imports none
    of them.

    Raises PassError where two passes have one name.
    """
    return {
        **{name: f"{module}:{name}" for name, module in CATALOGUE.items()},
        **{name: point.value for name, point in _plugins().items()},
    }


def find(name: str) -> PassType:
    """The class of the pass (or pattern) of that name. Raises PassError where there is none, or are two."""
    plugins = _plugins()
    if name in CATALOGUE:
        found = getattr(import_module(CATALOGUE[name]), name)
    elif name in plugins:
        found = _load(plugins[name])
    else:
        raise PassError(f"there is no pass {name!r}; there are {sorted([*CATALOGUE, *plugins])}")
    if not (isinstance(found, type) and issubclass(found, Pass | RewritePattern)):
        raise PassError(f"pass {name!r} is {found!r}, not a subclass of whet.passes.Pass or RewritePattern")
    return found


def _plugins() -> dict[str, EntryPoint]:
    plugins: dict[str, EntryPoint] = {}
    for point in entry_points(group=GROUP):
        if point.name in CATALOGUE:
            raise PassError(f"{_origin(point)} declares the pass {point.name!r}, which is a name of Whet's own")
        other = plugins.setdefault(point.name, point)
        if other != point or _origin(other) != _origin(point):
            raise PassError(
                f"{_origin(other)} and {_origin(point)} both declare the pass {point.name!r}: uninstall one"
            )
    return plugins


def _load(point: EntryPoint) -> object:
    try:
        return point.load()
    except (ImportError, AttributeError) as error:
        raise PassError(f"the pass {point.name!r} of {_origin(point)} cannot be imported: {error}") from error


def _origin(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist is not None else point.value
