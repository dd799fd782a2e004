"""Whether a bundle's code can run here: architecture, operating system and CPU features."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from whet.errors import BundleError
from whet.runtime import cpu
from whet.runtime.manifest import TargetSpec

# e_machine of the ELF header (bytes 18 and 19), by architecture.
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
    if library[:4] != b"\x7fELF" or len(library) < 20:
        raise BundleError(f"{source} is damaged: its library is not an ELF file. Save the bundle again")
    machine = int.from_bytes(library[18:20], "little")
    if machine != expected:
        raise BundleError(
            f"{source} says that it is for {target.arch}, but its library is for another machine (ELF {machine}). "
            "Save the bundle again"
        )
