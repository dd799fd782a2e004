"""Cases as ONNX models, for the engines that read those."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from benchmarks.models.case import ModelCase

MODULES = ("onnx", "onnxscript")
"""What PyTorch's exporter needs."""


def export_onnx(case: ModelCase, path: Path) -> None:
    """Write the model with static shapes. Raises RuntimeError where the exporter gives nothing."""
    import torch

    program = torch.onnx.export(
        case.build(), case.example_inputs(), kwargs=dict(case.example_kwargs()), dynamo=True, verbose=False
    )
    if program is None:
        raise RuntimeError(f"torch.onnx.export gave no model of {case.name}")
    program.save(path)
