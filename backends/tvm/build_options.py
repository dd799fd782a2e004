"""Options of TVM's passes that every build of Whet's kernels uses."""

from __future__ import annotations

from typing import Any, Final

PASS_OPTIONS: Final[dict[str, Any]] = {"tirx.disable_cse_tir": True}
"""TVM's elimination of common subexpressions does not look into `Let`: it binds names where not all uses see them.
LLVM has its own.
"""
