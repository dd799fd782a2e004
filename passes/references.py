"""Objects by name, "module:attribute" or "file.py:attribute": how recipes and the command line speak of Python."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from whet.errors import PassError


def resolve(reference: str) -> Any:
    """What "module:attribute" or "path/to/file.py:attribute" names; modules of the working folder count.

    The module's code is run. Raises PassError that says which part of the name is wrong.
    """
    module_name, colon, path = reference.rpartition(":")
    if not (colon and module_name and path):
        raise PassError(f"{reference!r} names no object: write module:attribute, or file.py:attribute")
    found: Any = _module(module_name)
    for name in path.split("."):
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise PassError(f"{reference!r}: {error}") from error
    return found


def reference_to(item: Any) -> str:
    """The name by which `resolve` finds a class or function again. Raises PassError for what has none."""
    module, path = getattr(item, "__module__", None), getattr(item, "__qualname__", None)
    if not (isinstance(module, str) and isinstance(path, str)) or "<" in path or module == "__main__":
        raise PassError(f"{item!r} has no name in an importable module, so that it cannot be written down")
    reference = f"{module}:{path}"
    if resolve(reference) is not item:
        raise PassError(f"{reference} is another object than {item!r}")
    return reference


def _module(name: str) -> ModuleType:
    if name.endswith(".py"):
        return _file_module(Path(name))
    with _working_folder_first():
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            # an import that fails inside of the module is that module's own affair
            if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
                raise PassError(f"there is no module {name!r} (looked in the working folder too)") from error
            raise


def _file_module(path: Path) -> ModuleType:
    if not path.is_file():
        raise PassError(f"there is no file {path}")
    name = f"whet_file_{path.resolve().stem}_{abs(hash(path.resolve())):x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise PassError(f"{path} cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    # registered first, as an import does: dataclasses look their module up
    sys.modules[name] = module
    try:
        with _working_folder_first():
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _working_folder_first() -> Iterator[None]:
    """As `python -m` does it, for the time of an import."""
    sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path.remove("")
