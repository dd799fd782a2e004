"""Every engine by the name that command lines and tables give it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from benchmarks.engines.base import Engine
from benchmarks.engines.executorch_engines import ExecuTorch, ExecuTorchInt8
from benchmarks.engines.onnxruntime_engines import OnnxRuntime, OnnxRuntimeInt8
from benchmarks.engines.openvino_engines import OpenVino, OpenVinoBf16, OpenVinoInt8
from benchmarks.engines.torch_engines import Eager, TorchCompile
from benchmarks.engines.whet_engines import Whet, WhetBf16, WhetInt8, WhetInt8Tuned, WhetTuned

ENGINES: Mapping[str, type[Engine]] = MappingProxyType(
    {
        "eager": Eager,
        "torch.compile": TorchCompile,
        "ort": OnnxRuntime,
        "openvino": OpenVino,
        "executorch": ExecuTorch,
        "whet": Whet,
        "whet-tuned": WhetTuned,
        "openvino-bf16": OpenVinoBf16,
        "whet-bf16": WhetBf16,
        "ort-int8": OnnxRuntimeInt8,
        "openvino-int8": OpenVinoInt8,
        "executorch-int8": ExecuTorchInt8,
        "whet-int8": WhetInt8,
        "whet-int8-tuned": WhetInt8Tuned,
    }
)
