"""Rewriting by patterns: write what to look for as a Python function, and what takes its place as another."""

from whet.passes.rewrite.apply import ApplyPatterns
from whet.passes.rewrite.driver import apply_patterns
from whet.passes.rewrite.pattern import AnyOf, MatchFailure, Node, RewritePattern
from whet.passes.rewrite.rewriter import Rewriter
from whet.passes.rewrite.tracer import Tracer

__all__ = [
    "AnyOf",
    "ApplyPatterns",
    "MatchFailure",
    "Node",
    "RewritePattern",
    "Rewriter",
    "Tracer",
    "apply_patterns",
]
