"""The versions of the TVM runtime that this Whet runs with: exact ones, since TVM's ABI changes between patches."""

from __future__ import annotations

from typing import Final

TVM: Final = "0.27.0.post1"
TVM_FFI: Final = "0.1.14.post1"
