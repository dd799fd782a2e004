"""Whet's bundles for this machine: float, bfloat16 and integers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from benchmarks.engines.base import Engine, Job, Run

if TYPE_CHECKING:
    from benchmarks.models.case import ModelCase
    from whet.backends.base import CompiledModule

BUNDLE = "model.whet"
TUNING_SECONDS = 1200.0


class Whet(Engine):
    """Whet without any pass; nothing is tuned.

    Attributes:
        tuning_seconds: how long kernels may be searched for; None: not at all, nor are earlier searches used.
    """

    modules = ("whet", "tvm")
    own = True
    tuning_seconds: ClassVar[float | None] = None

    def passes(self) -> Sequence[Any]:
        """What is done to the model before it is compiled."""
        return ()

    def compile(self, case: ModelCase) -> CompiledModule:
        """The case's model, compiled for this machine."""
        import whet
        from benchmarks.models.calibration import calibration_inputs

        passes = self.passes()
        tuning = whet.Tuning(time_limit=self.tuning_seconds) if self.tuning_seconds else False
        return whet.optimize(
            case.build(),
            "x86",
            example_inputs=case.example_inputs(),
            example_kwargs=dict(case.example_kwargs()),
            passes=passes,
            calibration=calibration_inputs(case) if passes else None,
            tuning=tuning,
            progress=False,
        )

    def prepare(self, job: Job) -> None:
        """Compile and save the bundle."""
        self.compile(job.case).save(job.folder / BUNDLE)

    def load(self, job: Job) -> Run:
        """The bundle on the runtime alone."""
        import whet

        module = whet.load(job.folder / BUNDLE, threads=job.threads)
        args, kwargs = job.inputs.args, dict(job.inputs.kwargs)
        return lambda: module(*args, **kwargs)


class WhetInt8(Whet):
    """Whet with static 8-bit integers."""

    precision = "int8"
    note = "static u8/i8; what has no integer kernel runs in f32"

    def passes(self) -> Sequence[Any]:
        """Static quantization as it is by default."""
        from whet.passes import QuantizeStatic

        return (QuantizeStatic(),)


class WhetTuned(Whet):
    """Whet's float kernels, tuned for at most twenty minutes."""

    tuning_seconds = TUNING_SECONDS


class WhetInt8Tuned(WhetInt8):
    """Whet's integer kernels, tuned for at most twenty minutes."""

    tuning_seconds = TUNING_SECONDS


class WhetBf16(Whet):
    """Whet with weights and activations in bfloat16."""

    precision = "bf16"

    def passes(self) -> Sequence[Any]:
        """Every f32 operation on bf16."""
        from whet.passes import ConvertPrecision

        return (ConvertPrecision("bf16"),)
