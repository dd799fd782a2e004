"""A bundle on a board, called from here like a module of this machine."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from whet.errors import DeviceError, InputError
from whet.remote.wire import pack_tensors, unpack_tensors
from whet.runtime.binding import InputBinder
from whet.runtime.dtypes import DTYPES, bfloat16_to_numpy
from whet.runtime.manifest import Manifest
from whet.runtime.safetensors import RawTensor
from whet.runtime.structure import unflatten
from whet.runtime.tensors import Given, is_torch

if TYPE_CHECKING:
    from whet.remote.device import Device


class RemoteModule:
    """Calls go to the board, their results come back; its state stays there.

    The bundle is sent when it is first needed, and again after a connection was lost; a model with state then begins
    anew, and says so.

    Args:
        device: the board.
        manifest: of the bundle.
        bundle: the file.
        threads: cores that the board uses; None: its physical ones.
    """

    def __init__(self, device: Device, manifest: Manifest, bundle: bytes, threads: int | None = None) -> None:
        self.device = device
        self.manifest = manifest
        self._bundle = bundle
        self._wanted_threads = threads
        self._binder = InputBinder(manifest)
        self._lock = threading.Lock()
        self._place: tuple[int, int] | None = None
        self._called = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model there: numpy arrays, or torch tensors when an input was one.

        Raises InputError that names the input which is wrong, DeviceError where the board is lost.
        """
        given = self._binder.bind(args, kwargs)
        answer, parts = self._ask({"do": "call"}, given)
        self._called = True
        leaves = unpack_tensors(answer["tensors"], parts)
        convert = _to_torch if any(is_torch(item.value) for item in given) else _to_numpy
        return unflatten(self.manifest.output_structure, [convert(leaf) for leaf in leaves])

    def benchmark(self, *args: Any, repeat: int = 30, **kwargs: Any) -> float:
        """Median latency in milliseconds on the board, without the network; the state stays as it is.

        Raises InputError for a `repeat` below 1 and for wrong inputs.
        """
        if repeat < 1:
            raise InputError(f"repeat={repeat}: give a number of calls, 1 or more")
        answer, _ = self._ask({"do": "benchmark", "repeat": repeat}, self._binder.bind(args, kwargs))
        return float(answer["milliseconds"])

    def reset(self) -> None:
        """Put the state back to its initial value."""
        self._called = False
        if self._place is not None:
            self._ask({"do": "reset"}, ())

    def _ask(self, head: dict[str, Any], given: Sequence[Given]) -> tuple[dict[str, Any], list[bytes]]:
        heads, parts = pack_tensors([_raw(item) for item in given])
        with self._lock:
            session, number = self._loaded()
            return self.device.ask({**head, "module": number, "tensors": heads}, parts, session)

    def _loaded(self) -> tuple[int, int]:
        """(session, number of this module in it), sent there first where it is not."""
        if self._place is None or self._place[0] != self.device.session():
            if self._place is not None and self._called and self.manifest.state:
                self._called = False
                self._place = None
                raise DeviceError(
                    f"the connection to {self.device} was lost, and the model's state with it: call again to begin "
                    "from its initial value"
                )
            answer, _ = self.device.ask({"do": "load", "threads": self._wanted_threads}, [self._bundle])
            self._place = (self.device.session(), int(answer["module"]))
        return self._place

    def __repr__(self) -> str:
        return f"<whet module for {self.manifest.target.name} on {self.device}>"


def _raw(given: Given) -> RawTensor:
    value = given.value
    element = DTYPES[given.dtype]
    if is_torch(value):
        value = _torch_to_numpy(value.detach(), element.name)
    array = np.asarray(value) if isinstance(value, np.ndarray) else np.from_dlpack(value)
    bits = array.view(np.uint16) if element.name == "bf16" else array
    return RawTensor(element.name, bits.astype(element.storage, copy=False))


def _torch_to_numpy(value: Any, dtype: str) -> Any:
    torch: Any = sys.modules["torch"]
    value = value.cpu().contiguous()
    return value.view(torch.uint16).numpy() if dtype == "bf16" else value.numpy()


def _to_numpy(tensor: RawTensor) -> Any:
    return bfloat16_to_numpy(tensor.array) if tensor.dtype == "bf16" else tensor.array


def _to_torch(tensor: RawTensor) -> Any:
    torch: Any = sys.modules["torch"]
    made = torch.from_numpy(tensor.array)
    return made.view(torch.bfloat16) if tensor.dtype == "bf16" else made
