"""Whether a bundle's code can run here: architecture, operating system and CPU features."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from whet.errors import BundleError
from whet.runtime import cpu
from whet.runtime.manifest import TargetSpec

# EI_DATA of the ELF header.
_LITTLE_ENDIAN: Final = 1


@dataclass(frozen=True)
class _ElfLayout:
    """Where fields lie: e_phoff and e_phentsize of the header, of a program header p_offset and p_filesz."""

    word: str
    table: int
    entries: int
    begin: int
    length: int


# By EI_CLASS: 32 and 64 bit.
_ELF_CLASSES: Final[Mapping[int, _ElfLayout]] = MappingProxyType(
    {1: _ElfLayout("I", 28, 42, 4, 16), 2: _ElfLayout("Q", 32, 54, 8, 32)}
)
# e_machine of the ELF header, by architecture.
_ELF_MACHINES: Final[Mapping[str, int]] = MappingProxyType({"x86_64": 62, "aarch64": 183, "arm": 40})


def check_host(target: TargetSpec, source: str) -> None:
    """Raise BundleError unless code for `target` runs on this processor and operating system."""
    here = (cpu.host_arch(), cpu.host_os())
    if (target.arch, target.os) != here:
        raise BundleError(
            f"{source} was compiled for {target.arch} {target.os} (target {target.name!r}); "
            f"this device is {here[0]} {here[1]}. Compile the model again for this device"
        )
    missing = sorted(set(target.features) - cpu.host_features())
    if missing:
        raise BundleError(
            f"{source} was compiled for a processor with {', '.join(missing)} (target {target.name!r}), "
            f"which this one has not. Compile the model again for this device or for a plainer target"
        )


def check_library(library: bytes, target: TargetSpec, source: str) -> None:
    """Raise BundleError unless the library is of the architecture that the manifest says.

    The system's own loader says of a foreign library only that it "cannot open" it.
    """
    expected = _ELF_MACHINES.get(target.arch)
    if target.os != "linux" or expected is None:
        return
    try:
        machine, end = _elf(library)
    # A place in the headers may lie beyond what can be addressed.
    except (ValueError, OverflowError, struct.error) as error:
        raise BundleError(
            f"{source} is damaged: its library is not an ELF file ({error}). Save the bundle again"
        ) from error
    if machine != expected:
        raise BundleError(
            f"{source} says that it is for {target.arch}, but its library is for another machine "
            f"(ELF {machine}). Save the bundle again"
        )
    # The system's loader maps what is missing all the same, and the process dies when it is touched.
    if end > len(library):
        raise BundleError(
            f"{source} is damaged: its library has {len(library)} bytes and should have {end}. Save the bundle again"
        )


def _elf(library: bytes) -> tuple[int, int]:
    """(machine, least size in bytes) that the headers of an ELF file state (System V ABI)."""
    if library[:4] != b"\x7fELF" or library[4] not in _ELF_CLASSES or library[5] != _LITTLE_ENDIAN:
        raise ValueError("wrong first bytes")
    layout = _ELF_CLASSES[library[4]]
    (machine,) = struct.unpack_from("<H", library, 18)
    (table,) = struct.unpack_from(f"<{layout.word}", library, layout.table)
    size, count = struct.unpack_from("<2H", library, layout.entries)
    end = table + size * count
    for index in range(count):
        (begin,) = struct.unpack_from(f"<{layout.word}", library, table + size * index + layout.begin)
        (length,) = struct.unpack_from(f"<{layout.word}", library, table + size * index + layout.length)
        end = max(end, begin + length)
    return machine, end
