"""OpenVINO's CPU plugin: float32, bfloat16, and integers by NNCF."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.engines.base import Engine, Inputs, Job, Run
from benchmarks.engines.onnx_export import MODULES, export_onnx

_MODEL = "model.xml"


def latency_hints(threads: int, precision: str) -> dict[str, Any]:
    """How OpenVINO is to compile a model for the latency of single calls."""
    return {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": precision,
    }


class OpenVino(Engine):
    """OpenVINO for latency; the precision is forced, because by default it takes bf16 where the processor has it."""

    modules = ("openvino", *MODULES)
    inference: ClassVar[str] = "f32"

    def prepare(self, job: Job) -> None:
        """Convert and save."""
        import openvino

        openvino.save_model(self.convert(job), job.folder / _MODEL, compress_to_fp16=False)

    def convert(self, job: Job) -> Any:
        """The model in OpenVINO's own graph."""
        import openvino

        with tempfile.TemporaryDirectory(prefix="whet-onnx-") as top:
            exported = Path(top) / "exported.onnx"
            export_onnx(job.case, exported)
            return openvino.convert_model(exported)

    def load(self, job: Job) -> Run:
        """A request that copies neither inputs nor outputs. Raises RuntimeError where it runs in another precision."""
        import openvino

        hints = latency_hints(job.threads, self.inference)
        compiled = openvino.Core().compile_model(job.folder / _MODEL, "CPU", hints)
        taken = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if taken != self.inference:
            raise RuntimeError(f"OpenVINO runs in {taken} here, not in {self.inference}")
        feeds = job.inputs.by_name([item.get_any_name() for item in compiled.inputs])
        request = compiled.create_infer_request()
        return lambda: list(request.infer(feeds, share_inputs=True, share_outputs=True).values())


class OpenVinoBf16(OpenVino):
    """OpenVINO as it runs by default on processors with bf16."""

    precision = "bf16"
    inference = "bf16"


class OpenVinoInt8(OpenVino):
    """OpenVINO on a model that NNCF quantized."""

    precision = "int8"
    modules = ("nncf", *OpenVino.modules)
    note = "NNCF's post-training quantization; the rest forced to f32"

    def convert(self, job: Job) -> Any:
        """Convert, calibrate and quantize."""
        import nncf

        from benchmarks.models.calibration import calibration_inputs

        model = super().convert(job)
        names = [item.get_any_name() for item in model.inputs]
        batches = [
            Inputs(tuple(value.numpy() for value in batch)).by_name(names) for batch in calibration_inputs(job.case)
        ]
        attends = any(operation.get_type_name() == "Softmax" for operation in model.get_ops())
        return nncf.quantize(
            model,
            nncf.Dataset(batches),
            subset_size=len(batches),
            model_type=nncf.ModelType.TRANSFORMER if attends else None,
        )
