"""Options of TVM's passes that every build of Whet's kernels uses."""

from __future__ import annotations

from typing import Any, Final

PASS_OPTIONS: Final[dict[str, Any]] = {"tirx.disable_cse_tir": True}
"""TVM's elimination of common subexpressions does not look into `Let`: it binds names where not all uses see them.
LLVM has its own.
"""

CUDA_OPTIONS: Final[dict[str, Any]] = {**PASS_OPTIONS, "tirx.use_async_copy": True}
"""For CUDA also: copies into shared memory that a schedule marks as asynchronous become `cp.async`."""

OPTIONS_BY_KIND: Final[dict[str, dict[str, Any]]] = {"cpu": PASS_OPTIONS, "cuda": CUDA_OPTIONS}
"""Kind of target -> options."""
