"""Compressed graphs between runs: committed where they are small, else in the cache."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import data, packed
from benchmarks.baselines import WEIGHTS
from whet.ir import Graph
from whet.ir.serialization import load_graph, save_graph

_MEMBERS = ("graph.whetir", "tensors.safetensors")


def place(name: str, committed: bool) -> Path:
    """Where the compressed graph of a case lies."""
    folder = WEIGHTS if committed else data.cache_folder() / "compressed"
    return folder / f"{name}.graph"


def saved_or_made(path: Path, make: Callable[[], Graph], anew: bool) -> Graph:
    """The graph at `path`, or a new one, which is saved there."""
    if path.exists() and not anew:
        return read(path)
    graph = make()
    write(graph, path)
    return graph


def write(graph: Graph, path: Path) -> None:
    """The saved graph's two files in one compressed archive, the same bytes for the same graph."""
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=plain, mode="w") as archive:
        save_graph(graph, Path(folder) / "graph")
        for member in _MEMBERS:
            content = (Path(folder) / "graph" / member).read_bytes()
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    path.write_bytes(packed.pack(plain.getvalue()))


def read(path: Path) -> Graph:
    """The graph that `write` wrote."""
    plain = io.BytesIO(packed.unpack(path.read_bytes()))
    with tempfile.TemporaryDirectory() as folder, tarfile.open(fileobj=plain) as archive:
        archive.extractall(folder, filter="data")
        return load_graph(folder)
