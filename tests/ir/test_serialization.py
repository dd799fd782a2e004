"""Graphs on disk: shared tensors, replacing, failing whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from whet.errors import BundleError, ParseError
from whet.ir import Builder, DType, Graph, StateSlot, TensorType, Value, print_graph, serialization, verify
from whet.ir.serialization import TENSORS, TEXT, load_graph, save_graph


def make() -> Graph:
    graph = Graph()
    builder = Builder(graph)
    base = torch.randn(6, 4)
    for index, tensor in enumerate((base, base, base[:3], base.T, base.half(), base.to(torch.bfloat16), base > 0)):
        builder.constant(tensor, key=f"w{index}")
    builder.constant(torch.tensor([-8, 7], dtype=torch.int8), key="i4", dtype=DType.I4)
    builder.constant(torch.zeros(0, 2))
    builder.constant(torch.zeros(0, 2))
    value = Value("state", TensorType((6, 4), DType.F32))
    graph.state.append(StateSlot(value, value, base))
    graph.outputs = graph.constants
    return graph


def test_tensors_come_back_and_shared_ones_are_stored_once(tmp_path: Path) -> None:
    graph = make()
    save_graph(graph, tmp_path / "deep" / "graph")
    twin = load_graph(tmp_path / "deep" / "graph")
    verify(twin)
    assert print_graph(twin) == print_graph(graph)
    first, second, *_ = (value.constant for value in twin.constants)
    assert first is second
    assert first is twin.state[0].initial
    for left, right in zip(graph.constants, twin.constants, strict=True):
        assert left.constant is not None and right.constant is not None
        assert torch.equal(left.constant, right.constant)
    numbers = 6 * 4 * (4 + 4 + 2 + 2 + 1) + 3 * 4 * 4 + 2
    assert (tmp_path / "deep" / "graph" / TENSORS).stat().st_size < numbers + 1500


def test_saving_again_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    save_graph(make(), tmp_path / "graph")
    small = Graph("small")
    save_graph(small, tmp_path / "graph")
    assert load_graph(tmp_path / "graph").name == "small"
    assert [item.name for item in tmp_path.iterdir()] == ["graph"]


def test_nothing_else_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for path in (tmp_path, tmp_path / "notes.txt"):
        with pytest.raises(BundleError, match="is no saved graph"):
            save_graph(Graph(), path)
    with pytest.raises(BundleError, match="cannot save"):
        save_graph(Graph(), tmp_path / "notes.txt" / "graph")


def test_a_full_disk_leaves_the_old_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_graph(Graph("old"), tmp_path / "graph")

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(serialization, "save_file", full)
    with pytest.raises(BundleError, match="No space left"):
        save_graph(make(), tmp_path / "graph")
    assert [item.name for item in tmp_path.iterdir()] == ["graph"]
    assert load_graph(tmp_path / "graph").name == "old"


def test_damage_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "graph"
    with pytest.raises(BundleError, match="cannot load"):
        load_graph(path)
    save_graph(make(), path)
    data = (path / TENSORS).read_bytes()
    (path / TENSORS).write_bytes(data[:-40])
    with pytest.raises(BundleError, match="cannot load"):
        load_graph(path)
    (path / TENSORS).write_bytes(data[:-4] + b"\xff\xff\xff\xff")
    with pytest.raises(ParseError, match="content hash"):
        load_graph(path)
    (path / TENSORS).write_bytes(data)
    (path / TEXT).write_bytes(b"\xff\xfe")
    with pytest.raises(BundleError, match="cannot load"):
        load_graph(path)
