"""Tensors on their way into compiled code and out of it: numpy, torch and other DLPack arrays, and the
device's own.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike

from whet.errors import InputError
from whet.runtime.dtypes import DTYPES, FROM_LONG, Array, ElementType, bfloat16_to_numpy
from whet.runtime.library import runtime_function, tvm_ffi
from whet.runtime.safetensors import ALIGNMENT, RawTensor, aligned_empty

Native = Any  # tvm_ffi.Tensor, which has no type stubs that can be named without importing it

# DLPack's device types, and those whose memory the processor can read.
_DEVICE_TYPES: Final[Mapping[str, int]] = MappingProxyType({"cpu": 1, "cuda": 2})
_HOST_TYPES: Final = frozenset({1, 3})


@dataclass(frozen=True)
class Given:
    """An input as the caller gave it, looked at but not yet copied."""

    value: Any
    dtype: str
    shape: tuple[int, ...]


def empty(shape: Sequence[int], dtype: DTypeLike = np.float32) -> Array:
    """An uninitialized numpy array at an address that compiled code takes as it is; numpy's own lie anywhere."""
    kind = np.dtype(dtype)
    return aligned_empty(kind.itemsize * math.prod(shape)).view(kind).reshape(shape)


def is_torch(value: Any) -> bool:
    """Whether `value` is a torch tensor; torch is never imported for it."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, getattr(torch, "Tensor", ()))


def inspect(value: Any, wanted: ElementType, rank: int, name: str) -> Given:
    """Dtype (Whet's name) and shape of an input. Python numbers are taken where a rank-0 tensor is wanted.

    Raises InputError for anything that is neither a numpy array nor has `__dlpack__`.
    """
    if rank == 0 and isinstance(value, bool | int | float):
        value = _scalar(value, wanted, name)
    if isinstance(value, np.generic):
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        # Without ml_dtypes numpy has no bfloat16: its bits are taken as uint16.
        bits = wanted.name == "bf16" and value.dtype.name == "uint16"
        return Given(value, wanted.name if bits else _name(value.dtype.name), value.shape)
    if not hasattr(value, "__dlpack__"):
        raise InputError(
            f"input {name!r} is a {type(value).__name__}; give a numpy array or a tensor that has __dlpack__"
        )
    if not isinstance(value, tvm_ffi().Tensor):
        # DLPack refuses tensors that take part in autograd.
        detach = getattr(value, "detach", None)
        value = detach() if callable(detach) else value
    shape = tuple(int(size) for size in value.shape)
    return Given(value, _name(str(value.dtype).rpartition(".")[2]), shape)


def _scalar(value: bool | int | float, wanted: ElementType, name: str) -> Array:
    if wanted.name == "bf16":
        bits = np.asarray(value, np.float32).view(np.uint32)
        rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return np.asarray(rounded >> np.uint32(16), np.uint16)
    array = np.asarray(value)
    kinds = {"b": "b", "i": "bi", "u": "bi", "f": "bif"}
    if array.dtype.kind not in kinds[wanted.storage.kind]:
        raise InputError(f"input {name!r} is {value!r}; the model wants {wanted.long}")
    try:
        return np.asarray(value, wanted.storage)
    except OverflowError as error:
        raise InputError(f"input {name!r} is {value!r}, which {wanted.long} cannot hold") from error


def _name(long: str) -> str:
    """Whet's short name where it has one, else the name itself, for the error message."""
    return FROM_LONG[long].name if long in FROM_LONG else long


class TensorDevice:
    """Moves tensors to the device where compiled code wants them, and back. `kind` is "cpu" or "cuda"."""

    def __init__(self, kind: str) -> None:
        self.type = _DEVICE_TYPES[kind]
        self.handle = tvm_ffi().device(kind, 0)

    def put(self, given: Given, element: ElementType, name: str) -> Native:
        """The input as a tensor on this device: zero-copy where it is contiguous, aligned to 64 bytes and
        already there. Raises InputError for a tensor on another device.
        """
        if isinstance(given.value, np.ndarray):
            bits = given.value.view(np.uint16) if element.name == "bf16" else given.value
            return self._to_device(_from_numpy(bits.astype(element.storage, copy=False), element))
        kind = int(given.value.__dlpack_device__()[0])
        if kind != self.type and kind not in _HOST_TYPES:
            raise InputError(f"input {name!r} is on a device that this module does not run on; give it in host memory")
        return self._to_device(self._import(given, element))

    def put_raw(self, tensor: RawTensor) -> Native:
        """A weight on this device."""
        return self._to_device(_from_numpy(tensor.array, DTYPES[tensor.dtype]))

    def copy(self, tensor: Native) -> Native:
        """A tensor of its own memory on this device."""
        result = runtime_function("runtime.TVMTensorAllocWithScope")(
            tvm_ffi().Shape(tensor.shape), tensor.dtype, self.handle, None
        )
        runtime_function("runtime.TVMTensorCopyFromTo")(tensor, result)
        return result

    def synchronize(self) -> None:
        """Wait until the device has done what was asked of it."""
        if self.type not in _HOST_TYPES:
            runtime_function("runtime.Device_StreamSync")(self.handle, 0)

    def get(self, tensor: Native, element: ElementType) -> Array:
        """The tensor as numpy: a view of its memory where that is the host's."""
        array = self.get_raw(tensor, element)
        return bfloat16_to_numpy(array) if element.name == "bf16" else array

    def get_raw(self, tensor: Native, element: ElementType) -> Array:
        """The same, with bfloat16 as bits."""
        if self.type not in _HOST_TYPES:
            tensor = TensorDevice("cpu").copy(tensor)
        if element.name == "bf16":
            tensor = _view(tensor, "uint16")
        array: Array = np.from_dlpack(tensor)
        # Older numpy marks every imported array read-only.
        return array if array.flags.writeable else array.copy()

    def _to_device(self, tensor: Native) -> Native:
        # Numpy and torch give an empty tensor other strides than compiled code, which checks them, expects.
        there = tensor.__dlpack_device__()[0] == self.type and tensor.numel()
        return tensor if there else self.copy(tensor)

    def _import(self, given: Given, element: ElementType) -> Native:
        value = given.value
        tensor = tvm_ffi().from_dlpack(value)
        if not tensor.is_contiguous():
            contiguous = getattr(value, "contiguous", None)
            if not callable(contiguous):
                return _from_numpy(np.from_dlpack(value), element)
            tensor = tvm_ffi().from_dlpack(contiguous())
        return tensor if tensor.data_ptr() % ALIGNMENT == 0 else self.copy(tensor)


def _from_numpy(array: Array, element: ElementType) -> Native:
    """A tensor over the array's memory, or over an aligned copy of it."""
    flags = array.flags
    if not (flags.c_contiguous and flags.writeable and array.ctypes.data % ALIGNMENT == 0):
        copy = empty(array.shape, array.dtype)
        copy[...] = array
        array = copy
    tensor = tvm_ffi().from_dlpack(array)
    return _view(tensor, "bfloat16") if element.name == "bf16" else tensor


def _view(tensor: Native, dtype: str) -> Native:
    """The same memory as another type of the same width."""
    shape = tvm_ffi().Shape(tensor.shape)
    return runtime_function("runtime.TVMTensorCreateView")(tensor, shape, tvm_ffi().dtype(dtype), 0)


def to_torch(tensors: Sequence[Native]) -> list[Any]:
    """The tensors as torch's, over the same memory; only for callers who have imported torch."""
    torch: Any = sys.modules["torch"]
    return [torch.from_dlpack(tensor) for tensor in tensors]
