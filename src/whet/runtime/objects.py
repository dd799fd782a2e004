"""A model as object files, for devices whose linker is only there: what lies in the folder, and a bundle made of it.

kernels.o, program.o    the compiled code, and the program of the virtual machine that calls it
weights.safetensors     the weights
manifest.json           as in a bundle, with checksum and size of the other three
LINK.md                 what to do with them
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from whet.errors import BundleError
from whet.runtime.dtypes import DTYPES, Array
from whet.runtime.host import check_library
from whet.runtime.manifest import Manifest, Member
from whet.runtime.parts import LIBRARY, MANIFEST, WEIGHTS
from whet.runtime.safetensors import RawTensor, chunks, decode_header
from whet.runtime.writing import write_bundle

OBJECTS: Final = ("kernels.o", "program.o")
INSTRUCTIONS: Final = "LINK.md"
# First bytes of a 64-bit little-endian Mach-O file (mach-o/loader.h: MH_MAGIC_64).
_MACH_O: Final = b"\xcf\xfa\xed\xfe"
_HEADER_SIZE: Final = 8

_TEXT: Final = """\
# A model for {name} ({triple}), as object files

Code for {system} is linked on {system}. There, in this folder,

1. link the objects into a shared library:

   ```sh
   {command}
   ```

   What is undefined in them (TVMFFI..., TVMBackend...) comes out of the TVM runtime when the library is loaded.

2. make a bundle of it, with Whet's runtime (`pip install whet`):

   ```sh
   python3 -c 'from whet.runtime import bundle_linked; bundle_linked(".", "{library}", "model.whet")'
   ```

3. run it: `whet.load("model.whet")`. It needs libtvm_runtime of the same version as on any device.
"""


def write_objects(
    folder: Path,
    manifest: Manifest,
    objects: Mapping[str, bytes],
    weights: Mapping[str, Array | RawTensor],
    link: Sequence[str],
) -> tuple[str, ...]:
    """Write the folder, which is made where it is missing; the names of its files.

    `objects` are those of `OBJECTS`, `link` is the command that links them. Raises BundleError where a file cannot be
    written.
    """
    tensors = {key: item if isinstance(item, RawTensor) else RawTensor.of(item) for key, item in weights.items()}
    contents = {**objects, WEIGHTS: b"".join(chunks(tensors))}
    members = {name: Member(hashlib.sha256(data).hexdigest(), len(data)) for name, data in contents.items()}
    contents[MANIFEST] = json.dumps(replace(manifest, members=members).to_json(), indent=1).encode()
    target = manifest.target
    system = {"darwin": "macOS", "linux": "Linux"}.get(target.os, target.os)
    command = " ".join([*link, "-o", LIBRARY, *objects])
    said = _TEXT.format(name=target.name, triple=target.triple, system=system, command=command, library=LIBRARY)
    contents[INSTRUCTIONS] = said.encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in contents.items():
            (folder / name).write_bytes(data)
    except OSError as error:
        raise BundleError(f"cannot write {folder}: {error.strerror or error}") from error
    return tuple(contents)


def bundle_linked(
    folder: str | os.PathLike[str], library: str | os.PathLike[str], path: str | os.PathLike[str]
) -> None:
    """Write the bundle of a folder of objects (`CompiledModule.save_object`) and the library that was linked of them.

    `library` is a path, or the name of a file in the folder. Raises BundleError: a file of the folder is missing or
    damaged, the library is missing or for another machine, the bundle cannot be written.
    """
    place = Path(folder)
    linked = Path(library) if Path(library).is_file() else place / library
    try:
        value = json.loads((place / MANIFEST).read_bytes())
        manifest = Manifest.from_json(value, str(place / MANIFEST))
        data = (place / WEIGHTS).read_bytes()
        code = linked.read_bytes()
    except OSError as error:
        raise BundleError(f"cannot read {error.filename}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{place / MANIFEST} is damaged: it is not JSON ({error}). Save the objects again") from error
    member = manifest.members.get(WEIGHTS)
    if member is None or hashlib.sha256(data).hexdigest() != member.sha256:
        raise BundleError(f"{place / WEIGHTS} is damaged: it has not its checksum (sha256). Save the objects again")
    if manifest.target.os == "darwin" and code[: len(_MACH_O)] != _MACH_O:
        raise BundleError(f"{linked} is not a Mach-O file: link it as {place / INSTRUCTIONS} says")
    check_library(code, manifest.target, str(linked))
    write_bundle(path, manifest, linked, _tensors(data))


def _tensors(data: bytes) -> dict[str, RawTensor]:
    """The tensors of a safetensors file whose checksum is right."""
    begin = _HEADER_SIZE + int.from_bytes(data[:_HEADER_SIZE], "little")
    found = {}
    for entry in decode_header(data[_HEADER_SIZE:begin], len(data) - begin):
        flat = np.frombuffer(data[begin + entry.begin : begin + entry.end], np.uint8).copy()
        found[entry.key] = RawTensor(entry.dtype, flat.view(DTYPES[entry.dtype].storage).reshape(entry.shape))
    return found
