"""The machine that runs this process, as a target."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from whet.errors import TargetError
from whet.ir.boards import X86_64_V2, X86_64_V3, X86_64_V4
from whet.ir.device import Target
from whet.ir.types import DType
from whet.runtime.cpu import host_arch, host_features, host_os, physical_cores

# LLVM's processor names, the highest level first: (features it needs, name, vector bits, vector registers).
_LEVELS: Final = (
    (frozenset(X86_64_V4), "x86-64-v4", 512, 32),
    (frozenset(X86_64_V3), "x86-64-v3", 256, 16),
    (frozenset(X86_64_V2), "x86-64-v2", 128, 16),
    (frozenset[str](), "x86-64", 128, 16),
)
_TRIPLES: Final[Mapping[str, str]] = MappingProxyType(
    {"linux": "x86_64-unknown-linux-gnu", "darwin": "x86_64-apple-darwin"}
)
_CACHES: Final = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS: Final[Mapping[str, int]] = MappingProxyType({"K": 1024, "M": 1024 * 1024, "G": 1024**3})


def host_target(name: str) -> Target:
    """This machine. Raises TargetError where it is no x86-64, naming the targets that code for it can be made
    for.
    """
    arch, system = host_arch(), host_os()
    if arch != "x86_64" or system not in _TRIPLES:
        raise TargetError(
            f"target {name!r} is this machine, which is {arch} on {system}; choose 'arm' or another target"
        )
    features = host_features()
    cpu, vector_bits, registers = next(row[1:] for row in _LEVELS if row[0] <= features)
    caches = cache_sizes(_CACHES)
    return Target(
        name,
        triple=_TRIPLES[system],
        cpu=cpu,
        features=tuple(sorted(features)),
        vector_bits=vector_bits,
        registers=registers,
        num_cores=physical_cores(),
        l1_cache_bytes=caches.get(1, 32 * 1024),
        l2_cache_bytes=caches.get(2, 256 * 1024),
        activation_dtype=DType.U8,
    )


def cache_sizes(folder: Path) -> dict[int, int]:
    """Bytes of the data caches of one core by level, from Linux's sysfs; empty where it is not there."""
    sizes: dict[int, int] = {}
    for entry in sorted(folder.glob("index*")):
        kind, level, size = (_read(entry / item) for item in ("type", "level", "size"))
        if kind in ("Data", "Unified") and level.isdecimal() and size[:-1].isdecimal() and size[-1:] in _UNITS:
            sizes[int(level)] = int(size[:-1]) * _UNITS[size[-1]]
    return sizes


def _read(path: Path) -> str:
    """The file's text; empty where the kernel does not give it."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
