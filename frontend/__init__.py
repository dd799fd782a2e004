"""From PyTorch to Whet's IR. The only package that imports torch.fx and torch.export."""

if not __name__.startswith("whet."):
    raise ImportError(f"import this package as whet.frontend, not as {__name__!r}")

from whet.frontend.load import import_model

__all__ = ["import_model"]
