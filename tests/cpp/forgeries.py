"""Signed and encrypted bundles that somebody changed, one table for Python and C++."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.cpp.mutations import LIBRARY, MANIFEST, PACKED, WEIGHTS, Members, members_of, zipped
from whet.runtime import sign_bundle, write_bundle, write_secret_key, write_signing_key
from whet.runtime.keys import TAG_BYTES, read_public_key, read_secret_key
from whet.runtime.manifest import Manifest
from whet.runtime.safetensors import RawTensor
from whet.runtime.sealing import CHUNK, SEALED_MANIFEST, MemberCipher, open_sealed, seal
from whet.runtime.signature import SIGNATURE

PLAIN: Final = (LIBRARY, WEIGHTS, PACKED)
SEALED: Final = (*PLAIN, SEALED_MANIFEST)
CHANGED: Final = "changed after it was signed"
UNREADABLE: Final = "cannot be decrypted"
# The manifest in the encrypted bundle is read first, and knows the sizes.
SIZE: Final = "manifest says|cannot be decrypted|no sealed member has"


@dataclass(frozen=True)
class Keys:
    """Files: two pairs for signatures (the public ones end in .pub), two keys for encryption."""

    ours: Path
    theirs: Path
    secret: Path
    other: Path

    @classmethod
    def make(cls, folder: Path) -> Keys:
        keys = cls(*(folder / name for name in ("ours", "theirs", "secret", "other")))
        for path in (keys.ours, keys.theirs):
            write_signing_key(path)
        for path in (keys.secret, keys.other):
            write_secret_key(path)
        return keys


@dataclass(frozen=True)
class Forgery:
    """A bundle, the keys that it is opened with, the status of the C API, and words of the messages."""

    name: str
    data: bytes
    trusted: Path | None
    key: Path | None
    status: str
    words: str = ""


@dataclass(frozen=True)
class Bundles:
    """The same model, saved in every way; the names that begin with `second` are of other weights."""

    plain: bytes
    signed: bytes
    second_signed: bytes
    theirs_signed: bytes
    sealed: bytes
    second_sealed: bytes
    both: bytes

    @classmethod
    def make(
        cls, folder: Path, manifest: Manifest, library: Path, weights: dict[str, RawTensor], keys: Keys
    ) -> Bundles:
        def saved(**options: Any) -> bytes:
            write_bundle(folder / "m.whet", manifest, library, options.pop("weights", weights), **options)
            return (folder / "m.whet").read_bytes()

        first = next(iter(weights))
        changed = {**weights, first: RawTensor(weights[first].dtype, weights[first].array + 1)}
        second_signed = saved(sign=keys.ours, weights=changed)
        second_sealed = saved(encrypt=keys.secret, weights=changed)
        theirs = saved(sign=keys.theirs)
        signed = saved(sign=keys.ours)
        both = saved(sign=keys.ours, encrypt=keys.secret)
        sealed = saved(encrypt=keys.secret)
        return cls(saved(), signed, second_signed, theirs, sealed, second_sealed, both)


def flipped(data: bytes, at: int = -1) -> bytes:
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def rehashed(members: Members, change: Callable[[dict[str, Any]], Any] = lambda _: None) -> bytes:
    """The bundle with a manifest that has the checksums and sizes of these members: what an attacker writes."""
    manifest = json.loads(members[MANIFEST])
    for name, entry in manifest["members"].items():
        entry |= {"sha256": hashlib.sha256(members[name]).hexdigest(), "size": len(members[name])}
    change(manifest)
    return zipped({**members, MANIFEST: json.dumps(manifest).encode()})


def forgeries(bundles: Bundles, keys: Keys, folder: Path) -> Iterator[Forgery]:
    """All of it; `folder` is for files in between."""
    yield from _signed(bundles, keys)
    yield from _malformed(bundles, keys)
    yield from _keys(bundles, keys)
    yield from _sealed(bundles, keys)
    yield from _by_a_holder_of_the_key(bundles, keys, folder)


def _signed(bundles: Bundles, keys: Keys) -> Iterator[Forgery]:
    ours = keys.ours.with_name("ours.pub")
    members, second = members_of(bundles.signed), members_of(bundles.second_signed)
    theirs = members_of(bundles.theirs_signed)

    def case(name: str, data: bytes, status: str, words: str = "") -> Forgery:
        return Forgery(f"signed: {name}", data, ours, None, status, words)

    yield case("as it is", bundles.signed, "ok")
    yield case("members in another order", zipped(list(members.items())[::-1]), "ok")
    yield case("never", bundles.plain, "not trusted", "is not signed")
    removed = {name: data for name, data in members.items() if name != SIGNATURE}
    yield case("signature removed", zipped(removed), "not trusted", "is not signed")
    yield case("by another key", bundles.theirs_signed, "not trusted", "by the key [0-9a-f]{32}, which is not trusted")
    ids = [read_public_key(path).id.encode() for path in (keys.theirs.with_name("theirs.pub"), ours)]
    renamed = zipped({**theirs, SIGNATURE: theirs[SIGNATURE].replace(*ids)})
    yield case("by another key under the name of ours", renamed, "not trusted", CHANGED)
    yield case("signature of another bundle", zipped({**members, SIGNATURE: second[SIGNATURE]}), "not trusted", CHANGED)
    digit = b"0" if members[SIGNATURE][-2:-1] != b"0" else b"1"
    other_digit = members[SIGNATURE][:-2] + digit + b"\n"
    yield case("another digit in the signature", zipped({**members, SIGNATURE: other_digit}), "not trusted", CHANGED)
    spaced = zipped({**members, MANIFEST: members[MANIFEST] + b" "})
    yield case("a space more in the manifest", spaced, "not trusted", CHANGED)
    for name in PLAIN:
        changed = {**members, name: flipped(members[name])}
        yield case(f"{name} changed", zipped(changed), "damaged", f"{name} .*sha256")
        yield case(f"{name} changed, and the manifest", rehashed(changed), "not trusted", CHANGED)
    yield case("weights of another signed bundle", zipped({**members, WEIGHTS: second[WEIGHTS]}), "damaged", "sha256")
    head = {name: second[name] for name in (MANIFEST, SIGNATURE)}
    yield case("manifest and signature of another", zipped({**members, **head}), "damaged", "sha256")
    few = {name: data for name, data in members.items() if name != PACKED}
    yield case("a member less", zipped(few), "damaged", "describes")
    more = [*members.items(), ("extra.so", members[LIBRARY])]
    yield case("a member more", zipped(more), "damaged", "unknown member 'extra.so'")
    twice = [(name, data) for name, data in members.items() for _ in range(2 if name == LIBRARY else 1)]
    yield case("a member twice", zipped(twice), "damaged", "twice")
    unasked = Forgery("signed by another key, and nobody asks", bundles.theirs_signed, None, None, "ok")
    yield unasked


def _malformed(bundles: Bundles, keys: Keys) -> Iterator[Forgery]:
    """Signatures that are none are damage, asked for or not."""
    members = members_of(bundles.signed)
    good = members[SIGNATURE]
    for trusted in (None, keys.ours.with_name("ours.pub")):
        asked = "" if trusted is None else ", keys trusted"
        bad = {
            "empty": b"",
            "a byte short": good[:-1],
            "a byte long": good + b"\n",
            "of another version": good.replace(b"signature 1", b"signature 2"),
            "in capitals": good[:24] + good[24:].upper(),
            "no text": b"\xff" * len(good),
            "with a line end in the middle": good[:-30] + b"\n" + good[-29:],
        }
        for name, data in bad.items():
            changed = zipped({**members, SIGNATURE: data})
            yield Forgery(f"a signature {name}{asked}", changed, trusted, None, "damaged", "damaged: signature ")
        at = bundles.signed.index(good) + 70
        crc = flipped(bundles.signed, at)
        yield Forgery(f"a signature without its checksum{asked}", crc, trusted, None, "damaged", "signature .*checksum")
        twice = zipped([*members.items(), (SIGNATURE, good)])
        yield Forgery(f"two signatures{asked}", twice, trusted, None, "damaged", "'signature' twice|members in place")


def _keys(bundles: Bundles, keys: Keys) -> Iterator[Forgery]:
    ours, theirs = (path.with_name(f"{path.name}.pub") for path in (keys.ours, keys.theirs))
    found = "is encrypted with the key [0-9a-f]{32}"
    yield Forgery("sealed: as it is", bundles.sealed, None, keys.secret, "ok")
    yield Forgery("sealed: no key", bundles.sealed, None, None, "wrong key", f"{found}: give this key")
    yield Forgery("sealed: another key", bundles.sealed, None, keys.other, "wrong key", f"{found}; the key given is")
    yield Forgery("plain: a key", bundles.plain, None, keys.secret, "wrong key", "is not encrypted")
    yield Forgery("signed and sealed: as it is", bundles.both, ours, keys.secret, "ok")
    yield Forgery("signed and sealed: nobody asks who signed", bundles.both, None, keys.secret, "ok")
    yield Forgery("signed and sealed: no key", bundles.both, ours, None, "wrong key", f"{found}: give this key")
    yield Forgery("signed and sealed: others trusted", bundles.both, theirs, keys.secret, "not trusted", "not trusted")
    yield Forgery("signed and sealed: others trusted, no key", bundles.both, theirs, None, "not trusted", "not trusted")
    yield Forgery("sealed, not signed", bundles.sealed, ours, keys.secret, "not trusted", "is not signed")
    yield Forgery("signed, not sealed", bundles.signed, ours, keys.secret, "wrong key", "is not encrypted")


def _sealed(bundles: Bundles, keys: Keys) -> Iterator[Forgery]:
    """What somebody without the key can do."""
    members, second = members_of(bundles.sealed), members_of(bundles.second_sealed)

    def case(name: str, data: bytes, words: str = UNREADABLE, status: str = "damaged") -> Forgery:
        return Forgery(f"sealed: {name}", data, None, keys.secret, status, words)

    for name in SEALED:
        data = members[name]
        for what, changed in {
            "the first byte": flipped(data, 0),
            "the last byte": flipped(data),
            "a byte of the first tag": flipped(data, min(len(data), CHUNK + TAG_BYTES) - 3),
        }.items():
            yield case(f"{what} of {name}", rehashed({**members, name: changed}))
        yield case(f"{name} a byte short", rehashed({**members, name: data[:-1]}), SIZE)
        yield case(f"{name} a byte long", rehashed({**members, name: data + b"\0"}), SIZE)
        yield case(f"{name} cut to a tag", rehashed({**members, name: data[-TAG_BYTES:]}), "damaged")
        yield case(f"{name} cut below a tag", rehashed({**members, name: data[:5]}), SIZE)
        yield case(f"{name} empty", rehashed({**members, name: b""}), SIZE)
        yield case(f"{name} of another bundle of that key", rehashed({**members, name: second[name]}))
    step = CHUNK + TAG_BYTES
    long = members[LIBRARY]
    assert len(long) > 2 * step, "the library must have several chunks"
    yield case("the last chunk cut off", rehashed({**members, LIBRARY: long[:step]}), SIZE)
    yield case("a chunk twice", rehashed({**members, LIBRARY: long[:step] + long}), SIZE)
    yield case("a chunk less", rehashed({**members, LIBRARY: long[step:]}), SIZE)
    swapped = {**members, WEIGHTS: members[PACKED], PACKED: members[WEIGHTS]}
    other = long[step : 2 * step] + long[:step] + long[2 * step :]
    yield case("two chunks exchanged", rehashed({**members, LIBRARY: other}))
    yield case("a chunk in place of another", rehashed({**members, LIBRARY: long[:step] * 2 + long[2 * step :]}))
    yield case("two members exchanged", rehashed(swapped), SIZE)
    yield case("the manifest's checksum wrong", zipped({**members, SEALED_MANIFEST: flipped(members[SEALED_MANIFEST])}),
               "sha256")  # fmt: skip
    yield case("readable manifest of another", zipped({**members, MANIFEST: second[MANIFEST]}), "damaged")

    def header(**fields: Any) -> bytes:
        return rehashed(members, lambda manifest: manifest["encryption"].update(fields))

    yield case("another salt", header(salt="0" * 64))
    for salt in ("", "0" * 62, "0" * 63 + " ", "A" * 64, 5):
        yield case(f"the salt {salt!r}", header(salt=salt), "not an encrypted bundle")
    yield case("another cipher", header(cipher="none"), "not an encrypted bundle")
    yield case("the key of nobody", header(key="0" * 32), "the key given is", "wrong key")
    renamed = header(key=read_secret_key(keys.other).id)
    yield Forgery("sealed: under the name of another key", renamed, None, keys.other, "damaged", UNREADABLE)
    target = rehashed(members, lambda manifest: manifest["target"].update(name="another"))
    yield case("another target in what is readable", target, "readable manifest does not say")
    for version, words, status in ((99, "reads up to 4", "newer format"), (2, "not an encrypted bundle", "damaged")):
        other = rehashed(members, lambda manifest, v=version: manifest.update(format_version=v))  # type: ignore[misc]
        yield case(f"format version {version}", other, words, status)
    less = {name: data for name, data in members.items() if name != SEALED_MANIFEST}
    yield case("without its manifest", zipped(less), "is not encrypted", "wrong key")
    no_encryption = rehashed(members, lambda manifest: manifest.pop("encryption"))
    yield case("without a word of the encryption", no_encryption, "not an encrypted bundle")


def _by_a_holder_of_the_key(bundles: Bundles, keys: Keys, folder: Path) -> Iterator[Forgery]:
    """What the owner of a device can do, who has its key and not ours: encrypt, and not sign."""
    ours, secret = keys.ours.with_name("ours.pub"), read_secret_key(keys.secret)
    members = members_of(bundles.both)
    salt = bytes.fromhex(json.loads(members[MANIFEST])["encryption"]["salt"])
    for name in SEALED:
        cipher = MemberCipher(secret, salt, name)
        plain = open_sealed(cipher, members[name])
        # A space in the text of the manifest becomes a tab.
        changed = plain.replace(b" ", b"\t", 1) if name == SEALED_MANIFEST else flipped(plain)
        other = {**members, name: b"".join(seal(cipher, [memoryview(changed)], len(plain)))}
        yield Forgery(f"{name} encrypted anew", zipped(other), ours, keys.secret, "damaged", f"{name} .*sha256")
        rest = (ours, keys.secret, "not trusted", CHANGED)
        yield Forgery(f"{name} encrypted anew, manifest too", rehashed(other), *rest)
    (folder / "theirs.whet").write_bytes(bundles.both)
    sign_bundle(folder / "theirs.whet", keys.theirs)
    anew = (folder / "theirs.whet").read_bytes()
    yield Forgery("signed anew by another key", anew, ours, keys.secret, "not trusted", "not trusted")
