"""The commands that make keys, sign and verify, and the options that name keys."""

from __future__ import annotations

import json
import shlex
import stat
from pathlib import Path
from typing import Any

import pytest
import torch

import whet
from whet.cli import main

MODEL = """
import torch

def make():
    torch.manual_seed(0)
    return torch.nn.Linear(8, 4).eval(), torch.randn(1, 8)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("model_of_keys.py").write_text(MODEL)
    for arguments in (["ours"], ["theirs"], ["secret", "--encryption"], ["other", "--encryption"]):
        assert main(["keygen", *arguments]) == 0
    return tmp_path


def output_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    capsys.readouterr()
    assert main([*arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 1
    return capsys.readouterr().err


def test_from_the_model_to_the_device(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["optimize", "model_of_keys.py:make", "-o", "m.whet", "--sign", "ours", "--encrypt", "secret"]
    assert main(command) == 0
    keys = ("--trust", "ours.pub", "--key", "secret")
    ran = output_of(capsys, "run", "m.whet", *keys)
    main(["optimize", "model_of_keys.py:make", "-o", "plain.whet"])
    assert ran["outputs"] == output_of(capsys, "run", "plain.whet")["outputs"]
    assert output_of(capsys, "bench", "m.whet", "--seconds", "0.1", *keys)["calls"] > 0
    shown = output_of(capsys, "inspect", "m.whet", *keys)
    assert shown["verified"]["trusted"] and shown["verified"]["decrypted"]
    assert "which is trusted" in shown_text(capsys, "inspect", "m.whet", *keys)
    assert shown_text(capsys, "verify", "m.whet").count("not checked: give --trust") == 1
    assert "is encrypted with the key" in refusal(capsys, "run", "m.whet", "--trust", "ours.pub")
    assert "the key given is" in refusal(capsys, "inspect", "m.whet", "--key", "other")
    for name in ("run", "bench", "inspect", "verify"):
        assert "which is not trusted" in refusal(capsys, name, "m.whet", "--trust", "theirs.pub", "--key", "secret")
        assert "is not signed" in refusal(capsys, name, "plain.whet", "--trust", "ours.pub")
        assert "is not encrypted" in refusal(capsys, name, "plain.whet", "--key", "secret")


def shown_text(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    capsys.readouterr()
    assert main(list(arguments)) == 0
    return " ".join(capsys.readouterr().out.split())


def test_keys_in_the_environment(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["optimize", "model_of_keys.py:make", "-o", "m.whet", "--sign", "ours", "--encrypt", "secret"])
    monkeypatch.setenv("WHET_TRUST", "theirs.pub")
    monkeypatch.setenv("WHET_BUNDLE_KEY", "secret")
    assert "which is not trusted" in refusal(capsys, "run", "m.whet")
    monkeypatch.setenv("WHET_TRUST", "theirs.pub:ours.pub")
    output_of(capsys, "run", "m.whet")


def test_sign_and_verify(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = whet.optimize(torch.nn.Linear(8, 4).eval(), "x86", example_inputs=(torch.randn(1, 8),))
    target.save("m.whet")
    assert output_of(capsys, "verify", "m.whet")["signed_by"] is None
    signed = output_of(capsys, "sign", "m.whet", "--with", "ours", "-o", "signed.whet")
    found = output_of(capsys, "verify", "signed.whet", "--trust", "ours.pub")
    assert found["signed_by"] == signed["signed_by"] and found["trusted"]
    assert "is not signed" in refusal(capsys, "verify", "m.whet", "--trust", "ours.pub")
    assert "signed by" in shown_text(capsys, "sign", "m.whet", "--with", "theirs")
    assert "which is not trusted" in refusal(capsys, "verify", "m.whet", "--trust", "ours.pub")
    data = bytearray(Path("signed.whet").read_bytes())
    data[1000] ^= 1
    Path("signed.whet").write_bytes(data)
    assert "sha256" in refusal(capsys, "verify", "signed.whet")
    assert "sha256" in refusal(capsys, "sign", "signed.whet", "--with", "ours")


def test_fat_bundles(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["optimize", "model_of_keys.py:make", "-t", "x86", "-t", "x86-64-v2", "-o", "fat.whet"]
    assert main([*command, "--sign", "ours", "--encrypt", "secret"]) == 0
    found = output_of(capsys, "verify", "fat.whet", "--trust", "ours.pub", "--key", "secret")
    assert len(found["targets"]) == 2 and found["trusted"] and found["decrypted"]
    output_of(capsys, "run", "fat.whet", "--trust", "ours.pub", "--key", "secret")


def test_tuned_bundles(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tune = ("tune", "model_of_keys.py:make", "--trials", "1", "--database", "records", "-o", "tuned.whet")
    done = output_of(capsys, *tune, "--sign", "ours", "--encrypt", "secret")
    assert done["bundle"] == "tuned.whet"
    found = output_of(capsys, "verify", "tuned.whet", "--trust", "ours.pub", "--key", "secret")
    assert found["trusted"] and found["decrypted"]
    assert "is encrypted with the key" in refusal(capsys, "run", "tuned.whet", "--trust", "ours.pub")
    output_of(capsys, "run", "tuned.whet", "--trust", "ours.pub", "--key", "secret")


def test_mistakes_of_tuning_are_found_before_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model is not even made: there is none."""
    assert "is not an Ed25519 private key" in refusal(capsys, "tune", "none:none", "-o", "m", "--sign", "ours.pub")
    assert "is no key for encryption" in refusal(capsys, "tune", "none:none", "-o", "m", "--encrypt", "ours")
    for option, key in (("--sign", "ours"), ("--encrypt", "secret")):
        assert "give --out" in refusal(capsys, "tune", "none:none", option, key)


def test_mistakes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "is there already" in refusal(capsys, "keygen", "ours")
    assert stat.S_IMODE(Path("secret").stat().st_mode) == stat.S_IMODE(Path("ours").stat().st_mode) == 0o600
    # before the model is made
    assert "is not an Ed25519 private key" in refusal(capsys, "optimize", "none:none", "-o", "m", "--sign", "ours.pub")
    assert "is no key for encryption" in refusal(capsys, "optimize", "none:none", "-o", "m", "--encrypt", "ours")
    main(["optimize", "model_of_keys.py:make", "-o", "m.whet", "--encrypt", "secret"])
    there = ("--device", "rpc://127.0.0.1:1")
    assert "is not sent over the network" in refusal(capsys, "run", "m.whet", "--key", "secret", *there)
    assert "is not signed" in refusal(capsys, "run", "m.whet", "--trust", "ours.pub", *there)


def test_a_board_gets_no_encrypted_bundle(folder: Path) -> None:
    compiled = whet.optimize(torch.nn.Linear(8, 4).eval(), "x86", example_inputs=(torch.randn(1, 8),))
    compiled.save("m.whet", encrypt="secret")
    with pytest.raises(whet.errors.DecryptionError, match="on the device that holds its key"):
        whet.Device("rpc://127.0.0.1:1", key="x").load("m.whet")


def test_the_commands_of_the_documentation(folder: Path, capsys: pytest.CaptureFixture[str], repository: Path) -> None:
    page = (repository / "docs" / "devices.md").read_text(encoding="utf-8")
    block = page[page.index("whet keygen release") :].split("```")[0]
    (folder / "model.py").write_text(MODEL)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert len(lines) == 6
    for program, *arguments in lines:
        assert program == "whet"
        assert main(arguments) == 0, capsys.readouterr().err
