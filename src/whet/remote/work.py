"""What a board does for one client, in a process of its own: loads bundles, calls them, times kernels."""

from __future__ import annotations

import fcntl
import os
import platform
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from whet._version import __version__
from whet.errors import DeviceError, WhetError
from whet.remote.wire import Wire, pack_tensors, unpack_tensors
from whet.runtime.cpu import host_arch, host_features, host_os, physical_cores
from whet.runtime.executor import default_threads
from whet.runtime.kernel_runs import open_kernel, run_kernel
from whet.runtime.loading import load
from whet.runtime.session import LoadedModule

Answer = tuple[dict[str, Any], list[Any]]
_WARM_UP: Final = 3


class Turn:
    """One process at a time: whoever measures has the machine for itself. Ends with the process that has it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        self._file = self._path.open("w")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        self._file.close()


class Work:
    """The bundles that one client has loaded.

    Args:
        name: of this board.
        folder: for its files; whoever starts this process removes it.
        turn: a file that all clients' processes take turns by.
    """

    def __init__(self, name: str, folder: Path, turn: Path) -> None:
        self.name = name
        self.folder = folder
        self.turn = Turn(turn)
        self.modules: list[LoadedModule] = []
        self.kernels = 0

    def serve(self, wire: Wire) -> None:
        """Answer until the client ends."""
        tasks: Mapping[str, Callable[[dict[str, Any], list[bytes]], Answer]] = {
            "hello": self._hello,
            "load": self._load,
            "call": self._call,
            "reset": self._reset,
            "benchmark": self._benchmark,
            "kernel": self._kernel,
        }
        while True:
            head, parts = wire.receive()
            try:
                task = tasks.get(str(head.get("do")))
                if task is None:
                    raise DeviceError(f"this board does not know {head.get('do')!r}: upgrade whet on it")
                with self.turn, _limited(float(head.get("limit", 0))):
                    answer, results = task(head, parts)
            except WhetError as error:
                answer, results = {"error": type(error).__name__, "message": str(error)}, []
            except Exception as error:  # a wrong message, or compiled code that fails, is the client's to know of
                answer, results = {"error": "DeviceError", "message": f"{type(error).__name__}: {error}"}, []
            wire.send(answer, results)

    def _hello(self, head: dict[str, Any], parts: list[bytes]) -> Answer:
        return {"info": board_info(self.name)}, []

    def _load(self, head: dict[str, Any], parts: list[bytes]) -> Answer:
        path = self.folder / f"{len(self.modules)}.whet"
        path.write_bytes(parts[0])
        self.modules.append(load(path, threads=head.get("threads")))
        path.unlink()
        return {"module": len(self.modules) - 1, "threads": self.modules[-1].threads}, []

    def _call(self, head: dict[str, Any], parts: list[bytes]) -> Answer:
        module = self.modules[head["module"]]
        outputs = module.call_raw(unpack_tensors(head["tensors"], parts))
        heads, results = pack_tensors(outputs)
        return {"tensors": heads}, results

    def _reset(self, head: dict[str, Any], parts: list[bytes]) -> Answer:
        self.modules[head["module"]].reset()
        return {}, []

    def _benchmark(self, head: dict[str, Any], parts: list[bytes]) -> Answer:
        session = self.modules[head["module"]].session()
        inputs = unpack_tensors(head["tensors"], parts)
        times = []
        for _ in range(_WARM_UP + head["repeat"]):
            start = time.perf_counter()
            session.call_raw(inputs)
            times.append(time.perf_counter() - start)
        return {"milliseconds": statistics.median(times[_WARM_UP:]) * 1e3}, []

    def _kernel(self, head: dict[str, Any], parts: list[bytes]) -> Answer:
        self.kernels += 1
        # a name of its own: the loader takes a file of a known name for the library that it has
        library = self.folder / f"kernel{self.kernels}.so"
        library.write_bytes(parts[0])
        arguments = unpack_tensors(head["tensors"], parts[1:])
        outputs = [(str(dtype), tuple(shape)) for dtype, shape in head["outputs"]]
        results, seconds = run_kernel(open_kernel(library), arguments, outputs, head["weights"])
        library.unlink()
        heads, blobs = pack_tensors(results)
        return {"tensors": heads, "seconds": seconds}, blobs


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """End this process after so long (0: never), even inside of compiled code that does not return."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def board_info(name: str) -> dict[str, Any]:
    """What a client is told of this machine."""
    return {
        "name": name,
        "arch": host_arch(),
        "os": host_os(),
        "features": sorted(host_features()),
        "cores": physical_cores(),
        "threads": default_threads(),
        "memory": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": platform.platform(),
        "whet": __version__,
    }
