"""Whet sharpens a trained PyTorch model for one device: it compresses it and compiles it in one compiler.

``whet.optimize`` needs the compiler (``pip install whet[compile]``); ``whet.load`` runs a saved bundle with
numpy, zstandard and the TVM runtime alone. Every name below is imported at its first use: ``import whet`` costs
neither.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from whet._version import __version__

if TYPE_CHECKING:
    from whet import errors, passes
    from whet.api import optimize, save_fat
    from whet.backends.base import CompiledModule
    from whet.backends.tuning import Tuning
    from whet.ir.target import Target
    from whet.ir.target import target_names as targets
    from whet.remote import Device
    from whet.runtime import load, sign_bundle, verify_bundle


__all__ = [
    "CompiledModule",
    "Device",
    "Target",
    "Tuning",
    "__version__",
    "errors",
    "load",
    "optimize",
    "passes",
    "save_fat",
    "sign_bundle",
    "targets",
    "verify_bundle",
]

# name -> (module, attribute); no attribute: the module itself
_EXPORTS: Final[dict[str, tuple[str, str | None]]] = {
    "CompiledModule": ("whet.backends.base", "CompiledModule"),
    "Device": ("whet.remote", "Device"),
    "Target": ("whet.ir.target", "Target"),
    "Tuning": ("whet.backends.tuning", "Tuning"),
    "errors": ("whet.errors", None),
    "load": ("whet.runtime", "load"),
    "optimize": ("whet.api", "optimize"),
    "passes": ("whet.passes", None),
    "save_fat": ("whet.api", "save_fat"),
    "sign_bundle": ("whet.runtime", "sign_bundle"),
    "targets": ("whet.ir.target", "target_names"),
    "verify_bundle": ("whet.runtime", "verify_bundle"),
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use and keep it."""
    if name not in _EXPORTS:
        raise AttributeError(f"module 'whet' has no attribute {name!r}")
    module_name, attribute = _EXPORTS[name]
    module = import_module(module_name)
    value: object = module if attribute is None else getattr(module, attribute)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)
