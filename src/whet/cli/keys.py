"""`whet keygen`, `whet sign` and `whet verify`; and the options that name keys, of the commands that read bundles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from whet.cli.output import Json, add_row, console, plain_table, print_json
from whet.errors import InputError
from whet.runtime.keys import read_secret_key, read_signing_key, write_secret_key, write_signing_key
from whet.runtime.verifying import Verification, verify_bundle
from whet.runtime.writing import sign_bundle

Bundle = Annotated[Path, typer.Argument(metavar="BUNDLE", help="What `whet optimize` or save() has written.")]
Trust = Annotated[
    list[Path] | None,
    typer.Option(
        "--trust",
        metavar="PUBLIC",
        envvar="WHET_TRUST",
        help="A public key that must have signed the bundle; of several, one of them.",
    ),
]
Key = Annotated[
    Path | None,
    typer.Option("--key", metavar="FILE", envvar="WHET_BUNDLE_KEY", help="What the bundle is encrypted with."),
]
Sign = Annotated[Path | None, typer.Option("--sign", metavar="PRIVATE", help="Sign the bundle with this private key.")]
Encrypt = Annotated[Path | None, typer.Option("--encrypt", metavar="FILE", help="Encrypt the bundle with this key.")]


def keygen(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="Where the private or secret key goes (mode 0600).")],
    encryption: Annotated[
        bool, typer.Option("--encryption", help="A key for encryption (32 bytes) in place of a pair for signatures.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Make keys: a private one to sign with and FILE.pub to check with, or one to encrypt and decrypt with."""
    made = write_secret_key(path) if encryption else write_signing_key(path)
    files = [str(path)] if encryption else [str(path), f"{path}.pub"]
    if as_json:
        print_json({"id": made.id, "files": files})
        return
    console().print(f"key {made.id}: {' and '.join(files)}", markup=False, highlight=False)


def sign(
    bundle: Bundle,
    with_key: Annotated[Path, typer.Option("--with", metavar="PRIVATE", help="The private key.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="By default the bundle itself.")] = None,
    as_json: Json = False,
) -> None:
    """Sign a bundle that was written before; every checksum in it is verified first."""
    public = sign_bundle(bundle, with_key, out=out)
    if as_json:
        print_json({"bundle": str(out or bundle), "signed_by": public.id})
        return
    console().print(f"{out or bundle}: signed by {public.id}", markup=False, highlight=False)


def verify(bundle: Bundle, trust: Trust = None, key: Key = None, as_json: Json = False) -> None:
    """Check a bundle for any device: every checksum, the signature where --trust is given; nothing of it is run."""
    found = verify_bundle(bundle, trusted=trust or None, key=key)
    if as_json:
        print_json(asdict(found))
        return
    table = plain_table("", "", title=str(bundle))
    table.show_header = False
    for name, value in (
        ("checksums", "right"),
        ("targets", ", ".join(found.targets)),
        ("signature", shown_signature(found)),
        ("encryption", shown_encryption(found)),
    ):
        add_row(table, name, value)
    console().print(table)


def shown_signature(found: Verification) -> str:
    """In words."""
    if found.signed_by is None:
        return "none"
    if found.trusted:
        return f"by {found.signed_by}, which is trusted"
    return f"says to be by {found.signed_by}, not checked: give --trust"


def shown_encryption(found: Verification) -> str:
    """In words."""
    if found.encrypted_with is None:
        return "none"
    checked = "and its contents are right" if found.decrypted else "whose contents were not looked at: give --key"
    return f"with {found.encrypted_with}, {checked}"


@dataclass(frozen=True)
class Sealing:
    """What --sign and --encrypt ask for: the files of the keys that a bundle is written with."""

    sign: Path | None
    encrypt: Path | None

    @classmethod
    def checked(cls, sign: Path | None, encrypt: Path | None) -> Sealing:
        """Raise BundleKeyError for what is no key: before the minutes that a compilation takes, not after."""
        if sign is not None:
            read_signing_key(sign)
        if encrypt is not None:
            read_secret_key(encrypt)
        return cls(sign, encrypt)

    @property
    def asked(self) -> bool:
        """Whether either was given."""
        return self.sign is not None or self.encrypt is not None


def check_for_board(bundle: Path, trust: Sequence[Path] | None, key: Path | None) -> None:
    """What can be done with keys for a bundle that another machine runs: its signature is checked here.

    Raises InputError for a key: a board would need it, and it is not sent over the network.
    """
    if key is not None:
        raise InputError("--key goes with a bundle on this machine: a key is not sent over the network")
    if trust:
        verify_bundle(bundle, trusted=trust)
