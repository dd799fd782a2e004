"""Changed, stolen and exchanged bundles are refused alike in Python and C++, before any code is loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cpp.fat_forgeries import FatBundles, fat_forgeries
from tests.cpp.forgeries import Bundles, Forgery, Keys, forgeries
from tests.cpp.programs import Programs, build, run_bundle
from tests.cpp.verdicts import status_of
from tests.runtime.conftest import Model
from whet.errors import BundleError
from whet.runtime import load, read_bundle, write_bundle
from whet.runtime.safetensors import RawTensor

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture(scope="module")
def cases(shrunk: Model, canary: Path, tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Forgery, Path]]:
    """The table, with the bundles as files; their library tells when it is loaded, and has several chunks."""
    folder = tmp_path_factory.mktemp("forgeries")
    library = folder / "lib.so"
    # What follows the sections of an ELF file is not looked at.
    library.write_bytes(canary.read_bytes() + np.random.default_rng(0).bytes(150_000))
    keys = Keys.make(folder)
    weights = {key: RawTensor.of(item) for key, item in shrunk.weights.items()}
    made = (folder, shrunk.manifest, library, weights, keys)
    found = [*forgeries(Bundles.make(*made), keys, folder), *fat_forgeries(FatBundles.make(*made), keys)]
    paths = [folder / f"{index}.whet" for index in range(len(found))]
    for case, path in zip(found, paths, strict=True):
        path.write_bytes(case.data)
    return list(zip(found, paths, strict=True))


def test_python(cases: list[tuple[Forgery, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary, sung = tmp_path / "temporary", tmp_path / "sung"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("WHET_CANARY", str(sung))
    assert len(cases) > 180
    wrong = []
    for case, path in cases:
        if case.status == "ok":
            read_bundle(path, trusted=case.trusted, key=case.key)
            continue
        try:
            load(path, trusted=case.trusted, key=case.key)
            wrong.append(f"{case.name}: loaded")
        except BundleError as error:
            if status_of(error) != case.status or not re.search(case.words, str(error)) or ".whet" not in str(error):
                wrong.append(f"{case.name}: {type(error).__name__}: {error}")
    assert not wrong, "\n".join(wrong)
    assert not sung.exists()
    assert list(temporary.iterdir()) == []


def lines_of(cases: list[tuple[Forgery, Path]]) -> list[str]:
    """What `drive secured` reads."""
    return ["\t".join((str(path), str(case.trusted or "-"), str(case.key or "-"))) for case, path in cases]


@pytest.mark.parametrize("kind", ["plain", "sanitized"])
def test_cpp(kind: str, cases: list[tuple[Forgery, Path]], request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The same verdicts; what is right is opened, and then refused for want of a model in the library."""
    programs: Programs = request.getfixturevalue(kind)
    skip_without_crypto(programs)
    temporary, sung = tmp_path / "temporary", tmp_path / "sung"
    temporary.mkdir()
    environment = {"TMPDIR": str(temporary), "WHET_CANARY": str(sung)}
    for command in ("verify", "open"):
        bad = [item for item in cases if command == "verify" or item[0].status != "ok"]
        done = programs.run("drive", "secured", command, lines=lines_of(bad), **environment)
        assert done.returncode == 0 and not done.stderr, f"{done.stdout[-2000:]}\n{done.stderr[-8000:]}"
        wrong = []
        for (case, _), line in zip(bad, done.stdout.splitlines(), strict=True):
            status, message = line.split("\t", 1)
            if status != case.status or not re.search(case.words, message):
                wrong.append(f"{case.name}: {status}: {message}")
        assert not wrong, "\n".join(wrong)
        assert not sung.exists()
    assert list(temporary.iterdir()) == []


def skip_without_crypto(programs: Programs) -> None:
    if programs.output("drive", "crypto").strip() != "1":
        pytest.skip("libcrypto is missing: cpp/setup installs it")


@pytest.mark.parametrize("fat", [False, True], ids=["single", "fat"])
@pytest.mark.parametrize("encrypted", [False, True], ids=["signed", "both"])
def test_results_are_the_same_bit_for_bit(
    encrypted: bool, fat: bool, shrunk: Model, plain: Programs, tmp_path: Path
) -> None:
    """As those of the plain bundle, in Python and in C++."""
    skip_without_crypto(plain)
    keys = Keys.make(tmp_path)
    encrypt, public = keys.secret if encrypted else None, tmp_path / "ours.pub"
    write_bundle(tmp_path / "plain.whet", shrunk.manifest, shrunk.library, shrunk.weights)
    bundle = tmp_path / "m.whet"
    weights = {key: RawTensor.of(item) for key, item in shrunk.weights.items()}
    if fat:
        made = FatBundles.make(tmp_path, shrunk.manifest, shrunk.library, weights, keys)
        bundle.write_bytes(made.both if encrypted else made.signed)
    else:
        write_bundle(bundle, shrunk.manifest, shrunk.library, weights, sign=keys.ours, encrypt=encrypt)
    generator = np.random.default_rng(0)
    x, mask = generator.normal(size=(8, 8)).astype("f4"), generator.random((8, 8)) < 0.5
    expected = [array.tobytes() for array in outputs_of(load(tmp_path / "plain.whet")(x, mask=mask))]
    opened = load(bundle, trusted=public, key=encrypt)
    assert [array.tobytes() for array in outputs_of(opened(x, mask=mask))] == expected
    options = ["--trust", str(public), *(["--key", str(encrypt)] if encrypt else [])]
    for path, given in ((tmp_path / "plain.whet", []), (bundle, options)):
        found = run_bundle(plain, path, [x, mask], *given)
        assert [array.tobytes() for array in found] == expected, path


def outputs_of(result: Any) -> list[Any]:
    """The arrays of the result of the model `affine`."""
    return [result["y"], result["rest"][0]]


def test_what_is_no_key(cases: list[tuple[Forgery, Path]], plain: Programs, tmp_path: Path) -> None:
    skip_without_crypto(plain)
    keys = Keys.make(tmp_path)
    (tmp_path / "short").write_bytes(b"x" * 31)
    (tmp_path / "long").write_bytes(b"x" * 100_000)
    (tmp_path / "raw").write_bytes(bytes.fromhex(keys.secret.read_text()))
    path = next(path for case, path in cases if case.status == "ok" and case.key is None)
    lines, words = [], []
    for trusted, key, expected in (
        (keys.ours, "-", "bad input\t.*ours is not an Ed25519 public key as PEM"),
        (keys.secret, "-", "bad input\t.*secret is not an Ed25519 public key"),
        (tmp_path / "long", "-", "bad input\t.*too long"),
        (tmp_path / "none", "-", "cannot read\t.*there is no such file"),
        ("-", tmp_path / "short", "bad input\t.*no key for encryption: that is 32 bytes"),
        ("-", keys.ours, "bad input\t.*no key for encryption"),
        ("-", tmp_path / "raw", "wrong key\t.*is not encrypted"),
    ):
        lines.append(f"{path}\t{trusted}\t{key}")
        words.append(expected)
    printed = plain.output("drive", "secured", "verify", lines=lines)  # type: ignore[arg-type]
    for line, expected in zip(printed.splitlines(), words, strict=True):
        assert re.match(expected, line), line


def test_a_build_without_libcrypto(cases: list[tuple[Forgery, Path]], repository: Path) -> None:
    """Every bundle that is opened with a key gives the code for it; all others are what they were."""
    without = Programs(build(repository, "without-crypto", "-DWHET_WITH_CRYPTO=OFF", "-DWHET_EXAMPLES=OFF"))
    keyless = [item for item in cases if item[0].trusted is None and item[0].key is None]
    asked = [item for item in cases if item[0].trusted is None and item[0].key is not None]
    printed = without.output("drive", "secured", "verify", lines=lines_of(keyless + asked))  # type: ignore[arg-type]
    statuses = [line.split("\t")[0] for line in printed.splitlines()]
    assert statuses[: len(keyless)] == [case.status for case, _ in keyless]
    assert set(statuses[len(keyless) :]) == {"no cryptography"}
    assert "libssl-dev" in printed
    line = f"{cases[0][1]}\t{cases[0][0].trusted}\t-"
    assert without.output("drive", "secured", "verify", lines=[line]).startswith("no cryptography\t")  # type: ignore[arg-type]
