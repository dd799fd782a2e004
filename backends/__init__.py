"""From Whet's IR to code for a device."""

if not __name__.startswith("whet."):
    raise ImportError(f"import this package as whet.backends, not as {__name__!r}")

from whet.backends.base import Backend, CompiledModule

__all__ = ["Backend", "CompiledModule"]
