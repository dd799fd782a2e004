"""Compiled code that is ready to be called: the program, its sessions, and the module that users hold."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from whet.errors import InputError
from whet.runtime.binding import InputBinder
from whet.runtime.dtypes import DTYPES, Array
from whet.runtime.executor import shared_executor
from whet.runtime.library import load_runtime
from whet.runtime.manifest import Manifest, TargetSpec, TensorSpec
from whet.runtime.safetensors import RawTensor
from whet.runtime.structure import unflatten
from whet.runtime.tensors import Given, Native, TensorDevice, is_torch, to_torch

Main = Callable[..., Any]

_WARM_UP: Final = 3


class Program:
    """Compiled code with its weights on the device; sessions share it.

    `main_factory()` gives the virtual machine's `main`; it is called once, at the first call, on the thread
    that runs compiled code. `main(*inputs, *state, *weights)` returns (*outputs, *new state) and writes into
    none of its arguments, so that the initial state stays what it was and sessions can share it.
    """

    def __init__(
        self,
        main_factory: Callable[[], Main],
        manifest: Manifest,
        weights: Mapping[str, Array | RawTensor],
        threads: int | None = None,
        *,
        beside: Path | None = None,
    ) -> None:
        """Copy the weights to the device (on a CPU they are used where they lie).

        `beside` is a folder where the TVM runtime may lie. Raises InputError for an impossible number of
        threads, TargetError where the TVM runtime is missing, KeyError for a weight that is missing.
        """
        load_runtime(manifest.target.device, beside)
        shared_executor(threads)
        self.manifest = manifest
        self._factory = main_factory
        self._main: Main | None = None
        self._device = TensorDevice(manifest.target.device)
        raw = {key: item if isinstance(item, RawTensor) else RawTensor.of(item) for key, item in weights.items()}
        self._weights = [self._device.put_raw(raw[key]) for key in manifest.weights]
        self.initial_state: tuple[Native, ...] = tuple(
            self._device.put_raw(raw[item.weight]) for item in manifest.state
        )
        self._fixed = frozenset(_addresses((*self._weights, *self.initial_state)))
        self.binder = InputBinder(manifest)

    @property
    def threads(self) -> int:
        """Threads on which compiled code of this process runs."""
        return shared_executor().threads

    @property
    def device(self) -> TensorDevice:
        """Where inputs and outputs live."""
        return self._device

    def run(self, inputs: Sequence[Native], state: Sequence[Native]) -> tuple[list[Native], tuple[Native, ...]]:
        """One call: (outputs, new state). Calls from several threads take turns."""
        results = shared_executor().run(self._call, inputs, state)
        count = len(self.manifest.outputs)
        if len(results) != count + len(state):
            raise InputError(
                f"the compiled code returned {len(results)} tensors; its manifest says {count} outputs "
                f"and {len(state)} states"
            )
        # Code may return an argument as it is (a reshaped weight, an input kept as state): whoever wrote into
        # that output would change the model.
        taken = set(_addresses(inputs))
        new_state = tuple(self._unshare(tensor, taken) for tensor in results[count:])
        taken |= self._fixed | set(_addresses(state))
        return [self._unshare(tensor, taken) for tensor in results[:count]], new_state

    def _call(self, inputs: Sequence[Native], state: Sequence[Native]) -> list[Native]:
        if self._main is None:
            self._main = self._factory()
        result = self._main(*inputs, *state, *self._weights)
        self._device.synchronize()
        return [result] if hasattr(result, "data_ptr") else list(result)

    def _unshare(self, tensor: Native, taken: set[int]) -> Native:
        """The tensor, or a copy where its memory is taken already; its memory is taken from then on."""
        if tensor.data_ptr() in taken and tensor.numel():
            tensor = self._device.copy(tensor)
        taken.add(tensor.data_ptr())
        return tensor


def _addresses(tensors: Sequence[Native]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors if tensor.numel()]


class Session:
    """Calls of one program that share one state (caches, running statistics)."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._lock = threading.Lock()
        self._state = program.initial_state

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model on inputs of its own structure; the outputs have the structure of the model's.

        Inputs are numpy arrays or anything with `__dlpack__`. Outputs are numpy arrays, or torch tensors when
        an input was one. Raises InputError that names the input which is wrong.
        """
        program = self.program
        given = program.binder.bind(args, kwargs)
        inputs = [
            program.device.put(tensor, DTYPES[item.dtype], item.name)
            for tensor, item in zip(given, program.manifest.inputs, strict=True)
        ]
        outputs = self._run(inputs)
        if any(is_torch(tensor.value) for tensor in given):
            return unflatten(program.manifest.output_structure, to_torch(outputs))
        arrays = [
            program.device.get(tensor, DTYPES[item.dtype])
            for tensor, item in zip(outputs, program.manifest.outputs, strict=True)
        ]
        return unflatten(program.manifest.output_structure, arrays)

    def call_raw(self, inputs: Sequence[RawTensor]) -> list[RawTensor]:
        """The model's tensors in, its tensors out, both flat and as they lie in memory: for who sends them on.

        Raises InputError for a tensor of the wrong type or shape.
        """
        program = self.program
        given = program.binder.check([Given(item.array, item.dtype, item.array.shape) for item in inputs])
        native = [
            program.device.put(tensor, DTYPES[item.dtype], item.name)
            for tensor, item in zip(given, program.manifest.inputs, strict=True)
        ]
        return [
            RawTensor(item.dtype, program.device.get_raw(tensor, DTYPES[item.dtype]))
            for tensor, item in zip(self._run(native), program.manifest.outputs, strict=True)
        ]

    def _run(self, inputs: Sequence[Native]) -> list[Native]:
        if not self._state:
            return self.program.run(inputs, ())[0]
        # The next call's state is this call's result: calls of one session cannot overlap.
        with self._lock:
            outputs, self._state = self.program.run(inputs, self._state)
        return outputs

    def reset(self) -> None:
        """Put the state back to its initial value."""
        with self._lock:
            self._state = self.program.initial_state

    def copy(self) -> Session:
        """Another session that goes on from the present state of this one."""
        other = Session(self.program)
        with self._lock:
            other._state = self._state
        return other

    def benchmark(self, *args: Any, repeat: int = 30, **kwargs: Any) -> float:
        """Median latency in milliseconds of `repeat` calls after three to warm up; the state stays as it is.

        Raises InputError for a `repeat` below 1 and for wrong inputs.
        """
        if repeat < 1:
            raise InputError(f"repeat={repeat}: give a number of calls, 1 or more")
        session = self.copy()
        for _ in range(_WARM_UP):
            session(*args, **kwargs)
        times: list[float] = []
        for _ in range(repeat):
            start = time.perf_counter()
            session(*args, **kwargs)
            times.append(time.perf_counter() - start)
        return statistics.median(times) * 1000.0


class LoadedModule:
    """A compiled model. Calls of the module itself share one session; `session()` makes independent ones.

    `manifest` holds everything that is known of the model.
    """

    def __init__(self, manifest: Manifest, start: Callable[[], Program]) -> None:
        """`start` gives the program; it is called once, when the module is first run.

        So a module for another device can be made, and saved, where its code could not run.
        """
        self.manifest = manifest
        self._start = start
        self._starting = threading.Lock()
        self._own: Session | None = None

    @property
    def _session(self) -> Session:
        if self._own is None:
            with self._starting:
                self._own = self._own or Session(self._start())
        return self._own

    @property
    def _program(self) -> Program:
        return self._session.program

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the model: see `Session.__call__`."""
        return self._session(*args, **kwargs)

    def call_raw(self, inputs: Sequence[RawTensor]) -> list[RawTensor]:
        """Flat tensors in and out: see `Session.call_raw`."""
        return self._session.call_raw(inputs)

    def session(self) -> Session:
        """A session of its own state, which begins at the initial value."""
        return Session(self._program)

    def reset(self) -> None:
        """Put the state of the module's own session back to its initial value."""
        self._session.reset()

    def benchmark(self, *args: Any, repeat: int = 30, **kwargs: Any) -> float:
        """Median latency in milliseconds: see `Session.benchmark`."""
        return self._session.benchmark(*args, repeat=repeat, **kwargs)

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Name, shape and dtype of each input tensor."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Name, shape and dtype of each output tensor."""
        return self.manifest.outputs

    @property
    def target(self) -> TargetSpec:
        """The device that the model was compiled for."""
        return self.manifest.target

    @property
    def threads(self) -> int:
        """Threads on which compiled code of this process runs."""
        return self._program.threads

    def __repr__(self) -> str:
        inputs, outputs = (", ".join(map(str, specs)) for specs in (self.inputs, self.outputs))
        return f"<whet module for {self.target.name}: ({inputs}) -> ({outputs})>"
