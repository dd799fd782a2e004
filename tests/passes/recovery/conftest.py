"""What the tests of training share."""

from __future__ import annotations

from tests.passes.recovery.tasks import one_thread

__all__ = ["one_thread"]
