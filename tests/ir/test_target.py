"""Targets: the catalogue, this machine, names that are wrong, and those of other packages."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from whet.errors import TargetError
from whet.ir import DType, boards, host, target
from whet.ir.host import cache_sizes
from whet.ir.target import CATALOGUE, Target, get_target, target_names
from whet.runtime.cpu import FEATURES, host_arch, host_features, physical_cores


def test_the_names_that_users_know_are_there() -> None:
    processors = {"avx2", "avx512", "avx512-vnni", "x86-64-v2", "x86-64-v3", "x86-64-v4", "zen4", "sapphire-rapids"}
    arm = {"arm", "armv7", "armv8.2", "armv9", "cortex-a72", "cortex-a76", "neoverse-n1", "apple-m1", "apple-m2"}
    boards = {"raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "jetson-orin", "jetson-orin-gpu"}
    servers = {"graviton2", "graviton3", "graviton4"}
    assert set(CATALOGUE) == processors | arm | boards | servers | {"cuda"}
    assert set(target_names()) == {*CATALOGUE, "x86", "cuda:sm_NN"}


@pytest.mark.parametrize("name", CATALOGUE)
def test_features_can_be_looked_up_on_the_device(name: str) -> None:
    item = get_target(name)
    assert item.name == name
    assert set(item.features) <= FEATURES[item.arch]


def test_facts_that_kernels_rely_on() -> None:
    assert get_target("avx512-vnni").integer_dots == ("vpdpbusd_512",)
    assert get_target("avx512").integer_dots == get_target("avx2").integer_dots == ()
    assert get_target("cortex-a76").integer_dots == ("sdot",)
    assert get_target("neoverse-n1").integer_dots == ("sdot",)
    assert get_target("cortex-a72").integer_dots == ()
    assert get_target("avx512-vnni").activation_dtype is DType.U8
    assert get_target("cortex-a76").activation_dtype is DType.I8
    assert not get_target("armv7").runtime
    assert (get_target("avx512").vector_bits, get_target("avx512").registers) == (512, 32)
    assert "aes" not in get_target("cortex-a72").features  # the Raspberry Pi 4 has no cryptography extension


def test_cuda_names_its_capability() -> None:
    assert get_target("cuda").device_arch == "sm_80"
    for name, arch in (("cuda:sm_70", "sm_70"), ("cuda:sm_90a", "sm_90a"), ("cuda:sm_120", "sm_120")):
        assert get_target(name).device_arch == arch
        assert get_target(name).kind == "cuda"
        assert get_target(name).name == name
    with pytest.raises(TargetError, match="from sm_70"):
        get_target("cuda:sm_61")


def test_x86_is_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    if host_arch() == "x86_64":
        found = get_target("x86")
        assert set(found.features) == host_features()
        assert found.num_cores == physical_cores()
        assert found.vector_bits == (512 if "avx512bw" in found.features else 256 if "avx2" in found.features else 128)
    monkeypatch.setattr(host, "host_arch", lambda: "x86_64")
    monkeypatch.setattr(host, "host_os", lambda: "linux")
    monkeypatch.setattr(host, "host_features", lambda: frozenset(boards.X86_64_V3) | {"avxvnni"})
    laptop = get_target("x86")
    assert (laptop.cpu, laptop.vector_bits, laptop.registers) == ("x86-64-v3", 256, 16)
    assert laptop.integer_dots == ("vpdpbusd_256",)
    monkeypatch.setattr(host, "host_features", lambda: frozenset({"sse2"}))
    assert get_target("x86").cpu == "x86-64"
    monkeypatch.setattr(host, "host_arch", lambda: "aarch64")
    with pytest.raises(TargetError, match="aarch64 on linux; choose 'arm'"):
        get_target("x86")


def test_cache_sizes_are_read(tmp_path: Path) -> None:
    for index, row in enumerate(
        [("Data", "1", "48K"), ("Instruction", "1", "32K"), ("Unified", "2", "2M"), ("", "", "")]
    ):
        (tmp_path / f"index{index}").mkdir()
        for name, text in zip(("type", "level", "size"), row, strict=True):
            (tmp_path / f"index{index}" / name).write_text(text + "\n")
    assert cache_sizes(tmp_path) == {1: 48 * 1024, 2: 2 * 1024 * 1024}
    assert cache_sizes(tmp_path / "none") == {}


def test_a_target_of_ones_own_is_taken_as_it_is() -> None:
    mine = Target("board", triple="aarch64-unknown-linux-gnu", cpu="cortex-a55", features=("neon", "dotprod"))
    assert get_target(mine) is mine
    assert mine.arch == "aarch64"
    assert mine.integer_dots == ("sdot",)


@pytest.mark.parametrize("name, near", [("cortexa72", "'cortex-a72'"), ("avx-512", "'avx512'"), ("cuda:sm90", "cuda")])
def test_an_unknown_name_is_answered_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(
        TargetError, match=f"unknown target '{name}'. Did you mean .*{near}.*Known are x86, x86-64-v2, avx2"
    ):
        get_target(name)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"kind": "gpu"}, "kind is 'gpu'"),
    ({"triple": "riscv64-linux"}, "begins with none of"),
    ({"features": ("+neon",)}, "without a sign"),
    ({"vector_bits": 96}, "power of two"),
    ({"num_cores": 0}, "num_cores is 0"),
    ({"activation_dtype": DType.F32}, "u8 or i8"),
    ({"device_arch": "sm_80"}, "exactly CUDA devices"),
    ({"kind": "cuda", "device_arch": "80"}, "like 'sm_80'"),
]


@pytest.mark.parametrize("fields, message", BAD)
def test_fields_that_cannot_be_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TargetError, match=f"target 'mine': .*{message}"):
        Target("mine", **fields)
    with pytest.raises(TargetError, match="a target is a name"):
        get_target(7)  # type: ignore[arg-type]


PUBLISHED = Target("shop-board", triple="aarch64-unknown-linux-gnu")
WRONG = "not a target"


def make_published() -> Target:
    return PUBLISHED


def publish(monkeypatch: pytest.MonkeyPatch, **names: str) -> None:
    points = [
        EntryPoint(name.replace("_", "-"), f"{__name__}:{value}", "whet.targets") for name, value in names.items()
    ]
    monkeypatch.setattr(target, "entry_points", lambda group: [item for item in points if item.group == group])
    monkeypatch.setattr(EntryPoint, "load", lambda self: globals()[self.value.partition(":")[2]])


def test_other_packages_publish_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    publish(monkeypatch, shop_board="PUBLISHED", other="make_published", broken="WRONG")
    assert get_target("shop-board") is get_target("other") is PUBLISHED
    assert "shop-board" in target_names()
    with pytest.raises(TargetError, match="gives a str"):
        get_target("broken")
    publish(monkeypatch, avx2="PUBLISHED")
    with pytest.raises(TargetError, match=r"'avx2' is published by .* taken already"):
        get_target("shop-board")
