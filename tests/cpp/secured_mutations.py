"""Random changes that somebody without the keys makes to signed and encrypted bundles, fat ones too."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from hashlib import sha256
from typing import Any, Final
from zlib import crc32

from tests.cpp.fat_forgeries import OWN
from tests.cpp.mutations import (
    MANIFEST,
    Members,
    in_the_records,
    members_of,
    mutated_text,
    scrambled,
    zipped,
)
from whet.runtime.signature import SIGNATURE

_ENTRY, _END = 46, struct.Struct("<4s4H2LH")
# Of an entry of the directory: what says where the data is, how long, and with which checksum.
_PLACES: Final = (slice(16, 28), slice(42, 46))
# Names that a reader might take for another member's, or for a place in the file system.
_NAMES: Final = (
    "lib.so",
    "LIB.SO",
    "0.whet",
    "2.whet",
    "15.whet",
    "manifest.sealed",
    "signature",
    "../lib.so",
    "x",
    "",
)

Way = Callable[[bytes, bytes, random.Random], bytes]


def mutated_secured(bundle: bytes, donor: bytes, seed: int) -> bytes:
    """A signed or encrypted bundle with one random thing wrong; with the same seed and bytes the same.

    `donor` is another bundle by the same owner, parts of which are put into this one, though never all that differ.
    """
    generator = random.Random(seed)
    fat = _variants(bundle)
    if not fat:
        return generator.choice(_WAYS)(bundle, donor, generator)
    if generator.random() < 0.4:
        return generator.choice((*_WAYS, *_FAT_WAYS))(bundle, donor, generator)
    # Mostly the one that this machine takes: of the others nothing is read but the manifest.
    members, name = members_of(bundle), generator.choice((*fat, OWN, OWN))
    inside = generator.choice(_WAYS)(members[name], members_of(donor)[name], generator)
    return zipped({**members, name: inside})


def _variants(bundle: bytes) -> list[str]:
    return [name for name in members_of(bundle) if name.endswith(".whet")]


def _fitted(members: Members, generator: random.Random) -> Members:
    """Half of the time with a manifest that has the checksums and sizes of these members."""
    try:
        manifest = json.loads(members[MANIFEST])
        entries = manifest["members"]
    except (KeyError, TypeError, ValueError):
        return members
    if generator.random() < 0.5:
        return members
    for name in members.keys() & entries.keys():
        entries[name] |= {"sha256": sha256(members[name]).hexdigest(), "size": len(members[name])}
    return {**members, MANIFEST: json.dumps(manifest).encode()}


def _anywhere(bundle: bytes, donor: bytes, generator: random.Random) -> bytes:
    return scrambled(bundle, generator)


def _records(bundle: bytes, donor: bytes, generator: random.Random) -> bytes:
    return in_the_records(bundle, generator)


def _manifest(bundle: bytes, donor: bytes, generator: random.Random) -> bytes:
    members = members_of(bundle)
    return zipped({**members, MANIFEST: mutated_text(members[MANIFEST], generator)})


def _member(bundle: bytes, donor: bytes, generator: random.Random) -> bytes:
    members = members_of(bundle)
    name = generator.choice(list(members))
    return zipped(_fitted({**members, name: scrambled(members[name], generator)}, generator))


def _exchanged(bundle: bytes, donor: bytes, generator: random.Random) -> bytes:
    members = members_of(bundle)
    left, right = generator.sample(list(members), 2)
    return zipped(_fitted({**members, left: members[right], right: members[left]}, generator))


def _twice(bundle: bytes, donor: bytes, generator: random.Random) -> bytes:
    """The second of them as it is, changed, or of another bundle; before or after it."""
    members, others = members_of(bundle), members_of(donor)
    pairs = list(members.items())
    name = generator.choice(list(members))
    data = generator.choice((members[name], scrambled(members[name], generator), others[name]))
    pairs.insert(generator.randint(0, len(pairs)), (name, data))
    return zipped(pairs)


def _renamed(bundle: bytes, donor: bytes, generator: random.Random) -> bytes:
    """A member more, or one under another name."""
    pairs = list(members_of(bundle).items())
    place, name = generator.randrange(len(pairs)), generator.choice(_NAMES)
    if generator.random() < 0.5:
        return zipped([*pairs, (name, pairs[place][1])])
    pairs[place] = (name, pairs[place][1])
    return zipped(pairs)


def _missing(bundle: bytes, donor: bytes, generator: random.Random) -> bytes:
    members = members_of(bundle)
    left_out = generator.choice(list(members))
    return zipped(_fitted({name: data for name, data in members.items() if name != left_out}, generator))


def _transplanted(bundle: bytes, donor: bytes, generator: random.Random) -> bytes:
    """Members of the other bundle, though not so many that it is the other bundle."""
    members, others = members_of(bundle), members_of(donor)
    if SIGNATURE not in members and (fat := _variants(bundle)):
        # A variant that is encrypted and not signed may be any that the owner of the key has made.
        name = generator.choice(fat)
        return zipped({**members, name: _transplanted(members[name], others[name], generator)})
    differ = [name for name in members if others[name] != members[name]]
    chosen = generator.sample(differ, generator.randint(1, max(1, len(differ) - 1)))
    return zipped(_fitted({**members, **{name: others[name] for name in chosen}}, generator))


def _reordered(bundle: bytes, donor: bytes, generator: random.Random) -> bytes:
    pairs = list(members_of(bundle).items())
    generator.shuffle(pairs)
    return zipped(pairs)


def _joined(bundle: bytes, donor: bytes, generator: random.Random) -> bytes:
    """Two files in one: a reader that looks from the front sees another bundle than one that looks from the end."""
    return generator.choice((donor + bundle, bundle + donor, bundle + bundle))


def _directory(bundle: bytes, donor: bytes, generator: random.Random) -> bytes:
    """Entries of the central directory moved, or it itself."""
    data, entries = _taken_apart(bundle)
    return generator.choice(_DIRECTORY_WAYS)(data, entries, generator)


def _taken_apart(bundle: bytes) -> tuple[bytes, list[bytes]]:
    """What lies before the central directory, and its entries."""
    count, size, start = _END.unpack(bundle[-_END.size :])[4:7]
    entries, at = [], start
    for _ in range(count):
        length = _ENTRY + sum(struct.unpack_from("<3H", bundle, at + 28))
        entries.append(bundle[at : at + length])
        at += length
    assert at == start + size, "a bundle as Whet writes it: no zip64, nothing behind its directory"
    return bundle[:start], entries


def _put_together(data: bytes, entries: list[bytes], start: int | None = None) -> bytes:
    text = b"".join(entries)
    count, begin = len(entries), len(data) if start is None else start
    return data + text + _END.pack(b"PK\x05\x06", 0, 0, count, count, len(text), begin, 0)


def _with(entry: bytes, **fields: int) -> bytes:
    """An entry with other numbers: checksum, size, place."""
    changed = bytearray(entry)
    for name, value in fields.items():
        for at in {"crc": (16,), "size": (20, 24), "place": (42,)}[name]:
            struct.pack_into("<L", changed, at, value)
    return bytes(changed)


def _place(entry: bytes) -> int:
    return int.from_bytes(entry[42:46], "little")


def _shuffled(data: bytes, entries: list[bytes], generator: random.Random) -> bytes:
    return _put_together(data, generator.sample(entries, len(entries)))


def _crossed(data: bytes, entries: list[bytes], generator: random.Random) -> bytes:
    """Two entries exchange what says where their data lies: the offset alone, or sizes and checksums too."""
    left, right = generator.sample(range(len(entries)), 2)
    changed = [bytearray(item) for item in entries]
    for part in _PLACES if generator.random() < 0.5 else _PLACES[1:]:
        changed[left][part], changed[right][part] = entries[right][part], entries[left][part]
    return _put_together(data, [bytes(item) for item in changed])


def _counted_twice(data: bytes, entries: list[bytes], generator: random.Random) -> bytes:
    more = [*entries]
    more.insert(generator.randint(0, len(more)), generator.choice(entries))
    return _put_together(data, more)


def _unlisted(data: bytes, entries: list[bytes], generator: random.Random) -> bytes:
    """Data that no entry speaks of."""
    left_out = generator.randrange(len(entries))
    return _put_together(data, entries[:left_out] + entries[left_out + 1 :])


def _gap(data: bytes, entries: list[bytes], generator: random.Random) -> bytes:
    """Bytes between members, or before the directory; all offsets say so."""
    at = generator.choice([*map(_place, entries), len(data)])
    gap = generator.randbytes(generator.choice((1, 8, 4096)))
    moved = [_with(item, place=_place(item) + (len(gap) if _place(item) >= at else 0)) for item in entries]
    return _put_together(data[:at] + gap + data[at:], moved)


def _in_front(data: bytes, entries: list[bytes], generator: random.Random) -> bytes:
    """The directory before the data."""
    size = sum(map(len, entries))
    text = b"".join(_with(item, place=_place(item) + size) for item in entries)
    return text + data + _END.pack(b"PK\x05\x06", 0, 0, len(entries), len(entries), size, 0, 0)


def _behind(data: bytes, entries: list[bytes], generator: random.Random) -> bytes:
    """A changed copy of a member behind the others, to which its entry leads; the right one stays where it was."""
    chosen = generator.randrange(len(entries))
    at = _place(entries[chosen])
    head = 30 + sum(struct.unpack_from("<2H", data, at + 26))
    size = int.from_bytes(entries[chosen][24:28], "little")
    changed = scrambled(data[at + head : at + head + size], generator)
    numbers = {"crc": crc32(changed), "size": len(changed)}
    header = bytearray(data[at : at + head])
    struct.pack_into("<3L", header, 14, numbers["crc"], len(changed), len(changed))
    # Half of the time this is a second directory, and the first is data that nobody speaks of.
    data += b"".join(entries) if generator.random() < 0.5 else b""
    moved = [*entries]
    moved[chosen] = _with(entries[chosen], place=len(data), **numbers)
    return _put_together(data + header + changed, moved)


_DIRECTORY_WAYS: Final = (_shuffled, _crossed, _counted_twice, _unlisted, _gap, _in_front, _behind)
_WAYS: Final[tuple[Way, ...]] = (
    _anywhere,
    _records,
    _manifest,
    _member,
    _exchanged,
    _twice,
    _renamed,
    _missing,
    _transplanted,
    _reordered,
    _joined,
    _directory,
    _directory,
)


def _other_order(bundle: bytes, donor: bytes, generator: random.Random) -> bytes:
    """Variants in another order, left out or twice, with an index that says so."""
    members = members_of(bundle)
    index = json.loads(members[MANIFEST])
    known = {item["member"]: item for item in index["variants"]}
    order = generator.choices(list(known), k=generator.randint(1, len(known) + 1))
    named = [f"{place}.whet" for place in range(len(order))]
    index["variants"] = [{**known[old], "member": new} for old, new in zip(order, named, strict=True)]
    rest = {name: data for name, data in members.items() if name not in known}
    variants = {new: members[old] for old, new in zip(order, named, strict=True)}
    return zipped({**variants, **rest, MANIFEST: json.dumps(index).encode()})


def _lying(bundle: bytes, donor: bytes, generator: random.Random) -> bytes:
    """The index and the readable manifest of a variant both name the target of another, or none that there is."""
    members = members_of(bundle)
    index = json.loads(members[MANIFEST])
    left, right = generator.sample(index["variants"], 2)
    target: dict[str, Any] = generator.choice(
        ({**left["target"], "features": right["target"]["features"]}, right["target"], {**left["target"], "name": "x"})
    )
    left["target"] = target
    inside = members_of(members[left["member"]])
    manifest = json.loads(inside[MANIFEST])
    manifest["target"] = target
    changed = zipped({**inside, MANIFEST: json.dumps(manifest).encode()})
    return zipped({**members, left["member"]: changed, MANIFEST: json.dumps(index).encode()})


_FAT_WAYS: Final[tuple[Way, ...]] = (_other_order, _lying)
