"""What weights take, in memory and on the disk, one by one and in all."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from whet.runtime.bundle import Trusted, read_layout
from whet.runtime.dtypes import Array
from whet.runtime.keys import KeySource
from whet.runtime.packing import pack
from whet.runtime.parts import LIBRARY, PACKED, WEIGHTS
from whet.runtime.safetensors import RawTensor, encode_header
from whet.runtime.storage_header import PackedHeader


@dataclass(frozen=True)
class StoredWeight:
    """One weight: `memory` bytes when loaded, `disk` bytes stored (its share of blocks that it has a part of)."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    form: str
    memory: int
    disk: float


@dataclass(frozen=True)
class StorageReport:
    """Prints as a table. `weights_disk` counts the members with weights whole, headers and all; `file` is 0 where
    nothing was written yet.
    """

    weights: tuple[StoredWeight, ...]
    weights_disk: int
    library: int = 0
    file: int = 0

    @property
    def weights_memory(self) -> int:
        """Bytes of all weights when loaded; of equal tensors one counts."""
        return sum(weight.memory for weight in self.weights)

    @property
    def ratio(self) -> float:
        """How many times smaller the weights are on the disk."""
        return self.weights_memory / self.weights_disk if self.weights_disk else 1.0

    def __str__(self) -> str:
        width = max([6, *(len(weight.key) for weight in self.weights)])
        rows: list[tuple[object, ...]] = [("weight", "type", "elements", "memory B", "disk B", "form")]
        rows += [
            (weight.key, weight.dtype, math.prod(weight.shape), weight.memory, round(weight.disk), weight.form)
            for weight in self.weights
        ]
        rows.append(("in all", "", "", self.weights_memory, self.weights_disk, f"{self.ratio:.2f}x"))
        lines = [f"{a:<{width}} {b:>5} {c:>10} {d:>11} {e:>11}  {f}" for a, b, c, d, e, f in rows]
        if self.file:
            lines.append(f"code {self.library} B, whole file {self.file} B")
        return "\n".join(lines)


def storage_report(
    path: str | os.PathLike[str],
    variant: int | None = None,
    *,
    trusted: Trusted = None,
    key: KeySource | None = None,
) -> StorageReport:
    """What the weights of a bundle take; nothing of them is expanded, and the bundle may be for any device.

    Of a fat bundle those of a `variant`, by default the best here.

    Raises BundleError for a file that is no whole bundle, and what `whet.load` raises for its keys.
    """
    layout = read_layout(path, variant, trusted=trusted, key=key)
    rows = [_plain_row(entry.key, entry.dtype, entry.shape, entry.end - entry.begin) for entry in layout.plain]
    if layout.packed is not None:
        rows += _packed_rows(layout.packed)
    disk = layout.members[WEIGHTS] + layout.members.get(PACKED, 0)
    return StorageReport(tuple(rows), disk, layout.members[LIBRARY], layout.file)


def storage_of(weights: Mapping[str, Array | RawTensor]) -> StorageReport:
    """What weights will take in a bundle."""
    raw = {key: item if isinstance(item, RawTensor) else RawTensor.of(item) for key, item in weights.items()}
    plain, packed = pack(raw)
    rows = [_plain_row(key, item.dtype, item.array.shape, item.array.nbytes) for key, item in plain.items()]
    disk = len(encode_header(plain)) + sum(row.memory for row in rows)
    if packed is not None:
        rows += _packed_rows(packed.header)
        disk += packed.size
    return StorageReport(tuple(rows), disk)


def _plain_row(key: str, dtype: str, shape: tuple[int, ...], size: int) -> StoredWeight:
    return StoredWeight(key, dtype, shape, "as in memory", size, size)


def _packed_rows(header: PackedHeader) -> Iterator[StoredWeight]:
    for tensor in header.tensors:
        if tensor.same:
            yield StoredWeight(tensor.key, tensor.dtype, tensor.shape, tensor.form, 0, 0)
            continue
        blocks = [header.blocks[number] for number in tensor.blocks]
        parts = zip(blocks, tensor.streams, strict=True)
        disk = sum(block.stored * size / block.size for block, (_, size) in parts if block.size)
        yield StoredWeight(tensor.key, tensor.dtype, tensor.shape, tensor.form, tensor.nbytes, disk)
