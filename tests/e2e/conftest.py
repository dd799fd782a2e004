"""What end-to-end tests share with those of the C++ runtime."""

from __future__ import annotations

from tests.cpp.programs import cross, plain

__all__ = ["cross", "plain"]
