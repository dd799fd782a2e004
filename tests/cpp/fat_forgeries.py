"""Fat bundles, signed and encrypted, that somebody changed; for the same table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from tests.cpp.forgeries import CHANGED, SEALED, UNREADABLE, Forgery, Keys, flipped, rehashed
from tests.cpp.mutations import LIBRARY, MANIFEST, WEIGHTS, Members, members_of, zipped
from whet.runtime import join_bundles, write_bundle
from whet.runtime.keys import read_secret_key
from whet.runtime.manifest import Manifest
from whet.runtime.safetensors import RawTensor
from whet.runtime.sealing import SEALED_MANIFEST, MemberCipher, open_sealed, seal
from whet.runtime.signature import SIGNATURE

OWN: Final = "1.whet"
"""The variant for this machine; those before and after are for others."""
VARIANTS: Final = ("0.whet", OWN, "2.whet")
_LATER: Final = "avx512quantum"
_NOT_SAID: Final = "index does not say"


@dataclass(frozen=True)
class FatBundles:
    """The same model for three processors, of which this machine has the second; `second` is of other weights."""

    plain: bytes
    signed: bytes
    second_signed: bytes
    theirs_signed: bytes
    sealed: bytes
    both: bytes
    # Joined of bundles that had signatures of their own.
    nested: bytes

    @classmethod
    def make(
        cls, folder: Path, manifest: Manifest, library: Path, weights: dict[str, RawTensor], keys: Keys
    ) -> FatBundles:
        first = next(iter(weights))
        changed = {**weights, first: RawTensor(weights[first].dtype, weights[first].array + 1)}

        def saved(
            sign: Path | None = None, encrypt: Path | None = None, inner: Path | None = None, **own: Any
        ) -> bytes:
            paths = [folder / f"{number}.part" for number in range(3)]
            for path, name in zip(paths, ("later", manifest.target.name, "latest"), strict=True):
                features = manifest.target.features if name == manifest.target.name else (_LATER,)
                target = replace(manifest.target, name=name, features=features)
                found = own.get("weights", weights)
                write_bundle(path, replace(manifest, target=target), library, found, sign=inner, encrypt=encrypt)
            join_bundles(folder / "fat", paths, sign=sign, key=encrypt)
            return (folder / "fat").read_bytes()

        return cls(
            plain=saved(),
            signed=saved(keys.ours),
            second_signed=saved(keys.ours, weights=changed),
            theirs_signed=saved(keys.theirs),
            sealed=saved(encrypt=keys.secret),
            both=saved(keys.ours, keys.secret),
            nested=saved(keys.ours, inner=keys.theirs),
        )


def fat_forgeries(bundles: FatBundles, keys: Keys) -> Iterator[Forgery]:
    """All of it."""
    yield from _signed(bundles, keys)
    yield from _keys(bundles, keys)
    yield from _sealed(bundles, keys)
    yield from _by_a_holder_of_the_key(bundles, keys)


def changed_inside(members: Members, number: str, change: Members, *, fitting: bool = False) -> Members:
    """The fat bundle with members of a variant replaced; where `fitting`, its manifest has their checksums."""
    inside = {**members_of(members[number]), **change}
    return {**members, number: rehashed(inside) if fitting else zipped(inside)}


def with_space(members: Members, number: str) -> Members:
    """A space more in the manifest of a variant."""
    return changed_inside(members, number, {MANIFEST: members_of(members[number])[MANIFEST] + b" "})


def of_index(members: Members, order: tuple[str, ...]) -> Members:
    """The variants `order` as an index and members of their own."""
    index = json.loads(members[MANIFEST])
    named = dict(zip(VARIANTS, index["variants"], strict=True))
    index["variants"] = [{**named[name], "member": VARIANTS[place]} for place, name in enumerate(order)]
    rest = {name: data for name, data in members.items() if name == SIGNATURE}
    variants = {VARIANTS[place]: members[name] for place, name in enumerate(order)}
    return {**variants, MANIFEST: json.dumps(index, indent=1).encode(), **rest}


def _signed(bundles: FatBundles, keys: Keys) -> Iterator[Forgery]:
    ours = keys.ours.with_name("ours.pub")
    members, second = members_of(bundles.signed), members_of(bundles.second_signed)

    def case(name: str, data: bytes | Members, status: str = "not trusted", words: str = CHANGED) -> Forgery:
        text = data if isinstance(data, bytes) else zipped(data)
        return Forgery(f"fat, signed: {name}", text, ours, None, status, "" if status == "ok" else words)

    def asked_or_not(name: str, data: Members, words: str) -> Iterator[Forgery]:
        for trusted in (None, ours):
            asked = "" if trusted is None else ", keys trusted"
            yield Forgery(f"fat, signed: {name}{asked}", zipped(data), trusted, None, "damaged", words)

    yield case("as it is", bundles.signed, "ok")
    yield case("members in another order", zipped(list(members.items())[::-1]), "ok")
    yield case("never", bundles.plain, words="is not signed")
    removed = {name: data for name, data in members.items() if name != SIGNATURE}
    yield case("signature removed", removed, words="is not signed")
    yield case("by another key", bundles.theirs_signed, words="which is not trusted")
    yield Forgery("fat, signed by another key, and nobody asks", bundles.theirs_signed, None, None, "ok")
    yield case("signature of another bundle", {**members, SIGNATURE: second[SIGNATURE]})
    yield case("a space more in the index", {**members, MANIFEST: members[MANIFEST] + b" "})
    for number in VARIANTS:
        yield case(f"a space more in the manifest of {number}", with_space(members, number))
        inside = members_of(members[number])
        other = {LIBRARY: flipped(inside[LIBRARY])}
        yield case(
            f"library of {number} changed, and its manifest", changed_inside(members, number, other, fitting=True)
        )
        status, words = ("damaged", f"{LIBRARY} .*sha256") if number == OWN else ("ok", "")
        # No code of a variant that is not taken is loaded, nor even read.
        yield case(f"library of {number} changed", changed_inside(members, number, other), status, words)
        yield case(f"{number} of another signed bundle", {**members, number: second[number]})
    weights = changed_inside(members, OWN, {WEIGHTS: members_of(second[OWN])[WEIGHTS]})
    yield case("weights of another signed bundle", weights, "damaged", "sha256")
    yield case("variants in another order", of_index(members, (OWN, "0.whet", "2.whet")))
    yield case("a variant less", of_index(members, VARIANTS[:2]))
    yield case("two variants less", of_index(members, (OWN,)))
    yield case("a variant twice", of_index(members, ("0.whet", OWN, OWN)))
    exchanged = {**members, "0.whet": members[OWN], OWN: members["0.whet"]}
    yield from asked_or_not("variants exchanged behind the index", exchanged, _NOT_SAID)
    yield from asked_or_not("a library beside", {**members, LIBRARY: b"x"}, "of one bundle and others of several")
    sealed_beside = {**members, SEALED_MANIFEST: b"x"}
    yield from asked_or_not("a sealed manifest beside", sealed_beside, "of one bundle and others of several")
    for what, text in {"empty": b"", "a byte short": members[SIGNATURE][:-1], "no text": b"\xff" * 186}.items():
        yield from asked_or_not(f"a signature {what}", {**members, SIGNATURE: text}, "damaged: signature ")
    broken = {**members, "0.whet": b"broken"}
    yield case("a variant for others broken", broken, "damaged", "variant 'later', is not a whole bundle")
    yield Forgery("fat, signed: a variant for others broken, and nobody asks", zipped(broken), None, None, "ok")
    # A variant is signed as a part of its fat bundle, and not as a bundle of its own; nor the other way.
    yield case("a variant alone", members[OWN], words="is not signed")
    alone = {**members_of(members[OWN]), SIGNATURE: members[SIGNATURE]}
    yield case("a variant alone with the signature", alone)
    nested = members_of(bundles.nested)
    yield case("of bundles that others signed", bundles.nested, "ok")
    unsigned = {name: data for name, data in nested.items() if name != SIGNATURE}
    yield case("of bundles that others signed, never itself", unsigned, words="is not signed")
    lifted = {**unsigned, SIGNATURE: members_of(nested[OWN])[SIGNATURE]}
    yield case("by the signature of a variant", lifted, words="which is not trusted")
    without = {name: data for name, data in members_of(nested[OWN]).items() if name != SIGNATURE}
    yield case("the signature of a variant removed", {**nested, OWN: zipped(without)}, "ok")
    inner = changed_inside(nested, OWN, {SIGNATURE: b"x"})
    yield case("the signature of a variant changed", inner, "ok")


def _keys(bundles: FatBundles, keys: Keys) -> Iterator[Forgery]:
    ours, theirs = (path.with_name(f"{path.name}.pub") for path in (keys.ours, keys.theirs))
    found = "is encrypted with the key [0-9a-f]{32}"

    def case(name: str, data: bytes, trusted: Path | None, key: Path | None, status: str, words: str = "") -> Forgery:
        return Forgery(f"fat, {name}", data, trusted, key, status, words)

    yield case("sealed: as it is", bundles.sealed, None, keys.secret, "ok")
    yield case("sealed: no key", bundles.sealed, None, None, "wrong key", f"{found}: give this key")
    yield case("sealed: another key", bundles.sealed, None, keys.other, "wrong key", f"{found}; the key given is")
    yield case("plain: a key", bundles.plain, None, keys.secret, "wrong key", "is not encrypted")
    yield case("signed and sealed: as it is", bundles.both, ours, keys.secret, "ok")
    yield case("signed and sealed: nobody asks", bundles.both, None, keys.secret, "ok")
    yield case("signed and sealed: no key", bundles.both, ours, None, "wrong key", f"{found}: give this key")
    yield case("signed and sealed: others trusted", bundles.both, theirs, keys.secret, "not trusted", "not trusted")
    yield case("sealed, not signed", bundles.sealed, ours, keys.secret, "not trusted", "is not signed")
    yield case("signed, not sealed", bundles.signed, ours, keys.secret, "wrong key", "is not encrypted")
    mixed = {**members_of(bundles.sealed), OWN: members_of(bundles.plain)[OWN]}
    yield case("sealed but for the variant taken", zipped(mixed), None, keys.secret, "wrong key", "is not encrypted")
    mixed = {**members_of(bundles.plain), OWN: members_of(bundles.sealed)[OWN]}
    yield case("only the variant taken is sealed", zipped(mixed), None, keys.secret, "ok")
    yield case("only the variant taken is sealed: no key", zipped(mixed), None, None, "wrong key", f"{found}: give")


def _sealed(bundles: FatBundles, keys: Keys) -> Iterator[Forgery]:
    """What somebody without the keys can do."""
    ours = keys.ours.with_name("ours.pub")
    members = members_of(bundles.both)
    own, other = members_of(members[OWN]), members_of(members["0.whet"])

    def both(name: str, data: Members, words: str = UNREADABLE) -> Iterator[Forgery]:
        yield Forgery(f"fat, sealed: {name}", zipped(data), None, keys.secret, "damaged", words)
        yield Forgery(f"fat, signed and sealed: {name}", zipped(data), ours, keys.secret, "not trusted", CHANGED)

    for name in SEALED:
        yield from both(f"{name} changed", changed_inside(members, OWN, {name: flipped(own[name])}, fitting=True))
        # The salt is another, and with it the key.
        yield from both(f"{name} of another variant", changed_inside(members, OWN, {name: other[name]}, fitting=True),
                        f"{UNREADABLE}|manifest says|no sealed member has")  # fmt: skip

    def said(target: dict[str, Any], number: str) -> Members:
        """The index and the readable manifest say so, and the encrypted one does not."""
        place = VARIANTS.index(number)
        index = json.loads(members[MANIFEST])
        index["variants"][place]["target"].update(target)
        inside = members_of(members[number])
        readable = json.loads(inside[MANIFEST])
        readable["target"].update(target)
        changed = changed_inside(members, number, {MANIFEST: json.dumps(readable).encode()})
        return {**changed, MANIFEST: json.dumps(index).encode()}

    yield from both("another name in what is readable", said({"name": "x"}, OWN), "readable manifest does not say")
    host = json.loads(members[MANIFEST])["variants"][1]["target"]
    # The first of two that are as good would be taken, and its code ends in an illegal instruction.
    hidden = said({"features": host["features"]}, "0.whet")
    yield from both("features hidden", hidden, "readable manifest does not say")
    lying = json.loads(members[MANIFEST])
    lying["variants"][0]["target"]["features"] = host["features"]
    for trusted in (None, ours):
        text = zipped({**members, MANIFEST: json.dumps(lying).encode()})
        asked = "" if trusted is None else ", keys trusted"
        yield Forgery(f"fat, sealed: an index that hides{asked}", text, trusted, keys.secret, "damaged", _NOT_SAID)


def _by_a_holder_of_the_key(bundles: FatBundles, keys: Keys) -> Iterator[Forgery]:
    """What the owner of a device can do, who has its key and not ours."""
    ours, secret = keys.ours.with_name("ours.pub"), read_secret_key(keys.secret)
    members = members_of(bundles.both)
    inside = members_of(members[OWN])
    salt = bytes.fromhex(json.loads(inside[MANIFEST])["encryption"]["salt"])
    for name in SEALED:
        cipher = MemberCipher(secret, salt, name)
        plain = open_sealed(cipher, inside[name])
        # A space in the text of the manifest becomes a tab.
        changed = plain.replace(b" ", b"\t", 1) if name == SEALED_MANIFEST else flipped(plain)
        other = {name: b"".join(seal(cipher, [memoryview(changed)], len(plain)))}
        anew = zipped(changed_inside(members, OWN, other))
        yield Forgery(f"fat, {name} encrypted anew", anew, ours, keys.secret, "damaged", f"{name} .*sha256")
        anew = zipped(changed_inside(members, OWN, other, fitting=True))
        yield Forgery(f"fat, {name} encrypted anew, manifest too", anew, ours, keys.secret, "not trusted", CHANGED)
