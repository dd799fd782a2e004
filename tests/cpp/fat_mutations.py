"""Fat bundles that must be refused, for the same table; and random ones."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

from tests.cpp.mutations import (
    LIBRARY,
    MANIFEST,
    Members,
    Refusal,
    in_the_records,
    members_of,
    mutated,
    mutated_text,
    resigned,
    scrambled,
    with_manifest,
    zipped,
)

_LATER: Final = "avx512quantum"
_NO_INDEX = "index is not what it should be"


def variant(bundle: bytes, name: str, **target: Any) -> bytes:
    """The bundle as if it were compiled for a target of that name."""
    return with_manifest(members_of(bundle), lambda manifest: manifest["target"].update(name=name, **target))


def target_of(bundle: bytes) -> dict[str, Any]:
    """What a bundle says of its target."""
    found: dict[str, Any] = json.loads(members_of(bundle)[MANIFEST])["target"]
    return found


def index_of(variants: Sequence[bytes]) -> dict[str, Any]:
    """The index of a fat bundle with these variants."""
    named = [{"member": f"{number}.whet", "target": target_of(item)} for number, item in enumerate(variants)]
    return {"format_version": 3, "variants": named}


def fat(variants: Sequence[bytes]) -> Members:
    """The members of a fat bundle."""
    return {
        **{f"{number}.whet": item for number, item in enumerate(variants)},
        MANIFEST: json.dumps(index_of(variants)).encode(),
    }


def fat_refusals(bundle: bytes) -> Iterator[Refusal]:
    """Everything that is wrong with a fat bundle in one place; `bundle` is for this machine."""
    foreign = variant(bundle, "cortex-a76", arch="aarch64", features=["neon", "dotprod"])
    later = variant(bundle, "later", features=[_LATER])
    good = fat([foreign, bundle, later])
    nothing = "nothing that runs on this device"
    yield Refusal("a fat bundle for others", zipped(fat([foreign, later])), "other device", nothing)
    yield from _wrong_index(good, bundle)
    yield from _wrong_members(good)
    yield from _wrong_variants(bundle, foreign)
    whole = zipped(good)
    for place in range(1, 10):
        yield Refusal(f"a fat bundle cut at {place}/10", whole[: len(whole) * place // 10], "damaged", "not a whole")


def _wrong_index(good: Members, bundle: bytes) -> Iterator[Refusal]:
    index = json.loads(good[MANIFEST])
    first, second, third = index["variants"]

    def wrong(name: str, value: Any, words: str = _NO_INDEX, status: str = "damaged") -> Refusal:
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        return Refusal(f"an index {name}", zipped({**good, MANIFEST: text}), status, words)

    upgrade = "format version 99; this whet reads up to 3. Upgrade whet"
    yield wrong("of a newer Whet", {"format_version": 99}, upgrade, "newer format")
    yield wrong("of an older format", {**index, "format_version": 2})
    yield wrong("of a format 2^70", {**index, "format_version": 1 << 70})
    yield wrong("without a format", {"variants": index["variants"]})
    yield wrong("that is a list", [])
    yield wrong("that is cut off", good[MANIFEST][:-1], "manifest.json is not JSON")
    yield wrong("that is a manifest", members_of(bundle)[MANIFEST])
    yield wrong("without variants", {"format_version": 3})
    yield wrong("that names too few", {**index, "variants": [first, second]})
    yield wrong("that names too many", {**index, "variants": [first, second, third, {**third, "member": "3.whet"}]})
    yield wrong("in another order", {**index, "variants": [second, first, third]})
    yield wrong("that names a file outside", {**index, "variants": [{**first, "member": "../0.whet"}, second, third]})
    yield wrong("without a target", {**index, "variants": [{"member": "0.whet"}, second, third]})
    odd = {**second, "target": {**second["target"], "device": "tpu"}}
    yield wrong("with a device of its own", {**index, "variants": [first, odd, third]})
    lying = {**second, "target": {**second["target"], "name": "another"}}
    yield wrong("that lies", {**index, "variants": [first, lying, third]}, "1.whet is for .*index does not say")
    # What it hides would end in an illegal instruction.
    hiding = {**third, "target": {**third["target"], "features": []}}
    hidden = {**index, "variants": [first, {**second, "target": first["target"]}, hiding]}
    yield wrong("that hides features", hidden, "2.whet is for 'later'.*index does not say")


def _wrong_members(good: Members) -> Iterator[Refusal]:
    def wrong(name: str, members: Members | list[tuple[str, bytes]], words: str) -> Refusal:
        return Refusal(f"a fat bundle with {name}", zipped(members), "damaged", words)

    yield wrong("a library", {**good, LIBRARY: b"x"}, "members of one bundle and others of several")
    yield wrong("a library alone", {MANIFEST: good[MANIFEST], LIBRARY: b"x"}, "no member 'weights.safetensors'")
    yield wrong("a variant more", {**good, "15.whet": good["1.whet"]}, _NO_INDEX)
    yield wrong("a variant less", {name: data for name, data in good.items() if name != "0.whet"}, _NO_INDEX)
    yield wrong(
        "no index", {name: data for name, data in good.items() if name != MANIFEST}, "no member 'manifest.json'"
    )
    yield wrong("a variant twice", [*good.items(), ("1.whet", good["1.whet"])], "'1.whet' twice")
    for name in ("16.whet", "01.whet", "-1.whet", "../1.whet", "1.WHET"):
        yield wrong(f"a member {name}", {**good, name: good["1.whet"]}, f"unknown member '{re.escape(name)}'")
    # The members begin at 0: otherwise the number of a target would be that of another member.
    later = {"1.whet": good["0.whet"], "2.whet": good["1.whet"]}
    index = json.loads(good[MANIFEST])["variants"][:2]
    named = [{**item, "member": name} for item, name in zip(index, later, strict=True)]
    text = json.dumps({"format_version": 3, "variants": named}).encode()
    yield wrong("variants from 1", {**later, MANIFEST: text}, _NO_INDEX)


def _wrong_variants(bundle: bytes, foreign: bytes) -> Iterator[Refusal]:
    index = json.dumps(index_of([foreign, bundle])).encode()
    members = members_of(bundle)

    def wrong(name: str, data: bytes, words: str, status: str = "damaged") -> Refusal:
        return Refusal(f"a variant {name}", zipped({"0.whet": foreign, "1.whet": data, MANIFEST: index}), status, words)

    whole = "variant 'x86', is not a whole bundle"
    yield wrong("that is cut off", bundle[:-1], whole)
    yield wrong("with a byte more", bundle + b"\0", whole)
    yield wrong("that is empty", b"", whole)
    yield wrong("that is fat", zipped(fat([foreign, bundle])), "variant .*members in place|unknown member")
    yield wrong("of a newer Whet", with_manifest(members, lambda found: found.update(format_version=99)),
                "format version 99; this whet reads up to 2", "newer format")  # fmt: skip
    for name, data in members.items():
        if name != MANIFEST:
            flipped = zipped({**members, name: data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]})
            yield wrong(f"with a changed {name}", flipped, re.escape(name) + ".*sha256")
    machine = bytearray(members[LIBRARY])
    machine[18:20] = (183).to_bytes(2, "little")
    yield wrong("with code for another machine", resigned(members, LIBRARY, bytes(machine)), "another machine")


def mutated_fat(variants: Sequence[bytes], seed: int) -> bytes:
    """A fat bundle with one random thing wrong; the same for the same seed."""
    generator = random.Random(seed)
    members = fat(variants)
    kind = generator.randrange(4)
    if kind == 0:
        return scrambled(zipped(members), generator)
    if kind == 1:
        return in_the_records(zipped(members), generator)
    if kind == 2:
        return zipped({**members, MANIFEST: mutated_text(members[MANIFEST], generator)})
    number = generator.randrange(len(variants))
    return zipped({**members, f"{number}.whet": mutated(variants[number], seed)})
