"""The TVM backend's stages, in order: prepare, form regions and lower, schedule, build, load."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import tvm
from tvm import relax

from whet.backends.base import CompiledModule, KernelInfo, Report
from whet.backends.manifest import make_manifest, state_weights, target_spec, to_raw
from whet.backends.tuning import Tuning, TuningReport
from whet.backends.tvm.argument_checks import without_checks_of_weights
from whet.backends.tvm.build_options import OPTIONS_BY_KIND
from whet.backends.tvm.calls import describe_calls
from whet.backends.tvm.cuda import schedule_cuda
from whet.backends.tvm.emit import EmittedModule, Schedule, emit
from whet.backends.tvm.export_c.export import Compiled, exporter
from whet.backends.tvm.export_c.workspace import LoweredKernels
from whet.backends.tvm.kernels.decisions import DEFAULT
from whet.backends.tvm.link import export_library, export_objects, link_command
from whet.backends.tvm.nvcc import compiling_for
from whet.backends.tvm.pipeline import PIPELINE
from whet.backends.tvm.prepare import prepare
from whet.backends.tvm.regions import form_regions
from whet.backends.tvm.schedule.rules import schedule_cpu
from whet.backends.tvm.targets import tvm_target
from whet.backends.tvm.tuning.database import Database
from whet.backends.tvm.tuning.latency import module_latencies
from whet.backends.tvm.tuning.tuner import tune
from whet.errors import BackendError, BundleError, TargetError, TuningError
from whet.ir.graph import Graph
from whet.ir.target import Target
from whet.passes.base import Progress, silent
from whet.runtime.device_code import accept_device_code
from whet.runtime.host import check_host
from whet.runtime.manifest import Manifest
from whet.runtime.objects import OBJECTS, write_objects
from whet.runtime.session import Program

_SCHEDULES: dict[str, Schedule] = {"cpu": schedule_cpu, "cuda": schedule_cuda}


class TvmBackend:
    """Compiles a graph for a CPU or a CUDA device."""

    name = "tvm"

    def compile(
        self, graph: Graph, target: Target, progress: Progress = silent, tuning: Tuning | Literal[False] | None = None
    ) -> CompiledModule:
        """See `Backend.compile`. Records of earlier tunings for this target are used, unless `tuning` is False.

        Raises TuningError where `tuning` cannot be done on this target.
        """
        clock = _Clock()
        with clock("prepare"):
            prepared = prepare(graph, target)
        database = None if tuning is False else Database((tuning or Tuning()).folder, target)
        tuned = None
        if tuning and database is not None:
            with clock("tune"):
                tuned = _tune(prepared, target, tuning, database, progress)
        with clock("lower"):
            emitted = _emit(prepared, target, progress, database)
        with clock("build"):
            progress("building machine code", 0, 1)
            lowered = LoweredKernels()
            executable = build(emitted.module, target, [lowered])
            progress("building machine code", 1, 1)
        weights = {key: to_raw(tensor) for key, tensor in (emitted.weights | state_weights(prepared)).items()}
        described = describe_calls(emitted.steps, {kernel.name: kernel.schedule for kernel in emitted.kernels})
        manifest = make_manifest(prepared, target, list(emitted.weights), described)
        kernels = tuple(
            KernelInfo(item.name, item.operations, item.location, item.schedule) for item in emitted.kernels
        )
        size = sum(tensor.numel() * tensor.element_size() for tensor in emitted.weights.values())
        report = Report(target.name, self.name, len(prepared.operations), kernels, size, clock.seconds, tuning=tuned)

        def start() -> Program:
            check_host(manifest.target, "this module")
            if target.kind == "cuda":
                accept_device_code()
            return Program(_machine(executable, target), manifest, weights)

        static = Compiled(
            prepared, target, emitted.steps, emitted.returns, weights, manifest, executable, lowered.workspace
        )
        return CompiledModule(
            start,
            manifest,
            prepared,
            report,
            _exporter(executable, target),
            weights,
            exporter(static),
            _object_exporter(executable, target, manifest, weights),
        )

    def latency(self, graph: Graph, target: Target, tuning: Tuning, progress: Progress = silent) -> Mapping[str, float]:
        """Seconds of a call by module path, measured on the device. Raises TuningError."""
        _require_measurable(target, tuning)
        return module_latencies(graph, target, _SCHEDULES[target.kind], tuning, progress)


def _require_measurable(target: Target, tuning: Tuning) -> None:
    """Raise TuningError unless kernels for `target` can be run one by one."""
    if target.kind != "cpu":
        raise TuningError(f"{target.name}: kernels of {target.kind} targets cannot be measured one by one yet")
    if tuning.runner is not None:
        return
    try:
        check_host(target_spec(target), f"a kernel for {target.name}")
    except BundleError as error:
        raise TuningError(f"{error}. To measure on a board: Tuning(runner=whet.Device(...))") from error


def _tune(graph: Graph, target: Target, tuning: Tuning, database: Database, progress: Progress) -> TuningReport:
    _require_measurable(target, tuning)
    return tune(graph, target, _SCHEDULES[target.kind], tuning, database, progress)


def _emit(graph: Graph, target: Target, progress: Progress, database: Database | None) -> EmittedModule:
    total = len(form_regions(graph))
    done = 0

    def on_kernel(name: str) -> None:
        nonlocal done
        done += 1
        progress(f"lowering {name}", done, total)

    decide = (lambda workload: DEFAULT) if database is None else database.decide
    return emit(graph, target, _SCHEDULES[target.kind], on_kernel, decide)


def build(module: tvm.IRModule, target: Target, instruments: Sequence[Any] = ()) -> Any:
    """Machine code and VM program of a Relax module; `instruments` see every pass. Raises BackendError with TVM's
    message.
    """
    described = tvm_target(target)
    options = tvm.transform.PassContext(opt_level=3, config=OPTIONS_BY_KIND[target.kind], instruments=list(instruments))
    try:
        with compiling_for(target), described, options:
            return relax.build(module, target=described, relax_pipeline=_relax_pipeline(), tir_pipeline=PIPELINE)
    except TargetError:
        raise
    except Exception as error:
        raise BackendError(f"TVM could not build code for {target.name}: {error}") from error


def _relax_pipeline() -> tvm.transform.Pass:
    """Relax's own lowering, without legalization: every call is a kernel or a view already."""
    transform = relax.transform
    return tvm.transform.Sequential(
        [
            transform.ToNonDataflow(),
            transform.RemovePurityChecking(),
            transform.CallTIRRewrite(),
            transform.StaticPlanBlockMemory(),
            transform.LowerAllocTensor(),
            transform.KillAfterLastUse(),
            transform.LowerRuntimeBuiltin(),
            transform.ComputePrimValue(),
            transform.VMShapeLower(),
            without_checks_of_weights(),
            transform.AttachGlobalSymbol(),
        ]
    )


def _machine(executable: Any, target: Target) -> Callable[[], Any]:
    """What makes the VM of this process and gives its `main`."""

    def make() -> Any:
        device = tvm.cpu() if target.kind == "cpu" else tvm.cuda()
        return relax.VirtualMachine(executable, device)["main"]

    return make


def _require_runtime(target: Target) -> None:
    if not target.runtime:
        raise TargetError(
            f"{target.name} has no TVM runtime (no wheel of it exists), so a bundle could not run there; use the "
            "static export in its place: compiled.export_c(folder) writes C sources and one object"
        )


def _exporter(executable: Any, target: Target) -> Callable[[Path], None]:
    def export(path: Path) -> None:
        _require_runtime(target)
        export_library(executable, path, target)

    return export


def _object_exporter(
    executable: Any, target: Target, manifest: Manifest, weights: Mapping[str, Any]
) -> Callable[[Path], tuple[str, ...]]:
    def export(folder: Path) -> tuple[str, ...]:
        _require_runtime(target)
        if target.kind != "cpu":
            raise TargetError(f"{target.name}: only code for processors can be saved as objects; save() links others")
        objects = dict(zip(OBJECTS, export_objects(executable), strict=True))
        return write_objects(folder, manifest, objects, weights, link_command(target))

    return export


class _Clock:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Any:
        start = time.perf_counter()
        yield
        self.seconds[stage] = time.perf_counter() - start
