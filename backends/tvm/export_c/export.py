"""Writing a static program: refusing what cannot be one, then the files."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from whet.backends.static_program import StaticProgram
from whet.backends.tvm.calls import Operand, Steps
from whet.backends.tvm.export_c import templates, text
from whet.backends.tvm.export_c.elf import ObjectFile, read_object
from whet.backends.tvm.export_c.layout import Layout, lay_out
from whet.backends.tvm.export_c.memory_plan import ALIGNMENT, align
from whet.backends.tvm.link import compiler_name, static_triple
from whet.errors import BackendError, TargetError
from whet.ir.dimensions import dim_symbols
from whet.ir.graph import Graph, Value
from whet.ir.printer import constant_keys
from whet.ir.target import Target
from whet.runtime.manifest import Manifest
from whet.runtime.safetensors import RawTensor

_OBJECT: Final = "kernels.o"


@dataclass(frozen=True)
class Compiled:
    """What the backend made of a graph: the same kernels go into a bundle."""

    graph: Graph
    target: Target
    steps: Steps
    returns: Sequence[Operand]
    weights: Mapping[str, Any]
    manifest: Manifest
    executable: Any
    workspace: Callable[[], Mapping[str, int]]


def export_c(compiled: Compiled, folder: Path) -> StaticProgram:
    """Write the program into `folder`, which is made where it is missing; files of the same names are replaced.

    Raises TargetError for a target without C programs, BackendError for symbolic dimensions and for kernels that call
    what only the TVM runtime has, OSError where a file cannot be written.
    """
    _require_possible(compiled)
    raw = {key: item if isinstance(item, RawTensor) else RawTensor.of(item) for key, item in compiled.weights.items()}
    keys = constant_keys(compiled.graph)
    layout = lay_out(
        compiled.graph,
        compiled.steps,
        compiled.returns,
        {key: raw[key] for key in compiled.manifest.weights},
        {slot.input: raw[keys[slot.input]] for slot in compiled.graph.state},
        compiled.workspace(),
    )
    folder.mkdir(parents=True, exist_ok=True)
    kernels = _write_kernels(compiled, folder) if layout.calls else ObjectFile(0, frozenset())
    digest = _write_weights(layout, folder / "weights.bin")
    files = _texts(compiled, layout, digest)
    for name, content in files.items():
        (folder / name).write_text(content, encoding="utf-8")
    names = (*files, "weights.bin", *([_OBJECT] if layout.calls else ()))
    return StaticProgram(
        folder,
        names,
        compiled.target.name,
        len(layout.calls),
        layout.arena_bytes,
        layout.live_bytes,
        layout.state_bytes,
        layout.weights_bytes,
        kernels.size,
    )


def _require_possible(compiled: Compiled) -> None:
    target, graph = compiled.target, compiled.graph
    if target.kind != "cpu":
        raise TargetError(f"{target.name}: a static program runs on a CPU; code for {target.kind} needs its driver")
    if target.os != "linux":
        raise TargetError(f"{target.name}: static programs are ELF objects, and {target.os} has others")
    symbols = sorted({name for value in graph.values() for name in _symbols(value)})
    if not symbols:
        return
    lines = "\n".join(
        f"  {name} ({graph.dimensions.get(name, 'any size')}), of "
        f"{', '.join(str(value) for value in graph.inputs if name in _symbols(value)) or 'no input'}"
        for name in symbols
    )
    sizes = ", ".join(f'"{name}": ...' for name in symbols)
    raise BackendError(
        f"a static program has buffers of fixed size, and these dimensions are symbolic:\n{lines}\n"
        f"Give each a size with the pass BindDimensions({{{sizes}}}), or export the model without dynamic_shapes"
    )


def _symbols(value: Value) -> set[str]:
    return {item.name for dim in value.type.shape for item in dim_symbols(dim)}


def _write_kernels(compiled: Compiled, folder: Path) -> ObjectFile:
    path = folder / _OBJECT
    (library,) = compiled.executable.mod.imports
    library.write_to_file(str(path), "o")
    found = read_object(path.read_bytes())
    missing = sorted(name for name in found.needed - templates.PROVIDED if name.removeprefix("__").startswith("TVM"))
    if missing:
        path.unlink()
        raise BackendError(
            f"kernels for {compiled.target.name} call {', '.join(missing)}, which only the TVM runtime has: "
            "this model needs a bundle (save)"
        )
    return found


def _write_weights(layout: Layout, path: Path) -> str:
    """Write the constant data; its sha256."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _, tensor in layout.weights:
            content = tensor.array.tobytes()
            content += bytes(align(len(content)) - len(content))
            file.write(content)
            digest.update(content)
    return digest.hexdigest()


def _texts(compiled: Compiled, layout: Layout, digest: str) -> dict[str, str]:
    target, manifest = compiled.target, compiled.manifest
    names = {
        "target": target.name,
        "compiler": compiler_name(target),
        "zig": static_triple(target),
        "objects": _OBJECT if layout.calls else "",
    }
    data = '.incbin "weights.bin"' if layout.weights_bytes else ".byte 0"
    return {
        "model.h": text.header(manifest, layout),
        "model.c": text.source(manifest, layout),
        "runtime.h": templates.RUNTIME_H,
        "runtime.c": templates.RUNTIME_C,
        "weights.S": templates.WEIGHTS_S.substitute(digest=digest, alignment=ALIGNMENT, data=data),
        "main.c": templates.MAIN_C.substitute(buffers=text.example_buffers(manifest)),
        "Makefile": templates.MAKEFILE.substitute(names),
        "CMakeLists.txt": templates.CMAKE.substitute(names),
    }


def exporter(compiled: Compiled) -> Callable[[str | os.PathLike[str]], StaticProgram]:
    """What a compiled module calls to export itself."""
    return lambda folder: export_c(compiled, Path(folder))
