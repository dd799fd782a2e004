"""Backends by name: Whet's own, imported at first use, and those of other packages."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from whet.backends.base import Backend
from whet.errors import TargetError

GROUP = "whet.backends"
_OWN = {
    "tvm": ("whet.backends.tvm", "TvmBackend"),
    "reference": ("whet.backends.reference", "ReferenceBackend"),
}


def find_backend(name: str) -> Backend:
    """The backend of that name. Raises TargetError for an unknown name, or one that two packages publish."""
    published = [point for point in entry_points(group=GROUP) if point.name == name]
    if len(published) > 1 or (published and name in _OWN):
        owners = [str(point.value) for point in published] + (["whet"] if name in _OWN else [])
        raise TargetError(f"two backends are named {name!r} ({', '.join(owners)}): uninstall one")
    if name in _OWN:
        module, attribute = _OWN[name]
        backend: Any = getattr(import_module(module), attribute)()
        return backend  # type: ignore[no-any-return]
    if published:
        return published[0].load()()  # type: ignore[no-any-return]
    known = sorted({*_OWN, *(point.name for point in entry_points(group=GROUP))})
    raise TargetError(f"unknown backend {name!r}; known are {', '.join(known)}")
