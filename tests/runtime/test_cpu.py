"""Features by LLVM's names, and cores that are cores."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from whet.runtime import cpu
from whet.runtime.cpu import (
    FEATURES,
    cgroup_quota,
    host_features,
    hwcap_features,
    physical_cores,
    x86_features,
)

_ZEN4 = (
    "processor\t: 0\nmodel name\t: AMD EPYC\n"
    "flags\t\t: fpu mmx sse sse2 pni ssse3 sse4_1 sse4_2 popcnt abm avx f16c bmi1 bmi2 avx2 fma avx512f "
    "avx512dq avx512cd avx512bw avx512vl avx_vnni avx512_vnni avx512_bf16 nopl\n"
)


def test_x86_flags() -> None:
    assert x86_features(_ZEN4) == {
        "x87", "mmx", "sse", "sse2", "sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "lzcnt", "avx",
        "f16c", "bmi", "bmi2",
        "avx2", "fma", "avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl", "avxvnni",
        "avx512vnni", "avx512bf16",
    }  # fmt: skip
    assert x86_features("processor : 0\n") == frozenset()


def test_hwcap() -> None:
    """The words that Linux gives on a Cortex-A72, a Cortex-A76 and a Neoverse V1."""
    a72 = hwcap_features("aarch64", 0x8FF, 0)
    assert {"neon", "fp-armv8", "crc", "aes", "sha2"} <= a72 and not {"dotprod", "fullfp16", "lse"} & a72
    a76 = hwcap_features("aarch64", 0x8FF | 1 << 8 | 1 << 9 | 1 << 10 | 1 << 12 | 1 << 15 | 1 << 20, 0)
    assert a76 - a72 == {"lse", "fullfp16", "rdm", "rcpc", "dotprod"}
    assert {"sve", "sve2", "i8mm", "bf16"} <= hwcap_features("aarch64", 1 << 22, 1 << 1 | 1 << 13 | 1 << 14)
    assert hwcap_features("arm", 1 << 12 | 1 << 16, 0) == {"neon", "vfp4"}


def test_this_host() -> None:
    assert cpu.host_os() == "linux"
    assert cpu.host_arch() in FEATURES
    assert host_features() <= FEATURES[cpu.host_arch()]
    assert host_features() & {"sse2", "neon"}


def test_names_are_llvm_s() -> None:
    """Each name is one that LLVM knows: a target that asks for it compiles without a complaint on stderr."""
    import tvm

    triples = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
    has_feature = tvm.get_global_func("target.target_has_feature")
    for arch, triple in triples.items():
        for feature in FEATURES[arch]:
            target = tvm.target.Target({"kind": "llvm", "mtriple": triple, "mattr": [f"+{feature}"]})
            assert has_feature(feature, target), feature
        assert not has_feature("no-such-feature", tvm.target.Target({"kind": "llvm", "mtriple": triple}))


@pytest.mark.parametrize(
    ("machine", "arch"), [("x86_64", "x86_64"), ("AMD64", "x86_64"), ("arm64", "aarch64"), ("armv7l", "arm")]
)
def test_architecture_names(monkeypatch: pytest.MonkeyPatch, machine: str, arch: str) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert cpu.host_arch() == arch


def _topology(folder: Path, siblings: dict[int, str]) -> Path:
    for number, text in siblings.items():
        path = folder / f"cpu{number}" / "topology" / "thread_siblings_list"
        path.parent.mkdir(parents=True)
        path.write_text(text + "\n")
    return folder


def test_hyper_threads_count_once(tmp_path: Path) -> None:
    topology = _topology(tmp_path, {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"})
    unlimited = float("inf")
    assert physical_cores(frozenset(range(8)), topology, unlimited) == 4
    assert physical_cores(frozenset({0, 4, 1}), topology, unlimited) == 2
    assert physical_cores(frozenset({0, 1, 2}), topology, 1.5) == 2
    assert physical_cores(frozenset({0, 1, 2}), topology, 0.2) == 1
    assert physical_cores(frozenset({0, 1, 2}), tmp_path / "none", unlimited) == 3


def test_cgroup_limits(tmp_path: Path) -> None:
    proc = tmp_path / "cgroup"
    assert cgroup_quota(proc, tmp_path) is None
    group = tmp_path / "two" / "a" / "b"
    group.mkdir(parents=True)
    proc.write_text("0::/a/b\n")
    (group / "cpu.max").write_text("max 100000\n")
    assert cgroup_quota(proc, tmp_path / "two") is None
    (group.parent / "cpu.max").write_text("150000 100000\n")
    assert cgroup_quota(proc, tmp_path / "two") == 1.5
    old = tmp_path / "one" / "cpu" / "docker"
    old.mkdir(parents=True)
    proc.write_text("5:memory:/docker\n4:cpu,cpuacct:/docker\n")
    (old / "cpu.cfs_quota_us").write_text("-1\n")
    (old / "cpu.cfs_period_us").write_text("100000\n")
    assert cgroup_quota(proc, tmp_path / "one") is None
    (old / "cpu.cfs_quota_us").write_text("200000\n")
    assert cgroup_quota(proc, tmp_path / "one") == 2.0
