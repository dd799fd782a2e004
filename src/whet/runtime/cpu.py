"""Features and cores of the processor that this process runs on.

Features have LLVM's names, since a bundle states what its code needs in the words of the compiler that made
it.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import math
import os
import platform
import sys
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Final

_ARCHITECTURES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "x86_64": "x86_64",
        "amd64": "x86_64",
        "aarch64": "aarch64",
        "arm64": "aarch64",
        "armv7l": "arm",
        "armv8l": "arm",
        "armv6l": "arm",
    }
)

# Linux's flag in /proc/cpuinfo -> LLVM's feature. Flags that are not listed have the same name in both, or
# none.
_X86_LINUX: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "fpu": ("x87",), "cx8": ("cx8",), "cmov": ("cmov",), "mmx": ("mmx",), "fxsr": ("fxsr",),
        "sse": ("sse",), "sse2": ("sse2",), "pni": ("sse3",), "ssse3": ("ssse3",),
        "sse4_1": ("sse4.1",), "sse4_2": ("sse4.2",), "sse4a": ("sse4a",),
        "cx16": ("cx16",), "lahf_lm": ("sahf",), "popcnt": ("popcnt",), "abm": ("lzcnt",),
        "bmi1": ("bmi",), "bmi2": ("bmi2",), "movbe": ("movbe",), "adx": ("adx",),
        "avx": ("avx",), "avx2": ("avx2",), "f16c": ("f16c",), "fma": ("fma",), "fma4": ("fma4",),
        "xop": ("xop",),
        "aes": ("aes",), "vaes": ("vaes",), "pclmulqdq": ("pclmul",), "vpclmulqdq": ("vpclmulqdq",),
        "gfni": ("gfni",), "sha_ni": ("sha",), "rdrand": ("rdrnd",), "rdseed": ("rdseed",),
        "fsgsbase": ("fsgsbase",), "invpcid": ("invpcid",), "rdpid": ("rdpid",), "3dnowprefetch": ("prfchw",),
        "clflushopt": ("clflushopt",), "clwb": ("clwb",), "clzero": ("clzero",), "wbnoinvd": ("wbnoinvd",),
        "xsave": ("xsave",), "xsaveopt": ("xsaveopt",), "xsavec": ("xsavec",), "xsaves": ("xsaves",),
        "avx_vnni": ("avxvnni",), "avx_vnni_int8": ("avxvnniint8",), "avx_vnni_int16": ("avxvnniint16",),
        "avx_ifma": ("avxifma",), "avx_ne_convert": ("avxneconvert",),
        "avx512f": ("avx512f",), "avx512cd": ("avx512cd",), "avx512bw": ("avx512bw",),
        "avx512dq": ("avx512dq",),
        "avx512vl": ("avx512vl",), "avx512ifma": ("avx512ifma",), "avx512vbmi": ("avx512vbmi",),
        "avx512_vbmi2": ("avx512vbmi2",), "avx512_vnni": ("avx512vnni",), "avx512_bitalg": ("avx512bitalg",),
        "avx512_vpopcntdq": ("avx512vpopcntdq",), "avx512_bf16": ("avx512bf16",),
        "avx512_fp16": ("avx512fp16",),
        "avx512_vp2intersect": ("avx512vp2intersect",),
        "amx_tile": ("amx-tile",), "amx_int8": ("amx-int8",), "amx_bf16": ("amx-bf16",),
        "amx_fp16": ("amx-fp16",),
    }
)  # fmt: skip

# macOS: words of machdep.cpu.features and machdep.cpu.leaf7_features, on Intel.
_X86_DARWIN: Final[Mapping[str, str]] = MappingProxyType(
    {
        "SSE3": "sse3", "SSSE3": "ssse3", "SSE4.1": "sse4.1", "SSE4.2": "sse4.2", "POPCNT": "popcnt",
        "AVX1.0": "avx", "FMA": "fma", "F16C": "f16c", "AES": "aes", "PCLMULQDQ": "pclmul", "MOVBE": "movbe",
        "AVX2": "avx2", "BMI1": "bmi", "BMI2": "bmi2", "AVX512F": "avx512f", "AVX512CD": "avx512cd",
        "AVX512BW": "avx512bw", "AVX512DQ": "avx512dq", "AVX512VL": "avx512vl", "AVX512VNNI": "avx512vnni",
        "AVX512IFMA": "avx512ifma", "AVX512VBMI": "avx512vbmi", "CX16": "cx16",
    }
)  # fmt: skip

# Bits of getauxval(AT_HWCAP) and getauxval(AT_HWCAP2): Linux, arch/arm64/include/uapi/asm/hwcap.h.
_AARCH64_HWCAP: Final[Mapping[int, tuple[str, ...]]] = MappingProxyType(
    {
        0: ("fp-armv8",), 1: ("neon",), 3: ("aes",), 6: ("sha2",), 7: ("crc",), 8: ("lse",),
        10: ("fullfp16",), 12: ("rdm",), 13: ("jsconv",), 14: ("complxnum",), 15: ("rcpc",), 17: ("sha3",),
        19: ("sm4",), 20: ("dotprod",), 22: ("sve",), 23: ("fp16fml",),
    }
)  # fmt: skip
_AARCH64_HWCAP2: Final[Mapping[int, tuple[str, ...]]] = MappingProxyType(
    {
        1: ("sve2",), 2: ("sve2-aes",), 4: ("sve2-bitperm",), 5: ("sve2-sha3",), 6: ("sve2-sm4",),
        10: ("f32mm",), 11: ("f64mm",), 13: ("i8mm",), 14: ("bf16",), 23: ("sme",), 37: ("sme2",),
    }
)  # fmt: skip
# arch/arm/include/uapi/asm/hwcap.h, 32 bit.
_ARM_HWCAP: Final[Mapping[int, tuple[str, ...]]] = MappingProxyType(
    {
        6: ("vfp2",), 12: ("neon",), 13: ("vfp3",), 16: ("vfp4",), 17: ("hwdiv-arm",), 18: ("hwdiv",),
        22: ("fullfp16",), 24: ("dotprod",), 26: ("bf16",), 27: ("i8mm",),
    }
)  # fmt: skip
_ARM_HWCAP2: Final[Mapping[int, tuple[str, ...]]] = MappingProxyType({0: ("aes",), 3: ("sha2",), 4: ("crc",)})
# arch/x86/include/uapi/asm/prctl.h
_ARCH_PRCTL: Final = 158
_ARCH_REQ_XCOMP_PERM: Final = 0x1023
_XFEATURE_XTILEDATA: Final = 18
_AT_HWCAP: Final = 16
_AT_HWCAP2: Final = 26

_AARCH64_DARWIN: Final[Mapping[str, str]] = MappingProxyType(
    {
        "hw.optional.AdvSIMD": "neon",
        "hw.optional.floatingpoint": "fp-armv8",
        "hw.optional.arm.FEAT_DotProd": "dotprod",
        "hw.optional.arm.FEAT_FP16": "fullfp16",
        "hw.optional.arm.FEAT_FHM": "fp16fml",
        "hw.optional.arm.FEAT_I8MM": "i8mm",
        "hw.optional.arm.FEAT_BF16": "bf16",
        "hw.optional.arm.FEAT_LSE": "lse",
        "hw.optional.arm.FEAT_RDM": "rdm",
        "hw.optional.armv8_crc32": "crc",
    }
)


def _names(*tables: Mapping[int, tuple[str, ...]] | Mapping[str, tuple[str, ...]]) -> frozenset[str]:
    return frozenset(name for table in tables for names in table.values() for name in names)


# The features that a bundle may ask for: those that can be looked up on a device.
FEATURES: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "x86_64": _names(_X86_LINUX),
        "aarch64": _names(_AARCH64_HWCAP, _AARCH64_HWCAP2),
        "arm": _names(_ARM_HWCAP, _ARM_HWCAP2),
    }
)


def host_arch() -> str:
    """ "x86_64", "aarch64" or "arm"; the machine's own word for any other."""
    machine = platform.machine().lower()
    arch = _ARCHITECTURES.get(machine, machine)
    # A 32-bit Python on a 64-bit kernel (Raspberry Pi OS) runs 32-bit code.
    return "arm" if arch == "aarch64" and sys.maxsize < 1 << 32 else arch


def host_os() -> str:
    """ "linux", "darwin" or "windows"."""
    return platform.system().lower()


@cache
def host_features() -> frozenset[str]:
    """Features of this processor that the operating system lets programs use, by LLVM's names."""
    read = _READERS.get((host_os(), host_arch()))
    return frozenset() if read is None else read()


def x86_features(cpuinfo: str) -> frozenset[str]:
    """Features that the text of an x86 /proc/cpuinfo states."""
    for line in cpuinfo.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() == "flags":
            return frozenset(feature for flag in flags.split() for feature in _X86_LINUX.get(flag, ()))
    return frozenset()


def hwcap_features(arch: str, hwcap: int, hwcap2: int) -> frozenset[str]:
    """Features that the two words of Linux's auxiliary vector state, for "aarch64" or "arm"."""
    tables = (_AARCH64_HWCAP, _AARCH64_HWCAP2) if arch == "aarch64" else (_ARM_HWCAP, _ARM_HWCAP2)
    words = zip(tables, (hwcap, hwcap2), strict=True)
    return frozenset(name for table, word in words for bit, names in table.items() if word >> bit & 1 for name in names)


def _linux_x86() -> frozenset[str]:
    features = x86_features(Path("/proc/cpuinfo").read_text())
    units = frozenset(feature for feature in features if feature.startswith("amx-"))
    return features if not units or _may_use_tiles() else features - units


def _may_use_tiles() -> bool:
    """Ask Linux for the registers of the matrix unit (AMX), for all threads of this process; the answer.

    Their first use without that is an illegal instruction (Linux, Documentation/arch/x86/xstate.rst).
    """
    libc = ctypes.CDLL(None)
    return bool(libc.syscall(_ARCH_PRCTL, _ARCH_REQ_XCOMP_PERM, _XFEATURE_XTILEDATA) == 0)


def _linux_arm() -> frozenset[str]:
    # Under user-mode emulation /proc/cpuinfo is the host's; the auxiliary vector is the emulated processor's.
    libc = ctypes.CDLL(None)
    libc.getauxval.argtypes = [ctypes.c_ulong]
    libc.getauxval.restype = ctypes.c_ulong
    return hwcap_features(host_arch(), libc.getauxval(_AT_HWCAP), libc.getauxval(_AT_HWCAP2))


def _sysctl(name: str) -> bytes:
    """Value of a macOS kernel variable; empty where there is none of that name."""
    libc = ctypes.CDLL(ctypes.util.find_library("c"))
    size = ctypes.c_size_t(0)
    if libc.sysctlbyname(name.encode(), None, ctypes.byref(size), None, 0):
        return b""
    buffer = ctypes.create_string_buffer(size.value)
    if libc.sysctlbyname(name.encode(), buffer, ctypes.byref(size), None, 0):
        return b""
    return buffer.raw[: size.value]


def _darwin_x86() -> frozenset[str]:
    words = b" ".join(_sysctl(f"machdep.cpu.{name}").rstrip(b"\0") for name in ("features", "leaf7_features"))
    return frozenset(_X86_DARWIN[word] for word in words.decode().split() if word in _X86_DARWIN)


def _darwin_arm() -> frozenset[str]:
    return frozenset(feature for name, feature in _AARCH64_DARWIN.items() if any(_sysctl(name)))


_READERS: Final[Mapping[tuple[str, str], Callable[[], frozenset[str]]]] = MappingProxyType(
    {
        ("linux", "x86_64"): _linux_x86,
        ("linux", "aarch64"): _linux_arm,
        ("linux", "arm"): _linux_arm,
        ("darwin", "x86_64"): _darwin_x86,
        ("darwin", "aarch64"): _darwin_arm,
    }
)


def physical_cores(
    cpus: frozenset[int] | None = None,
    topology: Path = Path("/sys/devices/system/cpu"),
    quota: float | None = None,
) -> int:
    """Cores that this process may use: hyper-threads of one core count once; affinity and cgroup quota are
    respected.

    `cpus` (default: the affinity mask), `topology` and `quota` (default: the cgroup's CPU limit) are for
    tests.
    """
    allowed = _affinity() if cpus is None else cpus
    limit = cgroup_quota() if quota is None else quota
    siblings = {_read_text(topology / f"cpu{cpu}" / "topology" / "thread_siblings_list") or str(cpu) for cpu in allowed}
    cores = len(siblings)
    return cores if limit is None else max(1, math.ceil(min(cores, limit)))


def _affinity() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _read_text(path: Path) -> str:
    """Text of a file of the kernel, stripped; empty where it does not exist or may not be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def cgroup_quota(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float | None:
    """CPUs that the control group allows (1.5 means one and a half), None for no limit. Versions 1 and 2."""
    quotas: list[float] = []
    for line in _read_text(proc).splitlines():
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / "cpu" if controllers else root
        path = Path(group.lstrip("/"))
        # A container sees its own group as the root: the path named in /proc may not be there.
        for folder in {base / item for item in (path, *path.parents)}:
            quota = _group_quota(folder)
            if quota is not None:
                quotas.append(quota)
    return min(quotas, default=None)


def _group_quota(folder: Path) -> float | None:
    limit = _read_text(folder / "cpu.max").split()
    if not limit:
        limit = [_read_text(folder / name) for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    if not all(word.isdecimal() for word in limit) or len(limit) != 2 or int(limit[1]) == 0:
        return None
    return int(limit[0]) / int(limit[1])
