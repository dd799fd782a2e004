"""Files of float32 weights in fewer bytes: zstandard over the bytes as they are, or plane by plane, the smaller.

The highest bytes of neighbouring floats are alike, the lowest are noise: a plane of each compresses better than both
mixed (the shuffle filter of Blosc and HDF5).
"""

from __future__ import annotations

import numpy as np
import zstandard

_PLANES = {b"\x00": 1, b"\x04": 4}
"""First byte of a packed file -> the number of planes."""


def pack(content: bytes) -> bytes:
    """The same bytes for the same content."""
    compressor = zstandard.ZstdCompressor(level=19)
    return min((mark + compressor.compress(_split(content, planes)) for mark, planes in _PLANES.items()), key=len)


def unpack(packed: bytes) -> bytes:
    """What `pack` was given. Raises zstandard.ZstdError or KeyError for bytes that it did not make."""
    return _joined(zstandard.ZstdDecompressor().decompress(packed[1:]), _PLANES[packed[:1]])


def _split(content: bytes, planes: int) -> bytes:
    """Every `planes`-th byte, from each start; the odd bytes at the end follow as they are."""
    whole = len(content) // planes * planes
    return np.frombuffer(content[:whole], np.uint8).reshape(-1, planes).T.tobytes() + content[whole:]


def _joined(content: bytes, planes: int) -> bytes:
    whole = len(content) // planes * planes
    return np.frombuffer(content[:whole], np.uint8).reshape(planes, -1).T.tobytes() + content[whole:]
