"""Processors and boards that Whet knows by name: what code for each may use, and its caches.

Features are those that code may be made of (no cryptography) by LLVM's names; sizes are of one core, a shared cache
divided by its cores. Sources: Arm's and Intel's optimization manuals, the boards' data sheets, LLVM's lists of what
each -mcpu implies.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from whet.ir.device import Target
from whet.ir.types import DType

_KIB: Final = 1024
_MIB: Final = 1024 * 1024
_LINUX_X86: Final = "x86_64-unknown-linux-gnu"
_LINUX_ARM: Final = "aarch64-unknown-linux-gnu"

# The instruction sets of the x86-64 psABI's levels, as far as a processor can be asked for them.
X86_64_V2: Final = ("cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3")
X86_64_V3: Final = (*X86_64_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe", "xsave")
X86_64_V4: Final = (*X86_64_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
_AVX512_LATER: Final = (
    "avx512bf16", "avx512bitalg", "avx512ifma", "avx512vbmi", "avx512vbmi2", "avx512vnni", "avx512vpopcntdq", "gfni",
)  # fmt: skip
_AMX: Final = ("amx-bf16", "amx-int8", "amx-tile")

_ARMV8: Final = ("crc", "fp-armv8", "neon")
_ARMV8_2: Final = (*_ARMV8, "dotprod", "fullfp16", "lse", "rdm")
_A76: Final = (*_ARMV8_2, "rcpc")
_SERVER_SVE: Final = (*_A76, "bf16", "complxnum", "fp16fml", "i8mm", "jsconv", "sve")
_SVE2: Final = (*_SERVER_SVE, "sve2")

_SSE: Final = Target(
    "x86-64-v2",
    triple=_LINUX_X86,
    cpu="x86-64-v2",
    features=X86_64_V2,
    vector_bits=128,
    activation_dtype=DType.U8,
)
_AVX2: Final = replace(_SSE, name="avx2", cpu="x86-64-v3", features=X86_64_V3, vector_bits=256)
_AVX512: Final = replace(
    _SSE,
    name="avx512",
    cpu="x86-64-v4",
    features=X86_64_V4,
    vector_bits=512,
    registers=32,
    l2_cache_bytes=_MIB,
)
_ARM: Final = Target(
    "arm",
    triple=_LINUX_ARM,
    cpu="generic",
    features=("fp-armv8", "neon"),
    vector_bits=128,
    registers=32,
)
_CORTEX_A72: Final = replace(_ARM, name="cortex-a72", cpu="cortex-a72", features=_ARMV8)
_CORTEX_A76: Final = replace(
    _ARM,
    name="cortex-a76",
    cpu="cortex-a76",
    features=_A76,
    l1_cache_bytes=64 * _KIB,
    l2_cache_bytes=512 * _KIB,
)
_NEOVERSE_N1: Final = replace(_CORTEX_A76, name="neoverse-n1", cpu="neoverse-n1", l2_cache_bytes=_MIB)
_ORIN: Final = replace(_CORTEX_A76, name="jetson-orin", cpu="cortex-a78ae", num_cores=12, l2_cache_bytes=256 * _KIB)
_APPLE: Final = replace(
    _CORTEX_A76,
    name="apple-m1",
    triple="arm64-apple-darwin",
    cpu="apple-m1",
    features=("dotprod", "fp-armv8", "fp16fml", "fullfp16", "lse", "neon", "rdm"),
    l1_cache_bytes=128 * _KIB,
    l2_cache_bytes=3 * _MIB,
)
CUDA: Final = Target("cuda", kind="cuda", triple=_LINUX_X86, cpu="x86-64", device_arch="sm_80", num_cores=1)

BOARDS: Final = (
    # Nehalem (2008) and later.
    _SSE,
    # Haswell (2013), Zen and later; the same as x86-64-v3.
    _AVX2,
    replace(_AVX2, name="x86-64-v3"),
    # Skylake-SP (2017), Zen 4 and later; the same as x86-64-v4. With VNNI, Cascade Lake (2019), Zen 4 and later.
    _AVX512,
    replace(_AVX512, name="x86-64-v4"),
    replace(_AVX512, name="avx512-vnni", features=(*X86_64_V4, "avx512vnni")),
    replace(_AVX512, name="zen4", cpu="znver4", features=(*X86_64_V4, *_AVX512_LATER), num_cores=8),
    replace(
        _AVX512,
        name="sapphire-rapids",
        cpu="sapphirerapids",
        features=(*X86_64_V4, *_AVX512_LATER, "avx512fp16", "avxvnni", *_AMX),
        num_cores=8,
        l1_cache_bytes=48 * _KIB,
        l2_cache_bytes=2 * _MIB,
    ),
    _ARM,
    replace(_ARM, name="armv8.2", features=_ARMV8_2, l1_cache_bytes=64 * _KIB),
    replace(_ARM, name="armv9", features=_SVE2, l1_cache_bytes=64 * _KIB, l2_cache_bytes=512 * _KIB),
    # Four cores share 1 MiB of L2.
    _CORTEX_A72,
    _CORTEX_A76,
    replace(_CORTEX_A72, name="raspberry-pi-3", cpu="cortex-a53", l2_cache_bytes=128 * _KIB),
    replace(_CORTEX_A72, name="raspberry-pi-4"),
    replace(_CORTEX_A76, name="raspberry-pi-5"),
    _ORIN,
    replace(_ORIN, name="jetson-orin-gpu", kind="cuda", device_arch="sm_87"),
    # Graviton 2, Ampere Altra.
    _NEOVERSE_N1,
    replace(_NEOVERSE_N1, name="graviton2", num_cores=64),
    replace(_NEOVERSE_N1, name="graviton3", cpu="neoverse-v1", features=_SERVER_SVE, num_cores=64),
    replace(
        _NEOVERSE_N1,
        name="graviton4",
        cpu="neoverse-v2",
        features=_SVE2,
        num_cores=96,
        l2_cache_bytes=2 * _MIB,
    ),
    # Mach-O objects: macOS alone can link them.
    _APPLE,
    replace(
        _APPLE, name="apple-m2", cpu="apple-m2", features=(*_APPLE.features, "bf16", "i8mm"), l2_cache_bytes=4 * _MIB
    ),
    Target(
        "armv7",
        triple="armv7-unknown-linux-gnueabihf",
        cpu="generic",
        features=("neon", "vfp3"),
        vector_bits=128,
        registers=16,
        l2_cache_bytes=128 * _KIB,
        runtime=False,
    ),
    CUDA,
)
"""Every device of the catalogue."""
