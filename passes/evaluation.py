"""A graph as a model that users' code can call, and the quality that their `evaluate` gives it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from whet.errors import PassError
from whet.ir.graph import Graph
from whet.ir.interpreter import Interpreter
from whet.passes.base import Context
from whet.runtime.structure import flatten, unflatten


class GraphModel:
    """Calls a graph as the model that it was imported from is called: torch in, torch out, in its structures.

    Args:
        graph: what to run, in the interpreter.
        overrides: tensors in place of constants, by value name (weights that are being trained).
    """

    def __init__(self, graph: Graph, overrides: Mapping[str, torch.Tensor] | None = None) -> None:
        self.graph = graph
        self.interpreter = Interpreter(graph, overrides)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raises InputError for other inputs than the graph's."""
        structure = self.graph.input_structure
        inputs = args if structure is None else flatten(structure, (args, kwargs))
        outputs = self.interpreter(*inputs)
        if self.graph.output_structure is None:
            return outputs[0] if len(outputs) == 1 else outputs
        return unflatten(self.graph.output_structure, outputs)


def score(context: Context, model: Callable[..., Any]) -> float:
    """The one number, larger is better, that `context.evaluate` gives a model.

    Raises PassError without `evaluate`, for a dict without a named objective, and for a quality that is no number.
    """
    if context.evaluate is None:
        raise PassError("this needs a quality to keep: whet.optimize(..., evaluate=function of a callable model)")
    with torch.no_grad():
        quality = context.evaluate(model)
    if isinstance(quality, Mapping):
        if context.objective is None or context.objective not in quality:
            raise PassError(
                f"evaluate gave {sorted(quality)}; name the one that counts: whet.optimize(..., objective=...), "
                f"which is {context.objective!r}"
            )
        quality = quality[context.objective]
    if not isinstance(quality, int | float | torch.Tensor) or math.isnan(float(quality)):
        raise PassError(f"evaluate gave {quality!r}; it must be a number where larger is better, or a dict of them")
    return float(quality)
