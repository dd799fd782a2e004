"""Devices as data: what compiled code may use on them, and the catalogue of those that Whet knows by name.

A target of one's own is one dataclass, given to `whet.optimize` in place of a name:

    Target("my-board", triple="aarch64-unknown-linux-gnu", cpu="cortex-a55", features=("neon", "dotprod"))

A package may publish targets through the entry point group "whet.targets", each a Target or a function that
gives one.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Final

from whet.errors import TargetError
from whet.ir.types import DType

ENTRY_POINTS: Final = "whet.targets"
KINDS: Final = ("cpu", "cuda")
_FEATURE: Final = re.compile(r"[a-z0-9][a-z0-9._-]*")
_CUDA: Final = re.compile(r"cuda:(sm_([0-9]{2,3})[af]?)")
_CUDA_ARCH: Final = re.compile(r"sm_[0-9]{2,3}[af]?")
_OLDEST_CUDA: Final = 70

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


# The instruction sets of the x86-64 psABI's levels, as far as a processor can be asked for them.
X86_64_V2: Final = ("cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3")
X86_64_V3: Final = (*X86_64_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave")
X86_64_V4: Final = (*X86_64_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")

_AVX512: Final = Target(
    "avx512",
    triple="x86_64-unknown-linux-gnu",
    cpu="x86-64-v4",
    features=X86_64_V4,
    vector_bits=512,
    registers=32,
    l2_cache_bytes=1024 * 1024,
    activation_dtype=DType.U8,
)
_ARM: Final = Target(
    "arm",
    triple="aarch64-unknown-linux-gnu",
    cpu="generic",
    features=("fp-armv8", "neon"),
    vector_bits=128,
    registers=32,
)
_CUDA_DEFAULT: Final = Target(
    "cuda", kind="cuda", triple="x86_64-unknown-linux-gnu", cpu="x86-64", device_arch="sm_80", num_cores=1
)

CATALOGUE: Final[Mapping[str, Target]] = MappingProxyType(
    {
        target.name: target
        for target in (
            # Haswell (2013), Zen and later.
            Target(
                "avx2",
                triple="x86_64-unknown-linux-gnu",
                cpu="x86-64-v3",
                features=X86_64_V3,
                vector_bits=256,
                activation_dtype=DType.U8,
            ),
            # Skylake-SP (2017), Zen 4 and later; with VNNI, Cascade Lake (2019), Zen 4 and later.
            _AVX512,
            replace(_AVX512, name="avx512-vnni", features=(*X86_64_V4, "avx512vnni")),
            _ARM,
            # Raspberry Pi 4; its four cores share 1 MiB of L2.
            replace(_ARM, name="cortex-a72", cpu="cortex-a72", features=("crc", "fp-armv8", "neon")),
            # Raspberry Pi 5.
            replace(
                _ARM,
                name="cortex-a76",
                cpu="cortex-a76",
                features=("crc", "dotprod", "fp-armv8", "fullfp16", "lse", "neon", "rcpc", "rdm"),
                l1_cache_bytes=64 * 1024,
                l2_cache_bytes=512 * 1024,
            ),
            # Graviton 2, Ampere Altra.
            replace(
                _ARM,
                name="neoverse-n1",
                cpu="neoverse-n1",
                features=("crc", "dotprod", "fp-armv8", "fullfp16", "lse", "neon", "rcpc", "rdm"),
                l1_cache_bytes=64 * 1024,
                l2_cache_bytes=1024 * 1024,
            ),
            Target(
                "armv7",
                triple="armv7-unknown-linux-gnueabihf",
                cpu="generic",
                features=("neon", "vfp3"),
                vector_bits=128,
                registers=16,
                l2_cache_bytes=128 * 1024,
                runtime=False,
            ),
            _CUDA_DEFAULT,
        )
    }
)
HOST: Final = "x86"
"""The name of the machine that asks; it is detected when asked for."""


def get_target(target: str | Target) -> Target:
    """The target of that name; a Target is returned as it is.

    Names are those of `CATALOGUE`, "x86" (this machine), "cuda:sm_NN", and what other packages publish.
    Raises TargetError, with the known names and the nearest of them, for any other.
    """
    if isinstance(target, Target):
        return target
    if not isinstance(target, str):
        raise TargetError(f"a target is a name or a whet.Target, not {type(target).__name__}")
    if target == HOST:
        from whet.ir.host import host_target

        return host_target(HOST)
    if target in CATALOGUE:
        return CATALOGUE[target]
    cuda = _CUDA.fullmatch(target)
    if cuda is not None:
        return _cuda_target(target, arch=cuda.group(1), capability=int(cuda.group(2)))
    published = _published()
    if target in published:
        return _load(target, published[target])
    raise TargetError(_unknown(target, target_names()))


def target_names() -> tuple[str, ...]:
    """Every name that `get_target` takes; "cuda:sm_NN" stands for all compute capabilities."""
    return (HOST, *CATALOGUE, "cuda:sm_NN", *sorted(_published()))


def _cuda_target(name: str, arch: str, capability: int) -> Target:
    if capability < _OLDEST_CUDA:
        raise TargetError(f"{name}: compute capabilities from sm_{_OLDEST_CUDA} are supported")
    return replace(_CUDA_DEFAULT, name=name, device_arch=arch)


def _published() -> dict[str, EntryPoint]:
    """Targets of other packages by name. Raises TargetError for a name that is taken twice."""
    found: dict[str, EntryPoint] = {}
    for point in entry_points(group=ENTRY_POINTS):
        if point.name == HOST or point.name in CATALOGUE or point.name in found:
            raise TargetError(f"target {point.name!r} is published by {point.value!r}, but that name is taken already")
        found[point.name] = point
    return found


def _load(name: str, point: EntryPoint) -> Target:
    loaded = point.load()
    target = loaded() if callable(loaded) else loaded
    if not isinstance(target, Target):
        raise TargetError(f"entry point {name!r} ({point.value}) gives a {type(target).__name__}, not a whet Target")
    return target


def _unknown(name: str, known: tuple[str, ...]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    hint = f" Did you mean {' or '.join(repr(item) for item in near)}?" if near else ""
    return (
        f"unknown target {name!r}.{hint} Known are {', '.join(known)}; "
        "for another device make a whet Target with its triple, cpu and features"
    )
