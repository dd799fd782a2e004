"""Fat bundles: the same model compiled for several targets in one file, of which `load` takes the best for a device.

A fat bundle is a container of whole bundles, `0.whet`, `1.whet`, ..., and an index of their targets:

    manifest.json   {"format_version": 3, "variants": [{"member": "0.whet", "target": {...}}, ...]}

Each variant has weights of its own, since each target packs them in its own way; only the chosen one is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, BinaryIO, Final

from whet.errors import BundleError
from whet.runtime.files import ReadOnly
from whet.runtime.host import check_host
from whet.runtime.manifest import Reader, TargetSpec, parse_target, readable_version

FAT_FORMAT_VERSION: Final = 3
MOST_VARIANTS: Final = 16
VARIANTS: Final = tuple(f"{number}.whet" for number in range(MOST_VARIANTS))
"""Names of the members."""


class Slice(ReadOnly):
    """A part of a file, as a file that can only be read."""

    def __init__(self, file: BinaryIO, offset: int, size: int) -> None:
        super().__init__(size)
        self._file = file
        self._offset = offset

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer, as far as the part goes."""
        view = memoryview(buffer).cast("B")
        wanted = view[: max(0, self._size - self._position)]
        self._file.seek(self._offset + self._position)
        done = int(self._file.readinto(wanted) or 0)  # type: ignore[attr-defined]
        self._position += done
        return done


def encode_index(targets: Sequence[TargetSpec]) -> bytes:
    """The text of the index."""
    variants = [
        {"member": name, "target": {**vars(target), "features": list(target.features)}}
        for name, target in zip(VARIANTS, targets, strict=False)
    ]
    return json.dumps({"format_version": FAT_FORMAT_VERSION, "variants": variants}, indent=1).encode()


def decode_index(value: Any, members: Sequence[str], source: str) -> list[TargetSpec]:
    """The targets of the variants `members`, in their order. Raises BundleError.

    The format version comes first: a newer format may change every other field.
    """
    try:
        top = Reader(value, "")
        version = readable_version(top, FAT_FORMAT_VERSION, source)
        variants = top.objects("variants")
        named = [item.text("member") for item in variants]
        # Variant number n is the member n.whet.
        if version != FAT_FORMAT_VERSION or named != list(VARIANTS[: len(members)]) or set(named) != set(members):
            raise ValueError(f"format version {version}, which names {named}")
        return [parse_target(item.object("target").fields) for item in variants]
    except ValueError as error:
        raise BundleError(
            f"{source} is damaged: its index is not what it should be ({error}). Copy or save it again"
        ) from error


def best_variant(targets: Sequence[TargetSpec], source: str) -> int:
    """The one whose code uses most of what this processor has. Raises BundleError where none runs here."""
    reasons = []
    runnable = []
    for number, target in enumerate(targets):
        try:
            check_host(target, f"variant {target.name!r}")
        except BundleError as error:
            reasons.append(str(error))
        else:
            runnable.append(number)
    if not runnable:
        raise BundleError(f"{source} has nothing that runs on this device:\n  " + "\n  ".join(reasons))
    return max(runnable, key=lambda number: (len(targets[number].features), -number))
