"""What every backend offers, and the compiled module that it hands back."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from whet.backends.static_program import StaticProgram
from whet.backends.tuning import Tuning, TuningReport
from whet.errors import BackendError
from whet.ir.graph import Graph
from whet.ir.target import Target
from whet.passes.base import Progress, silent
from whet.passes.report import PassReport
from whet.passes.report import Report as PassesReport
from whet.remote import Device, RemoteModule
from whet.runtime.keys import KeySource
from whet.runtime.manifest import Manifest
from whet.runtime.session import LoadedModule, Program
from whet.runtime.storage_report import StorageReport, storage_of
from whet.runtime.writing import write_bundle


class Backend(Protocol):
    """Turns a graph into something that runs. Third parties publish theirs by entry point group "whet.backends"."""

    name: str

    def compile(
        self, graph: Graph, target: Target, progress: Progress = silent, tuning: Tuning | Literal[False] | None = None
    ) -> CompiledModule:
        """Compile a verified graph. Raises BackendError that names the operation, its source line and the target.

        `tuning` is None where the user asked for none, and False where records of earlier ones must not be used
        either; a backend that cannot tune says so (TuningError).
        """
        ...


@dataclass(frozen=True)
class KernelInfo:
    """One kernel of the compiled code: what it computes, where that stands in the model, how it was scheduled."""

    name: str
    operations: tuple[str, ...]
    location: str
    schedule: str


@dataclass(frozen=True)
class Report:
    """What was done to the model, pass by pass, and what came out."""

    target: str
    backend: str
    operations: int
    kernels: tuple[KernelInfo, ...]
    weight_bytes: int
    seconds: dict[str, float] = field(default_factory=dict)
    passes: tuple[PassReport, ...] = ()
    tuning: TuningReport | None = None

    def __str__(self) -> str:
        lines = [
            f"target {self.target}, backend {self.backend}: {self.operations} operations in "
            f"{len(self.kernels)} kernels, {self.weight_bytes / 1e6:.2f} MB of weights"
        ]
        lines += [f"  {step:<24} {seconds:7.2f} s" for step, seconds in self.seconds.items()]
        lines += [f"  {line}" for line in str(PassesReport(self.passes)).splitlines() if self.passes]
        lines += [] if self.tuning is None else str(self.tuning).splitlines()
        return "\n".join(lines)


class CompiledModule(LoadedModule):
    """A model compiled in this process: called like the model, saved as a bundle.

    `graph` is the IR as it was compiled, `weights` the packed tensors that the code takes, by key. See
    `whet.runtime.session.LoadedModule` for calls, sessions and state.
    """

    def __init__(
        self,
        start: Callable[[], Program],
        manifest: Manifest,
        graph: Graph,
        report: Report,
        export_library: Callable[[Path], None] | None,
        weights: dict[str, Any],
        export_c: Callable[[str | os.PathLike[str]], StaticProgram] | None = None,
        export_objects: Callable[[Path], tuple[str, ...]] | None = None,
    ) -> None:
        super().__init__(manifest, start)
        self.graph = graph
        self._report = report
        self._export_library = export_library
        self._export_c = export_c
        self._export_objects = export_objects
        self.weights = weights

    def report(self) -> Report:
        """What was done, in numbers; prints as text."""
        return self._report

    def storage(self) -> StorageReport:
        """What each weight, and all of them, take in memory and in a bundle; prints as a table."""
        return storage_of(self.weights)

    def with_passes(self, passes: Sequence[PassReport], seconds: dict[str, float]) -> None:
        """Add what happened before the backend to the report."""
        merged = {**seconds, **self._report.seconds}
        self._report = dataclasses.replace(self._report, seconds=merged, passes=tuple(passes))

    def on(self, device: Device, threads: int | None = None) -> RemoteModule:
        """This module on a board over the network: calls go there, `benchmark` measures there.

        Raises DeviceError where the board cannot be reached, and what `save` and `whet.load` raise.
        """
        with tempfile.TemporaryDirectory(prefix="whet-") as folder:
            path = Path(folder) / "model.whet"
            self.save(path)
            return device.load(path, threads)

    def benchmark(self, *args: Any, repeat: int = 30, device: Device | None = None, **kwargs: Any) -> float:
        """Median latency in milliseconds, here or on a board: see `Session.benchmark`."""
        if device is not None:
            return self.on(device).benchmark(*args, repeat=repeat, **kwargs)
        return super().benchmark(*args, repeat=repeat, **kwargs)

    def save(
        self, path: str | os.PathLike[str], *, sign: KeySource | None = None, encrypt: KeySource | None = None
    ) -> None:
        """Write the bundle that `whet.load` runs: one file with manifest, code and weights.

        `sign` is an Ed25519 private key (a PEM file, or its contents), `encrypt` a key that the device holds (a file of
        32 bytes, or these): docs/devices.md says what each protects.

        Raises BundleError where the path cannot be written (nothing is left there then), BundleKeyError for what is no
        key, TargetError where no linker for the target is found, BackendError for a backend or target without a
        loadable form.
        """
        if self._export_library is None:
            raise BackendError(f"the {self._report.backend} backend makes no code for {self._report.target} to save")
        with tempfile.TemporaryDirectory(prefix="whet-") as folder:
            library = Path(folder) / "lib.so"
            self._export_library(library)
            write_bundle(path, self.manifest, library, self.weights, sign=sign, encrypt=encrypt)

    def save_object(self, folder: str | os.PathLike[str]) -> tuple[str, ...]:
        """Write object files in place of a bundle, for a system whose code can only be linked there; their names.

        `folder` gets the objects (Mach-O for macOS, ELF for Linux), the weights, the manifest, and LINK.md, which says
        how to link them and to make the bundle (`whet.runtime.bundle_linked`). It is made where it is missing, and
        files of the same names are replaced.

        Raises BundleError where a file cannot be written, TargetError for a target without a runtime or with other
        code than a processor's, BackendError for a backend that makes no code.
        """
        if self._export_objects is None:
            raise BackendError(f"the {self._report.backend} backend makes no code for {self._report.target} to save")
        return self._export_objects(Path(folder))

    def export_c(self, folder: str | os.PathLike[str]) -> StaticProgram:
        """Write the model as a static program, for devices without Python, TVM or an operating system.

        `folder` gets C sources, one object with the kernels, the weights, a Makefile and a CMakeLists.txt; it is made
        where it is missing, and files of the same names are replaced. `model.h` in it explains how to call the model:
        `model_run(inputs, outputs)`, with static memory and one thread. The numbers are those of this module, bit for
        bit.

        Raises BackendError for symbolic dimensions (their names and the way out), for kernels that need the TVM
        runtime, and for a backend that makes no code; TargetError for a target that cannot, OSError where a file cannot
        be written.
        """
        if self._export_c is None:
            raise BackendError(f"the {self._report.backend} backend makes no code for {self._report.target} to export")
        return self._export_c(folder)
