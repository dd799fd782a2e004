"""What a target is: a device, or a class of devices that run the same code, as data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from whet.errors import TargetError
from whet.ir.types import DType

KINDS: Final = ("cpu", "cuda")
_FEATURE: Final = re.compile(r"[a-z0-9][a-z0-9._-]*")
_CUDA_ARCH: Final = re.compile(r"sm_[0-9]{2,3}[af]?")

# First part of a triple -> the runtime's name of the architecture (`whet.runtime.cpu`).
_ARCHITECTURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "x86_64": "x86_64",
        "aarch64": "aarch64",
        "arm64": "aarch64",
        "arm": "arm",
        "armv7": "arm",
        "armv7a": "arm",
    }
)
# LLVM feature -> the integer dot-product instruction that it brings, the widest first. Each sums four
# 8-bit products into each i32 lane ("smmla": eight, in 2x2 tiles), without saturation (numerics: Q5).
_INTEGER_DOTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "avx512vnni": "vpdpbusd_512",
        "avxvnni": "vpdpbusd_256",
        "i8mm": "smmla",
        "dotprod": "sdot",
    }
)


@dataclass(frozen=True)
class Target:
    """One device, or a class of devices that run the same code.

    Args:
        name: how reports, bundles and caches call it.
        kind: "cpu", or "cuda" (then triple, cpu and features speak of the host's side).
        triple: LLVM triple, such as "aarch64-unknown-linux-gnu".
        cpu: LLVM's name of the processor (-mcpu); it also chooses the instruction scheduling.
        features: LLVM features that the code may use and the device must have, without plus signs. A bundle
        states
            them, and a device without one of them refuses it; so none that no code uses (aes, sha2).
        vector_bits: width of a vector register.
        registers: number of vector registers.
        num_cores: physical cores that schedules count on; how many threads really run is chosen at load time.
        l1_cache_bytes: level-1 data cache of a core.
        l2_cache_bytes: level-2 cache, as much of it as belongs to a core.
        activation_dtype: type of 8-bit activations that the integer kernels take: u8 for vpdpbusd, i8 for
        sdot. device_arch: compute capability of a CUDA device ("sm_80"); None for a CPU. runtime: whether the
        TVM runtime exists there; without it only the static export is possible.

    Raises TargetError for an unknown kind, a malformed feature and sizes that cannot be.
    """

    name: str
    kind: str = "cpu"
    triple: str = "x86_64-unknown-linux-gnu"
    cpu: str = "generic"
    features: tuple[str, ...] = ()
    vector_bits: int = 128
    registers: int = 16
    num_cores: int = 4
    l1_cache_bytes: int = 32 * 1024
    l2_cache_bytes: int = 256 * 1024
    activation_dtype: DType = DType.I8
    device_arch: str | None = None
    runtime: bool = True

    def __post_init__(self) -> None:
        problem = self._problem()
        if problem:
            raise TargetError(f"target {self.name!r}: {problem}")

    def _problem(self) -> str | None:
        """The first thing that is wrong with the fields."""
        if self.kind not in KINDS:
            return f"kind is {self.kind!r}; known are {', '.join(KINDS)}"
        if self.triple.split("-")[0] not in _ARCHITECTURES:
            return f"triple {self.triple!r} begins with none of {', '.join(_ARCHITECTURES)}"
        for feature in self.features:
            if not _FEATURE.fullmatch(feature):
                return f"feature {feature!r} must be LLVM's name without a sign"
        if self.vector_bits < 64 or self.vector_bits & (self.vector_bits - 1):
            return f"vector_bits is {self.vector_bits}; it must be a power of two from 64"
        for field in ("registers", "num_cores", "l1_cache_bytes", "l2_cache_bytes"):
            if getattr(self, field) < 1:
                return f"{field} is {getattr(self, field)}; it must be positive"
        if self.activation_dtype not in (DType.U8, DType.I8):
            return f"activation_dtype is {self.activation_dtype.value}; it must be u8 or i8"
        if (self.device_arch is not None) != (self.kind == "cuda"):
            return f"device_arch is {self.device_arch!r}, kind is {self.kind!r}: exactly CUDA devices have one"
        if self.device_arch is not None and not _CUDA_ARCH.fullmatch(self.device_arch):
            return f"device_arch is {self.device_arch!r}; it must be like 'sm_80'"
        return None

    @property
    def arch(self) -> str:
        """Architecture of the processor, in the runtime's words: "x86_64", "aarch64" or "arm"."""
        return _ARCHITECTURES[self.triple.split("-")[0]]

    @property
    def os(self) -> str:
        """Operating system of the triple: "linux" or "darwin"."""
        return "darwin" if any(word in self.triple for word in ("darwin", "macos")) else "linux"

    @property
    def integer_dots(self) -> tuple[str, ...]:
        """Integer dot-product instructions that the features bring, the widest first; empty where there are
        none.
        """
        return tuple(name for feature, name in _INTEGER_DOTS.items() if feature in self.features)

    def __str__(self) -> str:
        return self.name
