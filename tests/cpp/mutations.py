"""Bundles that must be refused, one table for Python and C++; and random ones."""

from __future__ import annotations

import hashlib
import io
import json
import random
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import zstandard

LIBRARY, WEIGHTS, PACKED, MANIFEST = "lib.so", "weights.safetensors", "weights.packed", "manifest.json"
MEMBERS: Final = (LIBRARY, WEIGHTS, PACKED, MANIFEST)
_TEN_GIB: Final = 10 << 30

Members = dict[str, bytes]


@dataclass(frozen=True)
class Refusal:
    """A bundle that is wrong, the status of the C API for it, and words of the messages in both languages."""

    name: str
    data: bytes
    status: str
    words: str


def members_of(bundle: bytes) -> Members:
    with zipfile.ZipFile(io.BytesIO(bundle)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def zipped(members: Members | list[tuple[str, bytes]]) -> bytes:
    file = io.BytesIO()
    pairs = list(members.items()) if isinstance(members, dict) else members
    with zipfile.ZipFile(file, "w") as archive, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Duplicate name")
        for name, data in pairs:
            archive.writestr(zipfile.ZipInfo(name), data)
    return file.getvalue()


def with_manifest(members: Members, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """The bundle with a changed manifest, whose checksum fits."""
    manifest = json.loads(members[MANIFEST])
    change(manifest)
    return zipped({**members, MANIFEST: json.dumps(manifest).encode()})


def resigned(members: Members, name: str, data: bytes, **fields: int) -> bytes:
    """The bundle with another member, of which the manifest has checksum and size."""

    def change(manifest: dict[str, Any]) -> None:
        entry = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), **fields}
        manifest["members"][name] = {**manifest["members"][name], **entry}

    return with_manifest({**members, name: data}, change)


def refusals(bundle: bytes) -> Iterator[Refusal]:
    """Everything that is wrong in one place; `bundle` has all four members and is for this machine."""
    members = members_of(bundle)
    yield from _damaged(bundle, members)
    yield from _foreign(members)
    yield from _doctored(members)
    yield from _kernels(members)
    yield from _huge(bundle, members)


def _damaged(bundle: bytes, members: Members) -> Iterator[Refusal]:
    for name, data in members.items():
        at = bundle.index(data) + len(data) // 2
        flipped = bundle[:at] + bytes([bundle[at] ^ 0x10]) + bundle[at + 1 :]
        yield Refusal(f"one byte flipped in {name}", flipped, "damaged", re.escape(name) + ".*checksum")
        same_crc = zipped({**members, name: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]})
        words = r"damaged|not a manifest|not JSON" if name == MANIFEST else re.escape(name) + ".*sha256"
        yield Refusal(f"one byte of {name} changed, the zip's checksum made to fit", same_crc, "damaged", words)
    for place in range(50):
        cut = bundle[: len(bundle) * place // 50]
        yield Refusal(f"truncated at {len(cut)} bytes", cut, "damaged", "not a whole bundle")
    yield Refusal("a byte added", bundle + b"\0", "damaged", "not a whole bundle")
    yield Refusal("bytes before it", b"#!/bin/sh\n" + bundle, "damaged", "not a whole bundle")
    yield Refusal("another file", b"hello" * 1000, "damaged", "not a whole bundle")


def _foreign(members: Members) -> Iterator[Refusal]:
    def target(**fields: Any) -> bytes:
        return with_manifest(members, lambda manifest: manifest["target"].update(fields))

    a76 = target(name="cortex-a76", arch="aarch64", features=["neon", "dotprod", "fullfp16"])
    yield Refusal("for cortex-a76", a76, "other device", r"compiled for aarch64 linux \(target 'cortex-a76'\).*again")
    features = target(features=["neon", "avx512quantum"])
    yield Refusal("for features that are not here", features, "other device", "processor with avx512quantum")
    yield Refusal("for another system", target(os="darwin"), "other device", "darwin.*this device is")

    def newer(manifest: dict[str, Any]) -> None:
        manifest.clear()
        manifest["format_version"] = 99

    words = "format version 99; this whet reads up to 2. Upgrade whet"
    yield Refusal("of a newer Whet", with_manifest(members, newer), "newer format", words)


def _doctored(members: Members) -> Iterator[Refusal]:
    pairs = list(members.items())
    for name in ("../lib.so", "/etc/lib.so", "a/../../lib.so", "lib.so/", "LIB.SO"):
        renamed = [(name if key == LIBRARY else key, data) for key, data in pairs]
        # A name that ends in a slash is a folder to zip.
        words = "not a regular file|unknown member" if name.endswith("/") else f"unknown member '{re.escape(name)}'"
        yield Refusal(f"a member {name}", zipped(renamed), "damaged", words)
    yield Refusal("a member more", zipped([*pairs, ("../x", b"")]), "damaged", "5 members|unknown member")
    few = [(key, data) for key, data in pairs if key != PACKED]
    for name in (LIBRARY, WEIGHTS, MANIFEST):
        twice = zipped([(key, data) for key, data in few for _ in range(2 if key == name else 1)])
        yield Refusal(f"{name} twice", twice, "damaged", f"'{re.escape(name)}' twice")
        less = zipped([(key, data) for key, data in few if key != name])
        yield Refusal(f"no {name}", less, "damaged", r"2 members|no member")
    deflated = io.BytesIO()
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in pairs:
            archive.writestr(name, data)
    yield Refusal("compressed members", deflated.getvalue(), "damaged", "compressed")
    link = io.BytesIO()
    with zipfile.ZipFile(link, "w") as archive:
        for name, data in pairs:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = (0o120777 if name == LIBRARY else 0o644) << 16
            archive.writestr(entry, data)
    yield Refusal("a member that is a link", link.getvalue(), "damaged", "not a regular file")


def _kernels(members: Members) -> Iterator[Refusal]:
    call = {"name": "f", "operations": ["add"], "module": "", "precision": "", "schedule": "", "reads": []}
    for kernels, words in (
        (None, "kernels is"),
        ("all", "kernels is"),
        ([1], "kernels has an item of another type"),
        ([{}], r"kernels\[0\].name is"),
        ([{**call, "operations": [1]}], r"kernels\[0\].operations has an item of another type"),
        ([call, {**call, "schedule": None}], r"kernels\[1\].schedule is"),
        ([call, {**call, "reads": [0.5]}], r"kernels\[1\].reads has an item of another type"),
        ([call, {**call, "reads": [1]}], r"kernels\[1\] reads what no earlier kernel makes"),
    ):
        changed = with_manifest(members, lambda manifest, kernels=kernels: manifest.update(kernels=kernels))
        yield Refusal(f"kernels {kernels}", changed, "damaged", words)


def _huge(bundle: bytes, members: Members) -> Iterator[Refusal]:
    yield Refusal("10 GiB in the zip", _declared(members, _TEN_GIB), "damaged", "not a whole bundle")
    for name in (LIBRARY, WEIGHTS, PACKED):

        def grow(manifest: dict[str, Any], name: str = name) -> None:
            manifest["members"][name]["size"] = _TEN_GIB

        yield Refusal(f"10 GiB of {name} in the manifest", with_manifest(members, grow), "damaged", "manifest says")
    for size in (_TEN_GIB, 1 << 61, (1 << 64) - 1):
        header = struct.pack("<Q", size) + members[WEIGHTS][8:]
        yield Refusal(
            f"weights with a header of {size}", resigned(members, WEIGHTS, header), "damaged", "claims a head"
        )

    def expanded(size: int, shape: list[int]) -> bytes:
        tensor = {"key": "kept", "dtype": "u8", "shape": shape, "count": size, "blocks": [0]}
        frame = zstandard.compress(b"nothing")
        data = _packed({"tensors": [tensor], "blocks": [["zstd", len(frame), size]]}, frame)
        return resigned(members, PACKED, data, expanded=size)

    yield Refusal("10 GiB of packed weights", expanded(_TEN_GIB, [10, 1 << 30]), "damaged", PACKED)
    yield Refusal("a petabyte of packed weights", expanded(1 << 50, [1 << 50]), "damaged", "bytes of memory")
    yield Refusal("packed weights of 2^80 bytes", expanded(1, [1 << 40, 1 << 40]), "damaged", PACKED)
    wrap = bytearray(bundle)
    start = bundle.rindex(b"PK\x05\x06")
    wrap[start + 12 : start + 20] = struct.pack("<2L", 0xFFFFFFF0, start + 16)
    yield Refusal("a directory that wraps around", bytes(wrap), "damaged", "does not reach its end")


def _declared(members: Members, size: int) -> bytes:
    """The bundle whose first member says in both zip headers that it has `size` bytes (zip64)."""
    file, directory = io.BytesIO(), b""
    for index, (name, data) in enumerate(members.items()):
        at, text = file.tell(), name.encode()
        plain = 0xFFFFFFFF if index == 0 else len(data)
        extra = struct.pack("<2H2Q", 1, 16, size, size) if index == 0 else b""
        common = struct.pack("<5HL", 45, 0, 0, 0, 0x21, 0)
        sizes = struct.pack("<2L2H", plain, plain, len(text), len(extra))
        file.write(b"PK\x03\x04" + common + sizes + text + extra + data)
        directory += b"PK\x01\x02" + struct.pack("<H", 0x31E + 15) + common + sizes
        directory += struct.pack("<3H2L", 0, 0, 0, 0o644 << 16, at) + text + extra
    start = file.tell()
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(members), len(members), len(directory), start, 0)
    return file.getvalue() + directory + end


def _packed(header: Any, blocks: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    stored = zstandard.compress(text)
    return struct.pack("<2Q", len(stored), len(text)) + stored + blocks


# Numbers at which limits lie, and values of other types than a field has.
_VALUES: Final[tuple[Any, ...]] = (
    0, 1, -1, 2, 7, 8, 9, 255, 256, 257, 65535, 1 << 31, (1 << 32) - 1, 1 << 40, (1 << 62) - 1, 1 << 62, 1 << 63,
    (1 << 64) - 1, 1 << 70, 1.5, 1e300, True, False, None, "", "x", "f32", "zstd", "plain", "gaps", "bitmap", "leaf",
    "s0", "2*s0 + 1", "s0 // 0", "((((", "max(s0, 3) % 2", "\u00e9", [], {}, [0], [1, 2], {"kind": "none"},
    float("inf"),
)  # fmt: skip


def mutated(bundle: bytes, seed: int) -> bytes:
    """A bundle with one random thing wrong; the same for the same seed."""
    generator = random.Random(seed)
    return generator.choice(_WAYS)(bundle, generator)


def scrambled(data: bytes, generator: random.Random) -> bytes:
    """Flip, cut, repeat or overwrite a part."""
    changed = bytearray(data)
    kind = generator.randrange(6)
    at = generator.randrange(len(changed))
    length = min(len(changed) - at, generator.choice((1, 2, 4, 8, 40, 400)))
    if kind == 0:
        for _ in range(generator.choice((1, 1, 1, 2, 8))):
            changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
    elif kind == 1:
        del changed[at:]
    elif kind == 2:
        del changed[at : at + length]
    elif kind == 3:
        changed[at:at] = changed[at : at + length]
    elif kind == 4:
        changed[at : at + length] = generator.randbytes(length)
    else:
        number = generator.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF, len(data)))
        width = generator.choice((1, 2, 4, 8))
        changed[at : at + width] = (number & ((1 << 8 * width) - 1)).to_bytes(width, "little")
    return bytes(changed)


def _anywhere(bundle: bytes, generator: random.Random) -> bytes:
    return scrambled(bundle, generator)


def in_the_records(bundle: bytes, generator: random.Random) -> bytes:
    """In the records of the zip, where few bytes say much."""
    start = bundle.index(b"PK\x01\x02")
    if generator.random() < 0.5:
        return bundle[:start] + scrambled(bundle[start:], generator)
    at = generator.choice([found.start() for found in re.finditer(b"PK\x03\x04", bundle)])
    return bundle[:at] + scrambled(bundle[at : at + 60], generator) + bundle[at + 60 :]


def _json(value: Any, generator: random.Random) -> Any:
    """The value with one place in it changed, removed or added."""
    if not isinstance(value, list | dict) or not value or generator.random() < 0.15:
        return generator.choice(_VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key, kind = generator.choice(keys), generator.randrange(8)
    changed = value.copy()
    if kind == 0:
        del changed[key]
    elif kind == 1 and isinstance(changed, dict):
        changed[generator.choice(("x", "kind", "same", "size", "max"))] = generator.choice(_VALUES)
    elif kind == 1:
        changed.append(value[key])
    else:
        changed[key] = _json(value[key], generator)
    return changed


def mutated_text(data: bytes, generator: random.Random) -> bytes:
    """JSON with a value changed, or with its text changed."""
    if generator.random() < 0.3:
        return scrambled(data, generator)
    return json.dumps(_json(json.loads(data), generator)).encode()


def _manifest(bundle: bytes, generator: random.Random) -> bytes:
    members = members_of(bundle)
    return zipped({**members, MANIFEST: mutated_text(members[MANIFEST], generator)})


def _weights(bundle: bytes, generator: random.Random) -> bytes:
    members = members_of(bundle)
    data = members[WEIGHTS]
    size = int.from_bytes(data[:8], "little")
    header = mutated_text(data[8 : 8 + size], generator)
    return resigned(members, WEIGHTS, len(header).to_bytes(8, "little") + header + data[8 + size :])


def _packed_header(bundle: bytes, generator: random.Random) -> bytes:
    members = members_of(bundle)
    data = members[PACKED]
    size = int.from_bytes(data[:8], "little")
    text = zstandard.decompress(data[16 : 16 + size])
    return resigned(members, PACKED, _packed(mutated_text(text, generator), data[16 + size :]))


def _packed_bytes(bundle: bytes, generator: random.Random) -> bytes:
    members = members_of(bundle)
    return resigned(members, PACKED, scrambled(members[PACKED], generator))


def _library(bundle: bytes, generator: random.Random) -> bytes:
    """The headers of the library; whoever uses this must not load it."""
    members = members_of(bundle)
    data = members[LIBRARY]
    return resigned(members, LIBRARY, scrambled(data[:64], generator) + data[64:])


_WAYS: Final = (_anywhere, in_the_records, _manifest, _weights, _packed_header, _packed_bytes, _library)
