"""The weights file: what the safetensors package writes is read, what it refuses is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from whet.runtime.dtypes import DTYPES, bfloat16_to_numpy, element_type
from whet.runtime.safetensors import RawTensor, chunks, decode_header


def _split(data: bytes) -> tuple[bytes, bytes]:
    size = int.from_bytes(data[:8], "little")
    return data[8 : 8 + size], data[8 + size :]


def test_all_types_to_and_from_the_package() -> None:
    from safetensors.numpy import load, save

    arrays = {name: np.arange(6).reshape(2, 3).astype(item.storage) for name, item in DTYPES.items() if name != "bf16"}
    arrays["scalar"], arrays["empty"] = np.array(1.5, "f4"), np.zeros((0, 3), "f4")
    ours = b"".join(chunks({key: RawTensor.of(array) for key, array in arrays.items()}))
    for key, array in load(ours).items():
        assert array.dtype == arrays[key].dtype and array.shape == arrays[key].shape
        np.testing.assert_array_equal(array, arrays[key])
    header, data = _split(save(arrays))
    for entry in decode_header(header, len(data)):
        array = np.frombuffer(data[entry.begin : entry.end], DTYPES[entry.dtype].storage).reshape(entry.shape)
        np.testing.assert_array_equal(array, arrays[entry.key])
    assert (len(ours) - len(data)) % 64 == 0


def test_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    values = np.array([1.0, -2.5, np.inf, 3e-40], ml_dtypes.bfloat16)
    raw = RawTensor.of(values)
    assert raw.dtype == "bf16" and raw.array.dtype == np.uint16
    np.testing.assert_array_equal(bfloat16_to_numpy(raw.array), values)
    header, data = _split(b"".join(chunks({"v": raw})))
    assert json.loads(header)["v"]["dtype"] == "BF16" and len(data) == 8
    monkeypatch.setattr("whet.runtime.dtypes._has_ml_dtypes", lambda: False)
    plain = bfloat16_to_numpy(raw.array)
    assert plain.dtype == np.float32
    np.testing.assert_array_equal(plain, values.astype(np.float32))


def test_views_are_written_by_value() -> None:
    array = np.arange(12, dtype="f4").reshape(3, 4)
    _, data = _split(b"".join(chunks({"t": RawTensor.of(array.T), "s": RawTensor.of(array[:, ::2].astype(">f4"))})))
    assert data == array.T.tobytes() + array[:, ::2].tobytes()


def test_unknown_types() -> None:
    with pytest.raises(ValueError, match="complex64"):
        RawTensor.of(np.zeros(1, "c8"))
    with pytest.raises(ValueError, match="stored as"):
        RawTensor("bf16", np.zeros(1, "f4"))
    with pytest.raises(ValueError, match="'float31'; known are f64, f32"):
        element_type("float31")
    assert element_type("float32") is element_type("f32")


def _entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ([], "not an object"),
        ({"a": []}, "no dtype"),
        ({"a": {**_entry(), "more": 1}}, "no dtype"),
        ({"a": _entry("F31")}, "dtype 'F31'"),
        ({"a": _entry([])}, "dtype"),
        ({"a": _entry(shape=(-2,))}, "shape"),
        ({"a": _entry(shape=(2.0,))}, "shape"),
        ({"a": _entry(shape=(True, 2))}, "shape"),
        ({"a": _entry(shape=(1 << 61, 1 << 61, 1 << 61))}, "has 8 bytes"),
        ({"a": _entry(offsets=(0, 4))}, "has 4 bytes"),
        ({"a": _entry(offsets=(8, 0))}, "has -8 bytes"),
        ({"a": _entry(offsets=(0, 8, 16))}, "offsets"),
        ({"a": _entry(), "b": _entry()}, "'b' begins at 0, the tensor before it ends at 8"),
        ({"a": _entry(), "b": _entry(offsets=(12, 20))}, "'b' begins at 12"),
        ({"a": _entry(offsets=(4, 12))}, "begins at 4"),
        ({"a": _entry(), "b": _entry(offsets=(8, 16))}, "take 16 bytes, the file has 8"),
        ({}, "take 0 bytes"),
    ],
)
def test_headers_that_lie(header: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        decode_header(json.dumps(header).encode(), 8)


def test_metadata_is_passed_over() -> None:
    header = {"__metadata__": {"format": "pt"}, "a": _entry()}
    assert [entry.key for entry in decode_header(json.dumps(header).encode() + b"   ", 8)] == ["a"]
