"""A graph on disk: a folder with its text form and its tensors.

    graph.whetir         the text form (`printer.print_graph`)
    tensors.safetensors  constants and initial states, each storage once

Keys of tensors that share memory (tied weights) are listed in the safetensors metadata, as {"aliases": {key:
key}}.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from whet.errors import BundleError
from whet.ir.graph import Graph
from whet.ir.parser import parse_graph
from whet.ir.printer import graph_tensors, print_graph

TEXT: Final = "graph.whetir"
TENSORS: Final = "tensors.safetensors"


def save_graph(graph: Graph, path: str | os.PathLike[str]) -> None:
    """Write the graph into the folder `path`, which is made, or replaced where it holds a graph already.

    The folder appears whole or not at all. Raises BundleError where it cannot be written, or is something
    else.
    """
    folder = Path(path)
    if folder.exists() and not _is_saved_graph(folder):
        raise BundleError(f"{folder} exists and is no saved graph; choose another path or remove it")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _write(graph, folder)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"cannot save the graph as {folder}: {error}") from error


def load_graph(path: str | os.PathLike[str]) -> Graph:
    """The graph that `save_graph` wrote; tensors that shared memory share it again.

    Raises BundleError where the folder cannot be read, ParseError where text and tensors do not fit each
    other.
    """
    folder = Path(path)
    try:
        text = (folder / TEXT).read_text(encoding="utf-8")
        tensors = _read_tensors(folder / TENSORS)
    except (OSError, SafetensorError, UnicodeDecodeError) as error:
        raise BundleError(f"cannot load a graph from {folder}: {error}") from error
    return parse_graph(text, tensors)


def _is_saved_graph(folder: Path) -> bool:
    """A folder with nothing in it but the two files, so that replacing it loses nothing else."""
    return folder.is_dir() and {item.name for item in folder.iterdir()} <= {TEXT, TENSORS}


def _write(graph: Graph, folder: Path) -> None:
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        fresh, old = scratch / "new", scratch / "old"
        fresh.mkdir()
        (fresh / TEXT).write_text(print_graph(graph), encoding="utf-8")
        stored, aliases = _without_sharing(graph_tensors(graph))
        save_file(stored, fresh / TENSORS, metadata={"aliases": json.dumps(aliases)})
        for name in (TEXT, TENSORS):
            _flush(fresh / name)
        if folder.exists():
            folder.rename(old)
        try:
            fresh.rename(folder)
        except OSError:
            if old.exists():
                old.rename(folder)
            raise
    finally:
        shutil.rmtree(scratch)


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _without_sharing(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors to store, and for each key whose tensor is the same memory as an earlier one, that one's key.

    Safetensors takes contiguous tensors of which no two overlap: other views of shared memory are copied.
    """
    stored: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    storages: set[int] = set()
    for key, tensor in tensors.items():
        identity = (tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        if tensor.numel() and identity in first:
            aliases[key] = first[identity]
            continue
        first[identity] = key
        plain = tensor.detach().cpu().contiguous()
        storage = plain.untyped_storage()
        if storage.data_ptr() in storages or storage.nbytes() != plain.numel() * plain.element_size():
            plain = plain.clone()
        storages.add(plain.untyped_storage().data_ptr())
        stored[key] = plain
    return stored, aliases


def _read_tensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it is no mapping)
        aliases = json.loads((file.metadata() or {}).get("aliases", "{}"))
    for key, source in aliases.items():
        if source not in tensors:
            raise BundleError(f"{path}: {key!r} shares the tensor {source!r}, which is missing")
        tensors[key] = tensors[source]
    return tensors
