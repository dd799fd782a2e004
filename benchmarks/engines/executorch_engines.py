"""ExecuTorch with the XNNPACK delegate: float, and integers by its quantizer."""

from __future__ import annotations

from typing import Any

from benchmarks.engines.base import Engine, Job, Run

_MODEL = "model.pte"


class ExecuTorch(Engine):
    """ExecuTorch's program, what XNNPACK takes handed to it."""

    modules = ("executorch", "torch")

    def prepare(self, job: Job) -> None:
        """Export, hand over to XNNPACK, save."""
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower

        program = to_edge_transform_and_lower(self.export(job), partitioner=[XnnpackPartitioner()]).to_executorch()
        (job.folder / _MODEL).write_bytes(program.buffer)

    def export(self, job: Job) -> Any:
        """The exported program that is handed over."""
        return _export(job, job.case.build())

    def load(self, job: Job) -> Run:
        """The program's `forward`."""
        import torch
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
        from executorch.runtime import Runtime

        _unsafe_reset_threadpool(job.threads)
        program = Runtime.get().load_program(job.folder / _MODEL)
        forward = program.load_method("forward")
        if forward is None:
            raise RuntimeError("ExecuTorch's program has no forward")
        values = [torch.from_numpy(value) for value in (*job.inputs.args, *job.inputs.kwargs.values())]
        return lambda: forward.execute(values)


class ExecuTorchInt8(ExecuTorch):
    """ExecuTorch on a model that XNNPACK's quantizer annotated (PyTorch 2 export quantization)."""

    precision = "int8"
    modules = (*ExecuTorch.modules, "torchao")
    note = "static i8 by XNNPACKQuantizer, weights by channel; the rest in f32"

    def export(self, job: Job) -> Any:
        """Export, calibrate and quantize."""
        from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
            XNNPACKQuantizer,
            get_symmetric_quantization_config,
        )
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

        from benchmarks.models.calibration import calibration_inputs

        class Quantizer(XNNPACKQuantizer):
            """XNNPACK's, which first makes f32 tensors of all numbers in the graph, those added to indices too."""

            def transform_for_annotation(self, model: Any) -> Any:
                return model

        quantizer = Quantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
        prepared = prepare_pt2e(super().export(job).module(), quantizer)
        for batch in calibration_inputs(job.case):
            prepared(*batch)
        return _export(job, convert_pt2e(prepared))


def _export(job: Job, model: Any) -> Any:
    import torch

    with torch.no_grad():
        return torch.export.export(model, job.case.example_inputs(), dict(job.case.example_kwargs()), strict=False)
