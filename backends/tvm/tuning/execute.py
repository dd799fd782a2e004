"""Building one kernel, and where it is for this machine, checking what it computes and timing it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import tvm

from whet.backends.tvm.build_options import PASS_OPTIONS
from whet.backends.tvm.link import linked_by
from whet.backends.tvm.pipeline import build_kernel
from whet.backends.tvm.tuning.jobs import ARGUMENTS, FUNCTION, LIBRARY, SETTINGS, read_arrays
from whet.backends.tvm.tuning.results import check_results
from whet.runtime.kernel_runs import ENTRY, run_kernel


def execute(job: Path) -> dict[str, Any]:
    """{"build_seconds": ...} and the "seconds" of a call, or the "library" for a board.

    Raises whatever building and running raise, and `Wrong`.
    """
    settings = json.loads((job / SETTINGS).read_text())
    start = time.perf_counter()
    built = _build(job, settings)
    answer: dict[str, Any] = {"build_seconds": time.perf_counter() - start}
    if settings["link"]:
        library = job / LIBRARY
        built.export_library(str(library), fcompile=linked_by(settings["link"], settings["target"]["mtriple"]))
        return answer | {"library": str(library)}
    outputs = [(dtype, tuple(shape)) for dtype, shape in settings["outputs"]]
    results, seconds = run_kernel(built[ENTRY], read_arrays(job / ARGUMENTS), outputs, settings["weights"])
    check_results(job.parent, results, settings["reference"])
    return answer | {"seconds": seconds}


def _build(job: Path, settings: dict[str, Any]) -> Any:
    module = tvm.ir.load_json((job / FUNCTION).read_text())
    target = tvm.target.Target(settings["target"])
    with target, tvm.transform.PassContext(opt_level=3, config=PASS_OPTIONS):
        return build_kernel(module, target)
