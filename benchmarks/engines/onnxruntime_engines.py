"""ONNX Runtime's CPU provider: float, and integers by its own static quantization."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.engines.base import Array, Engine, Inputs, Job, Run
from benchmarks.engines.onnx_export import MODULES, export_onnx

_MODEL = "model.onnx"


class OnnxRuntime(Engine):
    """ONNX Runtime with all of its graph optimizations."""

    modules = ("onnxruntime", *MODULES)

    def prepare(self, job: Job) -> None:
        """Export to ONNX."""
        export_onnx(job.case, job.folder / _MODEL)

    def load(self, job: Job) -> Run:
        """A session of the CPU provider."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = job.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
        session = ort.InferenceSession(job.folder / _MODEL, options, providers=["CPUExecutionProvider"])
        feeds = job.inputs.by_name([item.name for item in session.get_inputs()])
        return lambda: session.run(None, feeds)


class OnnxRuntimeInt8(OnnxRuntime):
    """ONNX Runtime on a model with quantize and dequantize around its layers (QDQ)."""

    precision = "int8"
    note = "static QDQ, u8 activations, i8 weights by channel; the rest in f32"

    def prepare(self, job: Job) -> None:
        """Export, fold what can be folded, calibrate and quantize."""
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        with tempfile.TemporaryDirectory(prefix="whet-onnx-") as top:
            exported, folded = Path(top) / "exported.onnx", Path(top) / "folded.onnx"
            export_onnx(job.case, exported)
            quant_pre_process(exported, folded, skip_symbolic_shape=True)
            quantize_static(
                folded,
                job.folder / _MODEL,
                _reader(job, folded),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
            )


def _reader(job: Job, model: Path) -> Any:
    """Calibration data as ONNX Runtime's quantizer reads it."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader

    from benchmarks.models.calibration import calibration_inputs

    names = [item.name for item in onnx.load(model, load_external_data=False).graph.input]
    batches = calibration_inputs(job.case)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._left: Iterator[dict[str, Array]] = (
                Inputs(tuple(value.numpy() for value in batch)).by_name(names) for batch in batches
            )

        def get_next(self) -> dict[str, Array] | None:
            return next(self._left, None)

    return Reader()
