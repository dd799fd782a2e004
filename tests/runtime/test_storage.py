"""Packed weights: exact whatever the bits are, as small as they should be, and refused when they lie."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.conftest import Model
from whet.errors import BundleError, TargetError
from whet.runtime import load, packing, read_bundle, storage, storage_of, storage_report, write_bundle
from whet.runtime.dtypes import DTYPES, Array
from whet.runtime.packing import Packed, pack
from whet.runtime.safetensors import RawTensor
from whet.runtime.storage import read_packed
from whet.runtime.storage_header import Block, PackedHeader, PackedTensor, parse_header

MEMBERS = ("weights.safetensors", "weights.packed")


def member(packed: Packed) -> bytes:
    return b"".join(packed.pieces())


def restored(weights: Mapping[str, RawTensor]) -> dict[str, RawTensor]:
    plain, packed = pack(weights)
    if packed is None:
        return plain
    data = member(packed)
    assert len(data) == packed.size
    file = io.BytesIO(b"before" + data + b"after")
    return plain | read_packed(file, 6, len(data), packed.header.nbytes, plain)


def assert_exact(weights: Mapping[str, RawTensor]) -> None:
    found = restored(weights)
    assert found.keys() == weights.keys()
    for key, tensor in weights.items():
        assert found[key].dtype == tensor.dtype and found[key].array.shape == tensor.array.shape
        assert found[key].array.tobytes() == tensor.array.tobytes(), key


@st.composite
def tensors(draw: Callable[[st.SearchStrategy[Any]], Any]) -> RawTensor:
    """Any dtype, any bits (NaN payloads and -0.0 with them), from all zeros to no zero, few values or many."""
    dtype = draw(st.sampled_from(sorted(DTYPES)))
    generator = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    shape = tuple(draw(st.lists(st.sampled_from((0, 1, 3, 17, 64, 300)), max_size=2)))
    storage_type = DTYPES[dtype].storage
    palette = generator.integers(
        0, 256, (draw(st.sampled_from((1, 2, 3, 16, 255, 256, 257, 5000))), storage_type.itemsize)
    )
    words = palette.astype(np.uint8)[generator.integers(0, len(palette), shape)]
    if dtype == "bool":
        words &= 1
    words[generator.random(shape) < draw(st.sampled_from((0.0, 0.5, 0.97, 1.0)))] = 0
    return RawTensor(dtype, np.ascontiguousarray(words).view(storage_type).reshape(shape))


@settings(max_examples=120, deadline=None)
@given(st.lists(tensors(), min_size=1, max_size=3))
def test_any_weights_come_back_bit_for_bit(found: list[RawTensor]) -> None:
    assert_exact({f"w{index}": tensor for index, tensor in enumerate(found)})


@settings(max_examples=40, deadline=None)
@given(tensors(), st.sampled_from((8, 64, 1024)))
def test_every_form_of_a_tensor_is_exact(tensor: RawTensor, chunk: int) -> None:
    """Not only the smallest, and with streams that are expanded in many chunks."""
    before, storage._CHUNK = storage._CHUNK, chunk
    try:
        for candidate in packing._candidates("w", tensor) if tensor.array.nbytes else ():
            packed = packing._assemble([candidate], [])
            data = member(packed)
            found = read_packed(io.BytesIO(data), 0, len(data), tensor.array.nbytes, {})
            assert found["w"].array.tobytes() == tensor.array.tobytes(), candidate.tensor
    finally:
        storage._CHUNK = before


def test_signs_of_zero_and_nan_payloads_survive() -> None:
    words = np.zeros(4096, np.uint32)
    words[::16], words[1::512], words[2::512] = 0x80000000, 0x7FC00001, 0xFFC12345
    assert_exact({"w": RawTensor("f32", words.view("<f4"))})


def pruned(generator: np.random.Generator, shape: tuple[int, int], density: float, entries: int) -> Array:
    """A matrix of which `density` is kept, at `entries` values."""
    kept = generator.random(shape) < density
    codebook = np.linspace(-1, 1, entries).astype("f4")
    chosen = np.clip(np.rint(generator.normal(size=shape) * entries / 6 + entries / 2), 0, entries - 1).astype(int)
    return np.where(kept, codebook[chosen], np.float32(0)).astype("f4")


def entropy(values: Array) -> float:
    """Bytes of an ideal code for independent symbols."""
    _, counts = np.unique(values, return_counts=True)
    share = counts / counts.sum()
    return float(-(share * np.log2(share)).sum() * values.size / 8)


def lenet() -> dict[str, Array]:
    """LeNet-300-100 as Deep Compression leaves it: about 4 % kept, 5 bits a weight."""
    generator = np.random.default_rng(0)
    layers = {"fc1": ((300, 784), 0.035), "fc2": ((100, 300), 0.06), "fc3": ((10, 100), 0.2)}
    return {name: pruned(generator, shape, density, 31) for name, (shape, density) in layers.items()}


def test_a_pruned_and_shared_lenet_comes_near_its_entropy() -> None:
    weights = lenet()
    report = storage_of(weights)
    ideal = sum(entropy(weight) for weight in weights.values())
    assert report.weights_memory == 1_064_800
    assert report.weights_disk < 1.06 * ideal + 500
    assert report.ratio > 65
    assert_exact({key: RawTensor.of(weight) for key, weight in weights.items()})


def test_kernels_padding_costs_next_to_nothing() -> None:
    weight = lenet()["fc3"]
    padded = np.zeros((64, 100), "f4")
    padded[:10] = weight
    assert storage_of({"w": padded}).weights_disk <= storage_of({"w": weight}).weights_disk + 32


@pytest.mark.parametrize(
    ("values", "most"),
    [
        (np.arange(-7, 8, dtype="i1"), 0.5),
        (np.array([0, 1], "?"), 0.13),
        (np.array([-0.5, 0.25, 1.5], "f4"), 0.07),
    ],
)
def test_indices_take_no_more_than_their_bits(values: Array, most: float) -> None:
    weight = np.random.default_rng(0).choice(values, 100_000)
    assert storage_of({"w": weight}).weights_disk < most * weight.nbytes + 300
    assert_exact({"w": RawTensor.of(weight)})


def test_equal_tensors_are_stored_once() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 5000, dtype="u1")
    zeros = np.zeros((40, 40), "f4")
    weights = {"a": noise, "b": zeros, "c": noise.copy(), "d": zeros.copy(), "e": noise.reshape(50, 100)}
    assert_exact({key: RawTensor.of(item) for key, item in weights.items()})
    report = storage_of(weights)
    forms = {weight.key: weight.form for weight in report.weights}
    assert forms["c"] == "same as a" and forms["d"] == "same as b" and forms["e"] == "as in memory"
    assert report.weights_memory == 2 * noise.nbytes + zeros.nbytes


def test_what_does_not_shrink_stays_as_it_is() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 100_000, dtype="u1")
    plain, packed = pack({"noise": RawTensor.of(noise), "short": RawTensor.of(np.arange(8.0))})
    assert packed is None and list(plain) == ["noise", "short"]


def test_a_large_tensor_is_expanded_in_chunks() -> None:
    generator = np.random.default_rng(0)
    weight = np.zeros(3_000_000, "f4")
    weight[generator.integers(0, weight.size, 200_000)] = generator.choice(np.linspace(1, 2, 7, dtype="f4"), 200_000)
    assert_exact({"w": RawTensor.of(weight), "v": RawTensor.of(np.arange(3_000_000, dtype="i4") // 7)})


@pytest.fixture(scope="module")
def shrunk(affine: Model, tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The model with a weight more, which is worth packing."""
    weights = {**affine.weights, "unused": pruned(np.random.default_rng(0), (64, 64), 0.1, 8)}
    return replace(affine, weights=weights)


@pytest.fixture
def shrunk_bundle(shrunk: Model, tmp_path: Path) -> Path:
    return shrunk.save(tmp_path / "m.whet")


def members_of(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def rewritten(path: Path, packed: bytes, expanded: int) -> Path:
    """The bundle with another packed member, whose checksum and sizes the manifest has."""
    import hashlib

    members = members_of(path)
    manifest = json.loads(members["manifest.json"])
    digest = hashlib.sha256(packed).hexdigest()
    manifest["members"]["weights.packed"] = {"sha256": digest, "size": len(packed), "expanded": expanded}
    members |= {"weights.packed": packed, "manifest.json": json.dumps(manifest).encode()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def test_a_bundle_with_packed_weights(shrunk: Model, affine: Model, shrunk_bundle: Path, tmp_path: Path) -> None:
    bundle = read_bundle(shrunk_bundle)
    assert bundle.manifest.format_version == 2
    for key, array in shrunk.weights.items():
        np.testing.assert_array_equal(bundle.weights[key].array, array)
        assert bundle.weights[key].array.ctypes.data % 64 == 0
    x = np.ones((4, 8), "f4")
    mask = np.ones((4, 8), bool)
    affine.save(tmp_path / "plain.whet")
    assert read_bundle(tmp_path / "plain.whet").manifest.format_version == 1
    expected = load(tmp_path / "plain.whet")(x, mask=mask)
    np.testing.assert_array_equal(load(shrunk_bundle)(x, mask=mask)["y"], expected["y"])


def test_without_compression(shrunk: Model, tmp_path: Path) -> None:
    write_bundle(tmp_path / "m.whet", shrunk.manifest, shrunk.library, shrunk.weights, compress=False)
    assert "weights.packed" not in members_of(tmp_path / "m.whet")
    assert storage_report(tmp_path / "m.whet").ratio < 1


def test_the_report(shrunk: Model, shrunk_bundle: Path) -> None:
    report = storage_report(shrunk_bundle)
    sizes = {name: len(data) for name, data in members_of(shrunk_bundle).items()}
    assert report.weights_disk == sum(sizes[name] for name in MEMBERS)
    assert report.weights_disk == storage_of(shrunk.weights).weights_disk
    assert report.file == shrunk_bundle.stat().st_size and report.library == sizes["lib.so"]
    by_key = {weight.key: weight for weight in report.weights}
    assert by_key["unused"].memory == 64 * 64 * 4 and by_key["unused"].disk < 64 * 64 * 4 / 20
    assert by_key["w"].form == "as in memory"
    lines = str(report).splitlines()
    assert len(lines) == 1 + len(shrunk.weights) + 2 and lines[-2].startswith("in all")


def test_a_device_without_zstandard_says_what_to_install(shrunk_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(TargetError, match="pip install zstandard"):
        read_bundle(shrunk_bundle)


def test_every_flip_in_the_packed_member_is_refused(shrunk_bundle: Path) -> None:
    data = shrunk_bundle.read_bytes()
    packed = members_of(shrunk_bundle)["weights.packed"]
    start = data.index(packed)
    for position in range(start, start + len(packed), 7):
        damaged = bytearray(data)
        damaged[position] ^= 1 << position % 8
        shrunk_bundle.write_bytes(damaged)
        with pytest.raises(BundleError, match=r"weights\.packed.*sha256"):
            read_bundle(shrunk_bundle)


def test_every_flip_behind_a_good_checksum_is_refused_or_harmless(shrunk: Model, shrunk_bundle: Path) -> None:
    """Whoever makes the checksum fit gets other weights at most: of the same shapes, and nothing else."""
    packed = members_of(shrunk_bundle)["weights.packed"]
    for position in range(0, len(packed), 3):
        damaged = bytearray(packed)
        damaged[position] ^= 1 << position % 8
        try:
            found = read_bundle(rewritten(shrunk_bundle, bytes(damaged), 64 * 64 * 4)).weights
        except BundleError:
            continue
        assert all(tensor.array.nbytes <= 64 * 64 * 8 for tensor in found.values())


def one(tensor: PackedTensor, *blocks: tuple[Block, bytes]) -> Packed:
    return Packed(PackedHeader((tensor,), tuple(block for block, _ in blocks)), tuple(data for _, data in blocks))


def plain_block(data: bytes) -> tuple[Block, bytes]:
    return Block("plain", len(data), len(data)), data


def bomb(size: int) -> tuple[Block, bytes]:
    import zstandard

    data = zstandard.ZstdCompressor(level=19).compress(bytes(size))
    return Block("zstd", len(data), size), data


WORDS = PackedTensor("w", "f32", (8,), count=8, blocks=(0,))


@pytest.mark.parametrize(
    ("packed", "expanded", "words"),
    [
        (one(WORDS, plain_block(bytes(32))), 64, "manifest says 64"),
        (one(replace(WORDS, shape=(1 << 50,), count=1 << 50), plain_block(bytes(32))), 1 << 52, "fill their blocks"),
        (one(WORDS, (Block("plain", 31, 32), bytes(31))), 32, "31 bytes in place of 32"),
        (one(WORDS, (Block("zstd", 20, 32), bytes(20))), 32, "not a zstandard frame"),
        (one(WORDS, (Block("zstd", len(bomb(64)[1]), 32), bomb(64)[1])), 32, "more than its 32"),
        (one(WORDS, (Block("zstd", len(bomb(16)[1]), 32), bomb(16)[1])), 32, "16 bytes in place of 32"),
        (one(replace(WORDS, blocks=(3,)), plain_block(bytes(32))), 32, "block 3 of 1"),
        (
            one(replace(WORDS, positions="bitmap", blocks=(0, 1)), plain_block(b"\x0f"), plain_block(bytes(32))),
            32,
            "8 values for other positions",
        ),
        (
            one(
                replace(WORDS, positions="gaps", gaps=2, count=2, blocks=(0, 1)),
                plain_block(b"\x06\x05"),
                plain_block(bytes(8)),
            ),
            32,
            "beyond its end",
        ),
        (
            one(replace(WORDS, entries=2, blocks=(0, 1)), plain_block(bytes(8)), plain_block(b"\0\1\2\0\0\0\0\0")),
            32,
            "beyond its codebook",
        ),
        (one(PackedTensor("w", "f32", (8,), same="u")), 0, "same as 'u'"),
    ],
)
def test_headers_that_lie(shrunk_bundle: Path, packed: Packed, expanded: int, words: str) -> None:
    path = rewritten(shrunk_bundle, member(packed), expanded)
    with pytest.raises(BundleError, match=words):
        read_bundle(path)


def test_a_bomb_that_fits_its_header_is_refused_before_memory_is_taken(
    shrunk_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terabyte of zeros, consistent throughout, on a device that has less."""
    size = 1 << 40
    block = Block("zstd", 20, size)
    packed = one(PackedTensor("w", "u8", (size,), count=size, blocks=(0,)), (block, bytes(20)))
    monkeypatch.setattr(storage, "_memory", lambda: 8 << 30)
    monkeypatch.setattr(storage, "aligned_empty", lambda _: pytest.fail("memory was taken"))
    with pytest.raises(BundleError, match="this device has"):
        read_bundle(rewritten(shrunk_bundle, member(packed), size))


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b'{"tensors": [], "blocks": {}}',
        b'{"tensors": [[]], "blocks": []}',
        b'{"tensors": [{"key": "w"}], "blocks": []}',
        b'{"tensors": [{"key": 1, "dtype": "f32"}], "blocks": []}',
        b'{"tensors": [{"key": "w", "dtype": "f31"}], "blocks": []}',
        b'{"tensors": [{"key": "w", "dtype": "f32", "shape": [-1]}], "blocks": []}',
        b'{"tensors": [{"key": "w", "dtype": "f32", "shape": [true]}], "blocks": []}',
        b'{"tensors": [{"key": "w", "dtype": "f32", "entries": 257}], "blocks": []}',
        b'{"tensors": [{"key": "w", "dtype": "f32", "gap_bits": 9}], "blocks": []}',
        b'{"tensors": [{"key": "w", "dtype": "f32", "shape": [4], "positions": "gaps", "gaps": 5}], "blocks": []}',
        b'{"tensors": [{"key": "w", "dtype": "f32", "positions": "spread"}], "blocks": []}',
        b'{"tensors": [{"key": "w", "dtype": "f32", "other": 1}], "blocks": []}',
        b'{"tensors": [], "blocks": [["plain", 1, 2]]}',
        b'{"tensors": [], "blocks": [["zip", 0, 0]]}',
        b'{"tensors": [], "blocks": [["zstd", 0]]}',
        b"{",
        b"\xff",
    ],
)
def test_headers_that_are_none(header: bytes) -> None:
    with pytest.raises(ValueError):
        parse_header(header, 0)
