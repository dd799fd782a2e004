"""`optimize`: from a trained model to a compiled module."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from whet.backends.base import Backend, CompiledModule
from whet.backends.registry import find_backend
from whet.backends.tuning import Tuning
from whet.frontend import import_model
from whet.ir.graph import Graph
from whet.ir.target import Target, get_target
from whet.passes.base import Context, Evaluate, Latency, Progress
from whet.passes.data import Source
from whet.passes.manager import PassManager
from whet.passes.rewrite import Tracer
from whet.progress import progress_bar
from whet.runtime.keys import KeySource
from whet.runtime.writing import join_bundles


def optimize(
    model: Any,
    target: str | Target = "x86",
    *,
    example_inputs: Sequence[Any] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
    passes: Sequence[Any] = (),
    calibration: Source | None = None,
    train: Source | None = None,
    evaluate: Evaluate | None = None,
    objective: str | None = None,
    seed: int = 0,
    backend: str = "tvm",
    tuning: Tuning | Literal[False] | None = None,
    dump: str | Path | None = None,
    tracer: Tracer | None = None,
    progress: bool | None = None,
) -> CompiledModule:
    """Compress and compile a trained model for one device.

    Args:
        model: an nn.Module in evaluation mode, a torch.fx.GraphModule, an ExportedProgram, a .pt2 path, or a Graph.
        target: a target's name ("x86" is this machine) or a `whet.Target`.
        example_inputs: positional inputs, for their shapes and dtypes; None: taken from the model where it names them.
        example_kwargs: inputs by keyword.
        dynamic_shapes: which dimensions stay symbolic, as in torch.export; `Dim("batch")` is called batch everywhere.
        passes: passes or rewrite patterns, applied in order. None of them: results change by rounding at most.
        calibration: batches (tuples of inputs) for passes that observe activations: a list, a DataLoader, or a
            function without arguments that makes an iterable.
        train: batches (*inputs, labels) for passes that train, likewise.
        evaluate: model -> quality, a number where larger is better, or a dict of them; the model takes and gives
            torch tensors.
        objective: the name of the entry of that dict that counts.
        seed: of every random choice that a pass takes.
        backend: "tvm", "reference" (the interpreter), or the name of an installed one.
        tuning: how long to search for faster kernels on the device; None: the default kernels, or what an earlier
            tuning for this target has recorded in the user's cache; False: the default kernels.
        dump: a folder for the graph's text as imported and after each pass.
        tracer: a `whet.passes.Tracer` that collects why patterns did not match.
        progress: show a progress bar; None: on a terminal.

    Returns:
        The compiled module: call it, `report()` it, `save()` it.

    Raises:
        WhetError: its subclasses name what is wrong and the way out.
    """
    chosen, device = find_backend(backend), get_target(target)
    seconds: dict[str, float] = {}
    with progress_bar(progress) as show:
        show("importing the model", 0, 1)
        start = time.perf_counter()
        graph = (
            model if isinstance(model, Graph) else import_model(model, example_inputs, example_kwargs, dynamic_shapes)
        )
        seconds["import"] = time.perf_counter() - start
        start = time.perf_counter()
        context = Context(
            target=device,
            calibration=calibration,
            train=train,
            evaluate=evaluate,
            objective=objective,
            tracer=tracer,
            progress=show,
            seed=seed,
            latency=_latency(chosen, device, tuning or Tuning(), show),
        )
        result = PassManager(tuple(passes), dump=dump).run(graph, context)
        seconds["passes"] = time.perf_counter() - start
        compiled = chosen.compile(result.graph, device, show, tuning)
    compiled.with_passes(result.report.passes, seconds)
    return compiled


def save_fat(
    path: str | os.PathLike[str],
    modules: Sequence[CompiledModule],
    *,
    sign: KeySource | None = None,
    encrypt: KeySource | None = None,
) -> None:
    """Save the same model, compiled for several processors, as one bundle: `whet.load` takes the best for a device.

    `sign` and `encrypt` are keys as `CompiledModule.save` takes them.

    Raises BundleError where the modules are not of one model, two are for one target, or the path cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="whet-") as folder:
        paths = [Path(folder) / f"{number}.whet" for number in range(len(modules))]
        for module, place in zip(modules, paths, strict=True):
            module.save(place, encrypt=encrypt)
        join_bundles(path, paths, sign=sign, key=encrypt)


def _latency(backend: Backend, device: Target, tuning: Tuning, show: Progress) -> Latency | None:
    """What measures a graph on the device; None for backends that do not."""
    measure = getattr(backend, "latency", None)
    return None if measure is None else lambda graph: measure(graph, device, tuning, show)
