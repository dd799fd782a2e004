"""Which layers a pass works on: by operation, and by patterns of module paths to leave out."""

from __future__ import annotations

import fnmatch
from collections.abc import Collection, Iterable, Sequence

from whet.errors import PassError
from whet.ir.graph import Graph, Operation


def select_layers(graph: Graph, names: Collection[str], exclude: Sequence[str] = ()) -> list[Operation]:
    """The operations called `names`, in order, but those whose module path fits a pattern of `exclude` (fnmatch).

    Raises PassError for a pattern that no such operation fits, with the paths that there are.
    """
    if isinstance(exclude, str):
        raise PassError(f"exclude is a tuple of patterns, not the one string {exclude!r}: write ({exclude!r},)")
    found = [operation for operation in graph.operations if operation.name in names]
    require_matches("exclude", exclude, (operation.location.module for operation in found))
    return [operation for operation in found if not excluded(operation, exclude)]


def require_matches(option: str, patterns: Iterable[str], modules: Iterable[str]) -> None:
    """Guard: each pattern of `option` (fnmatch) fits a module path. Raises PassError with the paths that there are."""
    paths = sorted(set(modules))
    unused = [pattern for pattern in patterns if not fnmatch.filter(paths, pattern)]
    if unused:
        known = ", ".join(paths[:12]) + (", ..." if len(paths) > 12 else "")
        raise PassError(f"{option}: no layer has a module path like {', '.join(unused)}; the paths are {known}")


def excluded(operation: Operation, exclude: Sequence[str]) -> bool:
    """Whether the operation's module path fits one of the patterns."""
    return any(fnmatch.fnmatch(operation.location.module, pattern) for pattern in exclude)
