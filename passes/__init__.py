"""Passes: graph in, graph out. One file a pass; `whet.passes.<Name>` imports it at its first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if not __name__.startswith("whet."):
    raise ImportError(
        f"import this package as whet.passes, not as {__name__!r}: a second copy of every class would be made"
    )

if TYPE_CHECKING:
    from whet.passes import ops
    from whet.passes.base import Context, Pass, PassResult
    from whet.passes.bind_dimensions import BindDimensions
    from whet.passes.canonicalize.canonicalize import Canonicalize
    from whet.passes.canonicalize.common_subexpressions import CommonSubexpressionElimination
    from whet.passes.canonicalize.constant_folding import ConstantFolding
    from whet.passes.canonicalize.dead_code import DeadCodeElimination
    from whet.passes.fold_batch_norm import FoldBatchNorm
    from whet.passes.layout import AssignLayout
    from whet.passes.manager import PassManager
    from whet.passes.materialize import MaterializeWeights
    from whet.passes.plugins import available, find
    from whet.passes.quantization.static import QuantizeStatic
    from whet.passes.rewrite import AnyOf, ApplyPatterns, MatchFailure, RewritePattern, Rewriter, Tracer

__all__ = [
    "CATALOGUE",
    "AnyOf",
    "ApplyPatterns",
    "AssignLayout",
    "BindDimensions",
    "Canonicalize",
    "CommonSubexpressionElimination",
    "ConstantFolding",
    "Context",
    "DeadCodeElimination",
    "FoldBatchNorm",
    "MatchFailure",
    "MaterializeWeights",
    "Pass",
    "PassManager",
    "PassResult",
    "QuantizeStatic",
    "RewritePattern",
    "Rewriter",
    "Tracer",
    "available",
    "find",
    "ops",
]

CATALOGUE: Final[dict[str, str]] = {
    "AssignLayout": "whet.passes.layout",
    "BindDimensions": "whet.passes.bind_dimensions",
    "Canonicalize": "whet.passes.canonicalize.canonicalize",
    "CommonSubexpressionElimination": "whet.passes.canonicalize.common_subexpressions",
    "ConstantFolding": "whet.passes.canonicalize.constant_folding",
    "DeadCodeElimination": "whet.passes.canonicalize.dead_code",
    "FoldBatchNorm": "whet.passes.fold_batch_norm",
    "MaterializeWeights": "whet.passes.materialize",
    "QuantizeStatic": "whet.passes.quantization.static",
}
"""Whet's own passes: name -> module. Those of other packages come by entry point (plugins.py)."""

_FRAMEWORK: Final[dict[str, str]] = {
    "AnyOf": "whet.passes.rewrite",
    "ApplyPatterns": "whet.passes.rewrite",
    "Context": "whet.passes.base",
    "MatchFailure": "whet.passes.rewrite",
    "Pass": "whet.passes.base",
    "PassManager": "whet.passes.manager",
    "PassResult": "whet.passes.base",
    "RewritePattern": "whet.passes.rewrite",
    "Rewriter": "whet.passes.rewrite",
    "Tracer": "whet.passes.rewrite",
    "available": "whet.passes.plugins",
    "find": "whet.passes.plugins",
}


def __getattr__(name: str) -> object:
    """Import a public name at its first use and keep it."""
    if name == "ops":
        return import_module("whet.passes.ops")
    module = CATALOGUE.get(name) or _FRAMEWORK.get(name)
    if module is None:
        raise AttributeError(f"module 'whet.passes' has no attribute {name!r}; its passes are {sorted(CATALOGUE)}")
    value: object = getattr(import_module(module), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(__all__)
