"""Boards as runners: each candidate is built here, sent to a board on which `whet serve` runs, and checked here."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

from whet.backends.tvm.link import find_linker
from whet.backends.tvm.tuning.results import Wrong, check_results
from whet.backends.tvm.tuning.runner import Jobs
from whet.backends.tvm.tuning.task import Kernel
from whet.errors import DeviceError, TuningError
from whet.ir.target import Target
from whet.remote import Device

MOST_STRIKES: Final = 5
"""A board that loses so many candidates one after the other is no longer trusted."""


class RemoteRunner:
    """Measures on many boards at once, one candidate on each.

    A candidate whose board is lost is reported as that, and costs one trial. A board that cannot be reached again, or
    that loses one candidate after the other, is left alone from then on, and named in the report.

    Args:
        devices: the boards, all of one kind.

    Raises TuningError without any.
    """

    def __init__(self, devices: Sequence[Device]) -> None:
        if not devices:
            raise TuningError("there is no board to measure on")
        self.devices = tuple(devices)
        self._jobs: Jobs | None = None
        self._pool = _Boards(self.devices)
        self._limit = 0.0

    @property
    def parallel(self) -> int:
        """Boards."""
        return len(self.devices)

    @property
    def lost(self) -> Mapping[str, str]:
        """Boards that are no longer used, and why."""
        return dict(self._pool.lost)

    def open(self, target: Target, limit: float) -> Self:
        """Connect to the boards. Raises TuningError where one is no board for `target`, or none can be reached."""
        self._limit = limit
        self._pool = _Boards(self.devices)
        for device in self.devices:
            self._meet(device, target)
        self._pool.require()
        self._jobs = Jobs(target, limit, workers=len(self.devices), threads=1, link=find_linker(target))
        return self

    def _meet(self, device: Device, target: Target) -> None:
        try:
            info = device.info
        except DeviceError as error:
            self._pool.retire(device, str(error))
            return
        missing = sorted(set(target.features) - set(info.features))
        if info.arch != target.arch or missing:
            what = f"it is {info.arch}" if info.arch != target.arch else f"it has no {', '.join(missing)}"
            raise TuningError(f"{device} cannot run code for {target.name}: {what}")

    def measure(self, kernel: Kernel, task: str, reference: bool = False, insist: bool = False) -> dict[str, Any]:
        """See `Runner.measure`."""
        if self._jobs is None:
            raise TuningError("the runner is not open")
        with self._jobs.built(kernel, task) as (answer, folder):
            if "failure" in answer:
                return answer
            library = Path(answer["library"]).read_bytes()
            while True:
                measured = self._on_a_board(kernel, library, folder.parent, reference)
                if "lost" not in measured or not insist:
                    return measured

    def _on_a_board(self, kernel: Kernel, library: bytes, task: Path, reference: bool) -> dict[str, Any]:
        device = self._pool.take()
        try:
            results, seconds = device.run_kernel(library, kernel.arguments, kernel.outputs, kernel.weights, self._limit)
            check_results(task, results, reference)
        except Wrong as error:
            self._pool.give_back(device)
            return {"failure": f"Wrong: {error}"}
        except DeviceError as error:
            return self._blame(device, error)
        except BaseException:
            self._pool.give_back(device)
            raise
        self._pool.give_back(device)
        return {"seconds": seconds}

    def _blame(self, device: Device, error: DeviceError) -> dict[str, Any]:
        """Was it the candidate, or the board? One that answers again goes on."""
        if device.connected:
            # the board itself said what failed
            self._pool.give_back(device)
            return {"failure": str(error)}
        try:
            device.session()
        except DeviceError as gone:
            self._pool.retire(device, str(gone))
        else:
            self._pool.give_back(device, strike=str(error))
        return {"failure": f"board lost: {error}", "lost": str(device)}

    def close(self) -> None:
        """See `Runner.close`."""
        if self._jobs is not None:
            self._jobs.close()
            self._jobs = None
        for device in self.devices:
            device.close()


class _Boards:
    """The boards that are free, taken by one thread at a time."""

    def __init__(self, devices: Sequence[Device]) -> None:
        self._free = list(devices)
        self._alive = len(devices)
        self._strikes = dict.fromkeys(map(id, devices), 0)
        self._changed = threading.Condition()
        self.lost: dict[str, str] = {}

    def take(self) -> Device:
        """A free board, as soon as there is one. Raises TuningError where none is left."""
        with self._changed:
            while not self._free:
                self._require()
                self._changed.wait()
            return self._free.pop(0)

    def give_back(self, device: Device, strike: str = "") -> None:
        """The board is free again; with a strike it has lost what it was given."""
        with self._changed:
            self._strikes[id(device)] = self._strikes[id(device)] + 1 if strike else 0
            if self._strikes[id(device)] < MOST_STRIKES:
                self._free.append(device)
                self._changed.notify()
                return
        self.retire(device, f"lost {MOST_STRIKES} candidates one after the other, the last: {strike}")

    def retire(self, device: Device, why: str) -> None:
        """Use it no more."""
        with self._changed:
            if device in self._free:
                self._free.remove(device)
            self._alive -= 1
            self.lost[str(device)] = why
            self._changed.notify_all()

    def require(self) -> None:
        """Raise TuningError where none is left."""
        with self._changed:
            self._require()

    def _require(self) -> None:
        if self._alive <= 0:
            reasons = "; ".join(f"{name}: {why}" for name, why in self.lost.items())
            raise TuningError(f"no board is left to measure on: {reasons}")
