"""The interpreter behind the compiled module's face: slow, exact, and what every other backend is tested against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.utils.dlpack

from whet.backends.base import CompiledModule, Report
from whet.backends.manifest import make_manifest, state_weights, to_raw
from whet.backends.tuning import Tuning
from whet.errors import TuningError
from whet.ir.graph import Graph
from whet.ir.interpreter import Interpreter
from whet.ir.printer import graph_tensors
from whet.ir.target import Target
from whet.passes.base import Progress, silent
from whet.runtime.library import tvm_ffi
from whet.runtime.session import Program


class ReferenceBackend:
    """Runs the graph operation by operation with torch; cannot be saved."""

    name = "reference"

    def compile(
        self, graph: Graph, target: Target, progress: Progress = silent, tuning: Tuning | Literal[False] | None = None
    ) -> CompiledModule:
        """See `Backend.compile`. Raises TuningError: there are no kernels to tune."""
        if tuning:
            raise TuningError("the reference backend has no kernels to tune: leave tuning out, or choose another")
        weights = {key: to_raw(tensor) for key, tensor in state_weights(graph).items()}
        manifest = make_manifest(graph, target, ())
        size = sum(tensor.numel() * tensor.element_size() for tensor in graph_tensors(graph).values())
        report = Report(target.name, self.name, len(graph.operations), (), size)
        return CompiledModule(
            lambda: Program(_machine(graph), manifest, weights), manifest, graph, report, None, weights
        )


def _machine(graph: Graph) -> Callable[[], Callable[..., Any]]:
    def make() -> Callable[..., Any]:
        interpreter = Interpreter(graph)
        count = len(graph.inputs)

        def main(*arguments: Any) -> list[Any]:
            tensors = [torch.utils.dlpack.from_dlpack(argument) for argument in arguments]
            interpreter.state = tensors[count:]
            with torch.no_grad():
                outputs = [*interpreter(*tensors[:count]), *interpreter.state]
            return [tvm_ffi().from_dlpack(output.contiguous()) for output in outputs]

        return main

    return make
