"""The frontend's front door: whatever the caller has, to a verified graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from whet.frontend.capture import capture, functionalize
from whet.frontend.importer import import_program
from whet.ir.graph import Graph
from whet.ir.verifier import verify

Model = torch.nn.Module | ExportedProgram | str | Path


def import_model(
    model: Model,
    example_inputs: Sequence[Any] | None = None,
    example_kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> Graph:
    """The graph of a trained model in evaluation mode.

    Args:
        model: an nn.Module (a torch.fx.GraphModule is one), an ExportedProgram, or the path of a .pt2 file.
        example_inputs: positional inputs (a dict: by keyword), used for their shapes and dtypes; None:
            found on the model if it says.
        example_kwargs: inputs by keyword.
        dynamic_shapes: which dimensions stay symbolic, as in torch.export.

    Raises:
        CaptureError: the model cannot be captured (data-dependent control flow, training mode, NaN weights,
            no inputs known).
        UnsupportedOpError: lists every operator without a converter.
    """
    program = functionalize(capture(model, example_inputs, example_kwargs, dynamic_shapes))
    graph = import_program(program)
    verify(graph)
    return graph
