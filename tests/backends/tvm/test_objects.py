"""Object files in place of a bundle: what is in them, and that a bundle comes out of them where they are linked."""

from __future__ import annotations

import json
import os
import re
import shlex
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

import whet
from tests.static_programs import same_bits
from whet.errors import BackendError, BundleError, TargetError
from whet.runtime import bundle_linked, load
from whet.runtime.objects import OBJECTS

X = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
MACH_O, ARM64, OBJECT, SYMBOL_TABLE = 0xFEEDFACF, 0x0100000C, 1, 2


def compiled_for(target: str, **options: str) -> whet.CompiledModule:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    return whet.optimize(model, target, example_inputs=(X,), **options)  # type: ignore[arg-type]


def mach_o_symbols(data: bytes) -> Iterator[tuple[str, bool]]:
    """(name, whether it is defined there) of the external symbols of a Mach-O object for ARM (mach-o/loader.h)."""
    magic, processor, _, kind, commands = struct.unpack_from("<5I", data)
    assert (magic, processor, kind) == (MACH_O, ARM64, OBJECT)
    position = 32
    for _ in range(commands):
        command, size = struct.unpack_from("<2I", data, position)
        if command == SYMBOL_TABLE:
            table, count, strings, _ = struct.unpack_from("<4I", data, position + 8)
            for index in range(count):
                name, flags, section, _, _ = struct.unpack_from("<IBBHQ", data, table + 16 * index)
                if flags & 1:
                    end = data.index(b"\0", strings + name)
                    yield data[strings + name : end].decode(), section != 0
        position += size


@pytest.mark.parametrize("target", ["apple-m1", "apple-m2"])
def test_macos_gets_mach_o_objects(target: str, tmp_path: Path) -> None:
    compiled = compiled_for(target)
    files = compiled.save_object(tmp_path / "objects")
    assert set(files) == {path.name for path in (tmp_path / "objects").iterdir()}
    assert {*OBJECTS, "weights.safetensors", "manifest.json", "LINK.md"} == set(files)
    kernels, program = (dict(mach_o_symbols((tmp_path / "objects" / name).read_bytes())) for name in OBJECTS)
    defined = {name for name, here in kernels.items() if here}
    # What the manifest says that it calls, by the names that macOS gives to functions of C.
    assert {f"___tvm_ffi_{kernel.name}" for kernel in compiled.manifest.kernels} <= defined
    assert any(name.startswith("___tvm_ffi") for name, here in program.items() if here)
    # A function of Whet's runtime or of the C library, nothing of the machine that compiled it.
    undefined = {name for symbols in (kernels, program) for name, here in symbols.items() if not here} - defined
    assert all(re.match(r"_(TVM|__TVM|_?mem|bzero|exp|tanh|log|pow|round|___tvm)", name) for name in undefined), (
        undefined
    )
    said = (tmp_path / "objects" / "LINK.md").read_text()
    assert "clang -arch arm64 -dynamiclib -undefined dynamic_lookup -o lib.so kernels.o program.o" in said
    manifest = json.loads((tmp_path / "objects" / "manifest.json").read_text())
    assert (manifest["target"]["name"], manifest["target"]["os"]) == (target, "darwin")
    with pytest.raises(TargetError, match=r"linked there.*save_object"):
        compiled.save(tmp_path / "m.whet")
    (tmp_path / "elf").write_bytes(b"\x7fELF" * 20)
    with pytest.raises(BundleError, match=r"not a Mach-O file.*LINK\.md"):
        bundle_linked(tmp_path / "objects", tmp_path / "elf", tmp_path / "m.whet")


def test_the_instructions_make_a_bundle(tmp_path: Path) -> None:
    """On this machine's system: both commands, word by word."""
    compiled = compiled_for("x86")
    compiled.save_object(tmp_path)
    commands = re.findall(r"```sh\n +(.*)\n", (tmp_path / "LINK.md").read_text())
    assert len(commands) == 2
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    for command in commands:
        subprocess.run(shlex.split(command), cwd=tmp_path, env={**os.environ, "PATH": path}, check=True)
    assert same_bits(torch.from_numpy(load(tmp_path / "model.whet")(X.numpy())), compiled(X))


def test_what_is_damaged_or_missing_is_named(tmp_path: Path) -> None:
    compiled = compiled_for("x86")
    compiled.save_object(tmp_path)
    with pytest.raises(BundleError, match=r"cannot read .*lib\.so"):
        bundle_linked(tmp_path, "lib.so", tmp_path / "m.whet")
    (tmp_path / "lib.so").write_bytes(b"x" * 100)
    with pytest.raises(BundleError, match="not an ELF file"):
        bundle_linked(tmp_path, "lib.so", tmp_path / "m.whet")
    data = bytearray((tmp_path / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "weights.safetensors").write_bytes(data)
    with pytest.raises(BundleError, match="checksum"):
        bundle_linked(tmp_path, "lib.so", tmp_path / "m.whet")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(BundleError, match="not JSON"):
        bundle_linked(tmp_path, "lib.so", tmp_path / "m.whet")
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot write"):
        compiled.save_object(tmp_path / "file")
    assert not (tmp_path / "m.whet").exists()


def test_what_has_no_objects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="export_c"):
        compiled_for("armv7").save_object(tmp_path / "no")
    with pytest.raises(BackendError, match="reference"):
        compiled_for("x86", backend="reference").save_object(tmp_path / "no")
    assert not (tmp_path / "no").exists()
