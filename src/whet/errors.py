"""Every error Whet raises on purpose, in three kinds: the user's, the unsupported, and a broken invariant of ours.

This module imports nothing, so that the torch-free runtime and the compiler share one vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence


class WhetError(Exception):
    """Base of every error that names something the caller can change."""


class UnsupportedOpError(WhetError):
    """The model uses operators that Whet cannot lower; lists every one of them with its source line."""

    def __init__(self, operators: Sequence[tuple[str, str]]) -> None:
        self.operators = tuple(operators)
        lines = "\n".join(f"  {name}  at {where}" for name, where in self.operators)
        super().__init__(
            f"{len(self.operators)} operator(s) of this model have no converter:\n{lines}\n"
            "Add a converter (see docs/write-a-converter.md) or rewrite these lines of the model."
        )


class CaptureError(WhetError):
    """The model could not be captured: data-dependent control flow, training mode, missing inputs, NaN weights."""


class InputError(WhetError):
    """The inputs given to a compiled or imported model have the wrong number, shape or dtype."""


class TargetError(WhetError):
    """Unknown target, or something the target cannot do (no runtime, no linker, missing CPU features)."""


class DeviceError(WhetError):
    """A device over the network cannot be reached, refused the key, was lost, or failed at what it was asked."""


class BundleError(WhetError):
    """A bundle cannot be written or opened: unwritable path, full disk, corruption, other CPU, newer format."""


class SignatureError(BundleError):
    """A bundle is not signed by a trusted key: unsigned, signed by another one, or changed after it was signed."""


class DecryptionError(BundleError):
    """A bundle is encrypted and the key is missing or another; or a key was given and the bundle is not encrypted."""


class BundleKeyError(WhetError):
    """A key for bundles cannot be read, is of another kind, or cannot be written."""


class PassError(WhetError):
    """A pass was given impossible options, or was asked for and could change nothing."""


class ParseError(WhetError):
    """The text form of a graph is malformed; the message has line and column."""


class TuningError(WhetError):
    """Tuning was asked for what it cannot do: options out of range, a database or a device that cannot be reached."""


class BackendError(WhetError):
    """A backend cannot compile an operation; names the operation, its source line and the target."""


class InternalError(AssertionError):
    """A broken invariant of Whet itself: please report it with the graph that shows it."""


class VerifyError(InternalError):
    """A graph is malformed: names the operation, its location and the rule that it breaks."""
