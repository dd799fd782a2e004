"""Inputs and outputs are memory of the caller and of compiled code: no copies, and nothing that outlives its use."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.runtime.conftest import call_structure, host_target, output_structure
from whet.runtime import LoadedModule, Manifest, Program, TensorSpec, empty, load
from whet.runtime.library import runtime_function, tvm_ffi

SHAPE = (3, 50)


class Spy:
    """Code that returns its input in memory of its own, and remembers where both lay."""

    def __init__(self) -> None:
        self.taken = 0
        self.made = 0

    def __call__(self, x: Any) -> Any:
        result = runtime_function("runtime.TVMTensorAllocWithScope")(x.shape, x.dtype, tvm_ffi().device("cpu", 0), None)
        runtime_function("runtime.TVMTensorCopyFromTo")(x, result)
        self.taken, self.made = x.data_ptr(), result.data_ptr()
        return result


@pytest.fixture
def spy() -> Spy:
    return Spy()


@pytest.fixture
def module(spy: Spy) -> LoadedModule:
    manifest = Manifest(
        target=host_target(),
        inputs=(TensorSpec("x", SHAPE, "f32"),),
        outputs=(TensorSpec("y", SHAPE, "f32"),),
        weights=(),
        input_structure=call_structure("t"),
        output_structure=output_structure("t"),
    )
    return LoadedModule(manifest, lambda: Program(lambda: spy, manifest, {}))


def _numpy() -> Any:
    x = empty(SHAPE)
    x[:] = np.random.rand(*SHAPE)
    return x


def _torch() -> Any:
    return torch.rand(SHAPE)


def _other_dlpack() -> Any:
    return tvm_ffi().from_dlpack(_numpy())


def _address(x: Any) -> int:
    return int(x.ctypes.data if isinstance(x, np.ndarray) else x.data_ptr())


@pytest.mark.parametrize("make", [_numpy, _torch, _other_dlpack])
def test_nothing_is_copied(make: Callable[[], Any], module: LoadedModule, spy: Spy) -> None:
    x = make()
    y = module(x)
    assert spy.taken == _address(x)
    assert _address(y) == spy.made
    assert isinstance(y, torch.Tensor if isinstance(x, torch.Tensor) else np.ndarray)
    np.testing.assert_array_equal(np.asarray(y), np.from_dlpack(x))


def _odd(x: Any) -> Any:
    """The same numbers at an address that is no multiple of 64."""
    shifted = empty((x.size + 1,))[1:].reshape(SHAPE)
    shifted[:] = x
    return shifted


def _transposed(x: Any) -> Any:
    return np.ascontiguousarray(x.T).T


def _read_only(x: Any) -> Any:
    x.flags.writeable = False
    return x


@pytest.mark.parametrize("change", [_odd, _transposed, _read_only, lambda x: torch.from_numpy(_odd(x))])
def test_what_cannot_be_taken_as_it_lies_is_copied(
    change: Callable[[Any], Any], module: LoadedModule, spy: Spy
) -> None:
    x = change(_numpy())
    y = module(x)
    assert spy.taken != _address(x)
    assert spy.taken % 64 == 0
    np.testing.assert_array_equal(np.asarray(y), np.asarray(x))


def test_an_aligned_array_of_any_type() -> None:
    for dtype in ("f4", "i8", "u1", "?", "f2"):
        for shape in ((), (0,), (3, 5, 7)):
            array = empty(shape, dtype)
            assert array.shape == shape and array.dtype == np.dtype(dtype)
            assert array.flags.c_contiguous and array.flags.writeable
            assert array.ctypes.data % 64 == 0 or array.size == 0


def test_inputs_are_let_go_of(module: LoadedModule) -> None:
    """After a call neither the module nor the execution thread holds on to them."""
    x = _numpy()
    before = sys.getrefcount(x)
    for _ in range(3):
        module(x)
    gc.collect()
    assert sys.getrefcount(x) == before


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_outputs_outlive_the_module(kind: str, affine_bundle: Path) -> None:
    """Memory of an output is given to a later one only when the caller has let go of it."""
    module: LoadedModule | None = load(affine_bundle)
    assert module is not None
    given: Callable[[Any], Any] = torch.from_numpy if kind == "torch" else lambda array: array
    mask = given(np.ones((64, 8), bool))
    kept = [module(given(np.full((64, 8), value, "f4")), mask=mask)["y"] for value in range(8)]
    expected = [np.asarray(item).copy() for item in kept]
    assert len({_address(item) for item in kept}) == 8
    for value in range(20):
        other = module(given(np.full((64, 8), value + 0.5, "f4")), mask=mask)["y"]
        assert _address(other) not in {_address(item) for item in kept}
        del other
    del module
    gc.collect()
    for item, wanted in zip(kept, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(item), wanted)
