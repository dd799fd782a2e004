"""Names that are bound once: what TVM wants of a function before it schedules it."""

from __future__ import annotations

import tvm
from tvm import tirx


def with_unique_names(func: tirx.PrimFunc) -> tirx.PrimFunc:
    """The function with every name bound once: an expression that is used twice binds its names twice."""
    (unique,) = tirx.transform.ConvertSSA()(tvm.IRModule.from_expr(func)).functions.values()
    return unique
