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
    from whet.passes.factorization.factorize import Factorize
    from whet.passes.fold_batch_norm import FoldBatchNorm
    from whet.passes.layout import AssignLayout
    from whet.passes.manager import PassManager
    from whet.passes.materialize import MaterializeWeights
    from whet.passes.plugins import available, find
    from whet.passes.pruning.block_sparsity import BlockSparsity
    from whet.passes.pruning.blocks import BlockPruning
    from whet.passes.pruning.budget import Budget
    from whet.passes.pruning.clip import ClipWeights
    from whet.passes.pruning.semi_structured import NMPruning
    from whet.passes.pruning.structured import StructuredPruning
    from whet.passes.pruning.unstructured import UnstructuredPruning
    from whet.passes.quantization.awq import AWQ
    from whet.passes.quantization.codebook import QuantizeCodebook
    from whet.passes.quantization.coverage import coverage
    from whet.passes.quantization.dynamic import QuantizeDynamic
    from whet.passes.quantization.equalization import EqualizeCrossLayer
    from whet.passes.quantization.folding import FoldQuantization
    from whet.passes.quantization.logarithmic import QuantizeLogarithmic
    from whet.passes.quantization.mixed_precision import MixedPrecision
    from whet.passes.quantization.precision import ConvertPrecision
    from whet.passes.quantization.qat import QuantizationAware
    from whet.passes.quantization.recurrent import QuantizeRecurrent
    from whet.passes.quantization.smooth import SmoothQuant
    from whet.passes.quantization.static import QuantizeStatic
    from whet.passes.quantization.weights_only import QuantizeWeights
    from whet.passes.quantization.where_faster import QuantizeWhereFaster
    from whet.passes.recipe import Recipe, format_recipe, parse_recipe, read_recipe
    from whet.passes.recovery.distill import Distill
    from whet.passes.recovery.fine_tune import FineTune
    from whet.passes.recurrent_projection import HoistRecurrentProjections
    from whet.passes.rewrite import AnyOf, ApplyPatterns, MatchFailure, RewritePattern, Rewriter, Tracer
    from whet.passes.untie_states import UntieStates

__all__ = [
    "AWQ",
    "CATALOGUE",
    "AnyOf",
    "ApplyPatterns",
    "AssignLayout",
    "BindDimensions",
    "BlockPruning",
    "BlockSparsity",
    "Budget",
    "Canonicalize",
    "ClipWeights",
    "CommonSubexpressionElimination",
    "ConstantFolding",
    "Context",
    "ConvertPrecision",
    "DeadCodeElimination",
    "Distill",
    "EqualizeCrossLayer",
    "Factorize",
    "FineTune",
    "FoldBatchNorm",
    "FoldQuantization",
    "HoistRecurrentProjections",
    "MatchFailure",
    "MaterializeWeights",
    "MixedPrecision",
    "NMPruning",
    "Pass",
    "PassManager",
    "PassResult",
    "QuantizationAware",
    "QuantizeCodebook",
    "QuantizeDynamic",
    "QuantizeLogarithmic",
    "QuantizeRecurrent",
    "QuantizeStatic",
    "QuantizeWeights",
    "QuantizeWhereFaster",
    "Recipe",
    "RewritePattern",
    "Rewriter",
    "SmoothQuant",
    "StructuredPruning",
    "Tracer",
    "UnstructuredPruning",
    "UntieStates",
    "available",
    "coverage",
    "find",
    "format_recipe",
    "ops",
    "parse_recipe",
    "read_recipe",
]

CATALOGUE: Final[dict[str, str]] = {
    "AWQ": "whet.passes.quantization.awq",
    "AssignLayout": "whet.passes.layout",
    "BindDimensions": "whet.passes.bind_dimensions",
    "BlockPruning": "whet.passes.pruning.blocks",
    "BlockSparsity": "whet.passes.pruning.block_sparsity",
    "Canonicalize": "whet.passes.canonicalize.canonicalize",
    "ClipWeights": "whet.passes.pruning.clip",
    "CommonSubexpressionElimination": "whet.passes.canonicalize.common_subexpressions",
    "ConstantFolding": "whet.passes.canonicalize.constant_folding",
    "ConvertPrecision": "whet.passes.quantization.precision",
    "DeadCodeElimination": "whet.passes.canonicalize.dead_code",
    "EqualizeCrossLayer": "whet.passes.quantization.equalization",
    "Factorize": "whet.passes.factorization.factorize",
    "Distill": "whet.passes.recovery.distill",
    "FineTune": "whet.passes.recovery.fine_tune",
    "FoldBatchNorm": "whet.passes.fold_batch_norm",
    "FoldQuantization": "whet.passes.quantization.folding",
    "HoistRecurrentProjections": "whet.passes.recurrent_projection",
    "MaterializeWeights": "whet.passes.materialize",
    "MixedPrecision": "whet.passes.quantization.mixed_precision",
    "NMPruning": "whet.passes.pruning.semi_structured",
    "QuantizationAware": "whet.passes.quantization.qat",
    "QuantizeCodebook": "whet.passes.quantization.codebook",
    "QuantizeDynamic": "whet.passes.quantization.dynamic",
    "QuantizeLogarithmic": "whet.passes.quantization.logarithmic",
    "QuantizeRecurrent": "whet.passes.quantization.recurrent",
    "QuantizeStatic": "whet.passes.quantization.static",
    "QuantizeWeights": "whet.passes.quantization.weights_only",
    "QuantizeWhereFaster": "whet.passes.quantization.where_faster",
    "SmoothQuant": "whet.passes.quantization.smooth",
    "StructuredPruning": "whet.passes.pruning.structured",
    "UnstructuredPruning": "whet.passes.pruning.unstructured",
    "UntieStates": "whet.passes.untie_states",
}
"""Whet's own passes: name -> module. Those of other packages come by entry point (plugins.py)."""

_FRAMEWORK: Final[dict[str, str]] = {
    "AnyOf": "whet.passes.rewrite",
    "ApplyPatterns": "whet.passes.rewrite",
    "Budget": "whet.passes.pruning.budget",
    "Context": "whet.passes.base",
    "MatchFailure": "whet.passes.rewrite",
    "Pass": "whet.passes.base",
    "Recipe": "whet.passes.recipe",
    "PassManager": "whet.passes.manager",
    "PassResult": "whet.passes.base",
    "RewritePattern": "whet.passes.rewrite",
    "Rewriter": "whet.passes.rewrite",
    "Tracer": "whet.passes.rewrite",
    "available": "whet.passes.plugins",
    "coverage": "whet.passes.quantization.coverage",
    "find": "whet.passes.plugins",
    "format_recipe": "whet.passes.recipe",
    "parse_recipe": "whet.passes.recipe",
    "read_recipe": "whet.passes.recipe",
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
