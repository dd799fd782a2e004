"""Boards over the network, stood for by servers of this machine."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import whet
from tests.remote.boards import KEY, Board, board
from whet import Device
from whet.errors import BundleError, DeviceError, InputError, TargetError, TuningError
from whet.ir.target import get_target
from whet.remote.wire import Address, Wire
from whet.runtime.cpu import host_features


class Scaled(torch.nn.Module):
    """Two inputs by name, a nest of outputs, and a dimension that is open."""

    def forward(self, x: torch.Tensor, factor: torch.Tensor) -> dict[str, Any]:
        return {"all": x * factor, "sums": (x.sum(1), x.sum())}


class Count(torch.nn.Module):
    """Keeps a state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.total.add_(x)
        return self.total.clone()


@pytest.fixture(scope="module")
def served() -> Iterator[Board]:
    with board("serve", "--name", "test board") as made:
        yield made


@pytest.fixture(scope="module")
def scaled() -> whet.CompiledModule:
    rows = torch.export.Dim("rows", max=64)
    inputs = (torch.randn(4, 3), torch.randn(3))
    return whet.optimize(Scaled().eval(), "x86", example_inputs=inputs, dynamic_shapes={"x": {0: rows}, "factor": None})


@pytest.fixture
def device(served: Board) -> Iterator[Device]:
    made = served.device()
    yield made
    made.close()


def test_a_board_says_what_it_is(device: Device) -> None:
    assert device.info.name == "test board"
    assert set(device.info.features) == host_features()
    assert str(device).startswith("test board (rpc://127.0.0.1:")


def test_results_are_those_of_this_machine(device: Device, scaled: whet.CompiledModule) -> None:
    there = scaled.on(device)
    for rows in (2, 7):
        x, factor = torch.randn(rows, 3), torch.randn(3)
        expected, actual = scaled(x, factor=factor), there(x, factor=factor)
        assert isinstance(actual["all"], torch.Tensor)
        assert torch.equal(actual["all"], expected["all"])
        assert torch.equal(actual["sums"][1], expected["sums"][1])
    plain = there(x.numpy(), factor.numpy())
    assert isinstance(plain["all"], np.ndarray)
    np.testing.assert_array_equal(plain["all"], expected["all"].numpy())


def test_wrong_inputs_never_leave(device: Device, scaled: whet.CompiledModule) -> None:
    there = scaled.on(device)
    with pytest.raises(InputError, match="factor"):
        there(torch.randn(2, 3), torch.randn(4))
    with pytest.raises(InputError, match="repeat=0"):
        there.benchmark(torch.randn(2, 3), torch.randn(3), repeat=0)


def test_latency_is_measured_there(device: Device, scaled: whet.CompiledModule) -> None:
    x = (torch.randn(2, 3), torch.randn(3))
    assert 0 < scaled.on(device).benchmark(*x, repeat=3) < 1000
    assert 0 < scaled.benchmark(*x, repeat=3, device=device) < 1000


def test_state_stays_on_the_board(device: Device) -> None:
    there = whet.optimize(Count().eval(), "x86", example_inputs=(torch.ones(1),)).on(device)
    one = np.ones(1, np.float32)
    assert [float(there(one)[0]) for _ in range(3)] == [1, 2, 3]
    there.reset()
    assert float(there(one)[0]) == 1
    device.close()
    with pytest.raises(DeviceError, match="state with it"):
        there(one)
    assert float(there(one)[0]) == 1


def test_bfloat16_arrives_bit_for_bit(device: Device) -> None:
    class Double(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + x

    x = torch.randn(5).to(torch.bfloat16)
    there = whet.optimize(Double().eval(), "x86", example_inputs=(x,)).on(device)
    assert torch.equal(there(x), x + x)


def test_errors_of_the_board_keep_their_kind(device: Device, tmp_path: Path, scaled: whet.CompiledModule) -> None:
    scaled.save(tmp_path / "m.whet")
    data = bytearray((tmp_path / "m.whet").read_bytes())
    data[200] ^= 1
    manifest = whet.load(tmp_path / "m.whet").manifest
    from whet.remote import RemoteModule

    with pytest.raises(BundleError, match="test board"):
        RemoteModule(device, manifest, bytes(data))(torch.randn(2, 3), torch.randn(3))
    with pytest.raises(DeviceError, match="does not know 'dance'"):
        device.ask({"do": "dance"})


def test_code_that_never_ends_is_ended_and_the_board_goes_on(served: Board, scaled: whet.CompiledModule) -> None:
    device = served.device(limit=2.0)
    inputs = (torch.randn(2, 3), torch.randn(3))
    there = scaled.on(device)
    there(*inputs)
    # as long as a benchmark of so many calls would take: hours
    start = time.monotonic()
    with pytest.raises(DeviceError, match="was lost in 'benchmark'"):
        there.benchmark(*inputs, repeat=10**9)
    assert time.monotonic() - start < 20
    assert there(*inputs)["all"].shape == (2, 3)


def test_many_threads_share_a_device(device: Device, scaled: whet.CompiledModule) -> None:
    there = scaled.on(device)
    wrong: list[int] = []

    def call(number: int) -> None:
        x, factor = np.full((2, 3), number, np.float32), np.ones(3, np.float32)
        if not (there(x, factor)["all"] == number).all():
            wrong.append(number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_the_key_is_asked_for(served: Board) -> None:
    with pytest.raises(DeviceError, match="refused the key"):
        _ = Device(served.url, "another key").info
    with pytest.raises(DeviceError, match="needs a key"):
        Device(served.url)


@pytest.mark.parametrize("url", ["localhost:1", "http://localhost", "rpc://", "rpc://host:99999", "rpc://host/path"])
def test_addresses_are_checked(url: str) -> None:
    with pytest.raises(DeviceError):
        Device(url, KEY)
    assert str(Address.parse("rpc://[::1]:7")) == "rpc://[::1]:7"


def test_nobody_there_is_said(served: Board) -> None:
    with board() as gone:
        url = gone.url
    with pytest.raises(DeviceError, match="cannot be reached"):
        _ = Device(url, KEY).info


def test_a_client_that_sends_nonsense_harms_nobody(served: Board, device: Device) -> None:
    nonsense = (b"", b"[]", b"{}", b'{"parts": -1}', b'{"parts": 99999999}', b'{"parts": "x"}', os.urandom(64))
    for message in (*nonsense, b'{"parts": 0, "limit": "x"}'):
        wire = Wire.connect(device.address, KEY.encode())
        wire._connection.send_bytes(message)
        wire.close()
    for head in ({"do": "load"}, {"do": "call", "module": 3}, {"do": "kernel"}, {"do": None}):
        with pytest.raises((DeviceError, TargetError)):
            device.ask(head)
    assert device.info.name == "test board"


def test_a_tracker_knows_its_boards() -> None:
    with board("tracker") as tracker:
        with pytest.raises(DeviceError, match="knows no board"):
            Device.tracked(tracker.url, KEY)
        with (
            board("serve", "--name", "one", "--tracker", tracker.url) as one,
            board("serve", "--name", "two", "--tracker", tracker.url),
        ):
            assert [item.info.name for item in _tracked(tracker, 2)] == ["one", "two"]
            assert [item.info.name for item in Device.tracked(tracker.url, KEY, name="two")] == ["two"]
            one.stop(signal.SIGKILL)
            assert [item.info.name for item in _tracked(tracker, 1)] == ["two"]


def _tracked(tracker: Board, count: int) -> list[Device]:
    until = time.monotonic() + 30
    while True:
        try:
            found = Device.tracked(tracker.url, KEY)
        except DeviceError:
            found = []
        if len(found) == count or time.monotonic() > until:
            return found
        time.sleep(0.1)


def test_boards_that_cannot_run_the_code_are_refused(device: Device) -> None:
    from whet.backends.tvm.tuning.remote import RemoteRunner

    other = dataclasses.replace(get_target("x86"), features=("avx2", "amx-avx512"))
    with pytest.raises(TuningError, match="amx-avx512"):
        RemoteRunner([device]).open(other, 10)
    with pytest.raises(TuningError, match="it is x86_64"):
        RemoteRunner([device]).open(get_target("cortex-a72"), 10)
    with pytest.raises(TuningError, match="no board"):
        RemoteRunner([])
