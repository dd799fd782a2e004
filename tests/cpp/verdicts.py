"""What the Python runtime says of bundles, in the words of the C API."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from whet.errors import BundleError, DecryptionError, SignatureError
from whet.runtime import read_bundle

_KINDS: Final = {SignatureError: "not trusted", DecryptionError: "wrong key"}
# Words of the messages of a BundleError, by the status of the C API.
_WORDS: Final = {
    "this whet reads up to": "newer format",
    "was compiled for": "other device",
    "nothing that runs on this device": "other device",
}


def status_of(error: BundleError) -> str:
    """The status of the C API for an error of the Python runtime."""
    if type(error) in _KINDS:
        return _KINDS[type(error)]
    return next((status for words, status in _WORDS.items() if words in str(error)), "damaged")


def python_verdict(path: Path, trusted: Path | None = None, key: Path | None = None) -> tuple[str, str]:
    """Status and message for a bundle; nothing of it is loaded."""
    try:
        read_bundle(path, trusted=trusted, key=key)
    except BundleError as error:
        return status_of(error), str(error)
    return "ok", ""
