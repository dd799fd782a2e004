"""Fat bundles: which variant a device takes, and what is refused."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import whet
from tests.runtime.conftest import Model
from whet.cli import main
from whet.cli.inputs import read_inputs
from whet.errors import BundleError
from whet.runtime import join_bundles, load, read_bundle, read_manifest, read_variants, write_bundle
from whet.runtime.cpu import host_arch, host_features
from whet.runtime.fat import Slice

FOREIGN = {"x86_64": "aarch64", "aarch64": "x86_64"}


def variant(model: Model, folder: Path, name: str, features: tuple[str, ...] = (), arch: str | None = None) -> Path:
    """The model as if it were compiled for a target of that name."""
    target = replace(model.manifest.target, name=name, features=features, arch=arch or model.manifest.target.arch)
    path = folder / f"{name}.whet"
    library = model.library
    if arch is not None:
        data = bytearray(library.read_bytes())
        data[18:20] = {"x86_64": 62, "aarch64": 183}[arch].to_bytes(2, "little")
        library = folder / "foreign.so"
        library.write_bytes(data)
    write_bundle(path, replace(model.manifest, target=target), library, model.weights)
    return path


@pytest.fixture
def fat(affine: Model, tmp_path: Path) -> Path:
    """Plain, better, impossible and foreign code."""
    some = tuple(sorted(host_features()))[:2]
    paths = [
        variant(affine, tmp_path, "foreign", arch=FOREIGN[host_arch()]),
        variant(affine, tmp_path, "plain"),
        variant(affine, tmp_path, "better", some),
        variant(affine, tmp_path, "impossible", (*some, "not-of-this-world")),
    ]
    join_bundles(tmp_path / "fat.whet", paths)
    return tmp_path / "fat.whet"


def test_the_best_that_runs_here_is_taken(fat: Path, affine: Model) -> None:
    targets = read_variants(fat)
    assert targets is not None
    assert [item.name for item in targets] == ["foreign", "plain", "better", "impossible"]
    assert read_manifest(fat).target.name == read_bundle(fat).manifest.target.name == "better"
    module = load(fat)
    alone = load(fat.parent / "plain.whet")
    args, kwargs = read_inputs(module.manifest, (), ())
    for left, right in zip(leaves(module(*args, **kwargs)), leaves(alone(*args, **kwargs)), strict=True):
        np.testing.assert_array_equal(left, right)


def leaves(result: Any) -> list[Any]:
    """The arrays of a model's result."""
    if result is None or isinstance(result, np.ndarray):
        return [result]
    items = result.values() if hasattr(result, "values") else result
    return [leaf for item in items for leaf in leaves(item)]


def test_a_bundle_of_one_target_has_no_variants(affine: Model, tmp_path: Path) -> None:
    assert read_variants(variant(affine, tmp_path, "plain")) is None


def test_nothing_that_runs_is_said_with_reasons(affine: Model, tmp_path: Path) -> None:
    paths = [
        variant(affine, tmp_path, "foreign", arch=FOREIGN[host_arch()]),
        variant(affine, tmp_path, "impossible", ("not-of-this-world",)),
    ]
    join_bundles(tmp_path / "fat.whet", paths)
    with pytest.raises(BundleError, match=r"nothing that runs on this device:\n.*foreign(.|\n)*not-of-this-world"):
        load(tmp_path / "fat.whet")
    assert main(["inspect", str(tmp_path / "fat.whet")]) == 0


def test_what_cannot_be_joined(affine: Model, counter: Model, fat: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.whet"
    (tmp_path / "other").mkdir()
    other = variant(counter, tmp_path / "other", "other")
    for bundles, words in (
        ([plain], "has 2 to 16"),
        ([plain, plain], "two bundles are for one target"),
        ([plain, other], "not one model"),
        ([plain, fat], "fat itself"),
        ([plain, tmp_path / "nothing.whet"], "no such file"),
    ):
        with pytest.raises(BundleError, match=words):
            join_bundles(tmp_path / "joined.whet", bundles)
        assert not (tmp_path / "joined.whet").exists()


def _rewritten(fat: Path, **changes: bytes | None) -> Path:
    """The fat bundle with members replaced, added or (None) left out."""
    names = {"manifest": "manifest.json", "first": "0.whet", "library": "lib.so", "far": "15.whet"}
    with zipfile.ZipFile(fat) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for key, content in changes.items():
        members.pop(names[key], None)
        if content is not None:
            members[names[key]] = content
    path = fat.with_name("rewritten.whet")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return path


def test_doctored_ones_are_refused(fat: Path) -> None:
    with zipfile.ZipFile(fat) as archive:
        index = json.loads(archive.read("manifest.json"))
    index["variants"][1]["target"]["features"] = []
    index["variants"][2]["target"]["features"] = []
    lying = json.dumps(index).encode()
    newer = json.dumps({**index, "format_version": 99}).encode()
    for changes, words in (
        ({"first": None}, "index is not what it should be"),
        ({"far": b"x"}, "index is not what it should be"),
        ({"library": b"x"}, "members of one bundle and others of several"),
        ({"manifest": None}, "no member 'manifest.json'"),
        ({"manifest": b"[]"}, "index is not what it should be"),
        ({"manifest": b"{"}, "is not JSON"),
        ({"manifest": newer}, "Upgrade whet"),
    ):
        with pytest.raises(BundleError, match=words):
            load(_rewritten(fat, **changes))
    path = _rewritten(fat, manifest=lying)
    with pytest.raises(BundleError, match="does not say"):
        read_bundle(path, variant=2)


def test_a_damaged_variant_is_named(fat: Path) -> None:
    data = bytearray(fat.read_bytes())
    with zipfile.ZipFile(fat) as archive:
        place = archive.getinfo("2.whet")
    data[place.header_offset + place.file_size // 2] ^= 1
    fat.write_bytes(data)
    with pytest.raises(BundleError, match=r"damaged|not a whole bundle"):
        load(fat)
    data = data[: len(data) // 2]
    fat.write_bytes(data)
    with pytest.raises(BundleError, match="not a whole bundle"):
        load(fat)


@given(st.binary(min_size=1, max_size=64), st.data())
def test_a_slice_reads_as_a_file_of_its_own(content: bytes, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, len(content)))
    size = data.draw(st.integers(0, len(content) - begin))
    whole, part = io.BytesIO(content[begin : begin + size]), Slice(io.BytesIO(content), begin, size)
    for _ in range(4):
        offset, count = data.draw(st.integers(0, 70)), data.draw(st.integers(0, 70))
        assert part.seek(offset) == whole.seek(offset)
        assert part.read(count) == whole.read(count)
    assert part.seek(0, io.SEEK_END) == whole.seek(0, io.SEEK_END)


def test_a_model_for_two_processors(tmp_path: Path) -> None:
    import torch

    model, x = torch.nn.Linear(8, 4).eval(), torch.randn(2, 8)
    modules = [whet.optimize(model, target, example_inputs=(x,)) for target in ("x86", "cortex-a72")]
    whet.save_fat(tmp_path / "fat.whet", modules)
    np.testing.assert_array_equal(load(tmp_path / "fat.whet")(x.numpy()), modules[0](x).numpy())
