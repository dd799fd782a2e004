"""Builds and runs one scheduled kernel on this machine: what the kernel tests share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import tvm
from tvm import te

from whet.backends.tvm.pipeline import build_kernel
from whet.backends.tvm.schedule.rules import schedule_cpu
from whet.backends.tvm.targets import tvm_target
from whet.ir.target import Target, get_target

HOST = get_target("x86")


@dataclass(frozen=True)
class Run:
    """What came out of a kernel, the rule that scheduled it and its assembly."""

    output: npt.NDArray[np.generic]
    rule: str
    assembly: str


def build(func: tvm.tirx.PrimFunc, target: Target = HOST) -> tuple[tvm.runtime.Module, str]:
    """The compiled function and the name of the rule that took it."""
    scheduled = schedule_cpu(func, target)
    return build_kernel(scheduled, tvm_target(target)), str(scheduled.attrs["whet.schedule"])


def run(
    tensors: Sequence[te.Tensor],
    arrays: Sequence[torch.Tensor],
    shape: Sequence[int],
    *,
    symbolic: bool = False,
    target: Target = HOST,
) -> Run:
    """Compile `tensors` (inputs, then the output) for this machine, and run it on `arrays`."""
    func = te.create_prim_func(list(tensors), index_dtype_override="int64" if symbolic else None)
    module, rule = build(func, target)
    # Filled with rubbish: an element that no thread wrote would show.
    output = tvm.runtime.tensor(np.full(tuple(shape), 77, dtype=str(tensors[-1].dtype)))
    module["main"](*[tvm.runtime.tensor(array.contiguous().numpy()) for array in arrays], output)
    return Run(output.numpy(), rule, module.inspect_source("asm"))


def error(actual: npt.NDArray[np.generic], expected: torch.Tensor) -> float:
    """Relative error of the whole tensor, ‖actual - expected‖ / ‖expected‖, in float64."""
    reference = expected.double().numpy()
    assert actual.shape == reference.shape
    difference = float(np.linalg.norm(actual.astype(np.float64) - reference))
    return difference / max(float(np.linalg.norm(reference)), 1e-30)


def last(tensor: torch.Tensor) -> torch.Tensor:
    """Channels first to channels last."""
    return tensor.movedim(1, -1).contiguous()
