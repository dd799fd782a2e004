"""Whet on an NVIDIA GPU, beside PyTorch eager and torch.compile.

    python -m benchmarks.cuda [--json FILE] [--log FILE]

For MobileNetV2, ResNet-50 and MiniLM's architecture (seeded random weights) in f16, and for the two classifiers in int8
too, it compiles for the GPU that is there, compares the results, and takes the median time of a call with inputs and
results in host memory, which is what all three engines are given. It needs a GPU, its driver, nvcc and a PyTorch that
has CUDA; where one of them is missing it names that and ends with status 2, having measured nothing.

A result is right where its relative error against PyTorch on the CPU in f32 is at most twice that of PyTorch's own f16
on the GPU, and 0.002 more; int8 against the interpreter of the quantized graph, at most 0.001.
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks.environment import environment
from benchmarks.models.mobilenet import MobileNetV2
from benchmarks.models.randomize import seeded_build

NO_DEVICE: Final = 2
"""Exit status where nothing could be measured."""
WARM_UP: Final = 10
RUNS: Final = 100
_FACTOR, _SLACK, _INT8_TOLERANCE = 2.0, 2e-3, 1e-3

_log = logging.getLogger("whet.benchmarks.cuda")


@dataclass(frozen=True)
class Case:
    """A model and inputs for it. `build` may raise ImportError, which skips the case by name."""

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    int8: bool


@dataclass
class Result:
    """One row: milliseconds of a call by engine (medians), and relative errors.

    Attributes:
        case, precision: what ran.
        right: whether the results were right; None where the case did not run.
        errors: relative errors by engine.
        milliseconds: of a call by engine.
        kernels: how many kernels each schedule took.
        note: why something is missing.
    """

    case: str
    precision: str
    right: bool | None = None
    errors: dict[str, float] = field(default_factory=dict)
    milliseconds: dict[str, float] = field(default_factory=dict)
    kernels: dict[str, int] = field(default_factory=dict)
    note: str = ""


class _Hidden(nn.Module):
    """A BERT that gives its hidden states as a tensor."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids and mask, int64 (texts, length), to (texts, length, width)."""
        result: Tensor = self.model(ids, mask).last_hidden_state
        return result


def _resnet50() -> nn.Module:
    from benchmarks.models.torchvision_models import import_torchvision

    return import_torchvision().models.resnet50(weights=None)  # type: ignore[no-any-return]


def _minilm() -> nn.Module:
    from benchmarks.models.transformers_models import import_transformers

    transformers = import_transformers()
    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536
    )
    return _Hidden(transformers.BertModel(config, add_pooling_layer=False))


def _picture() -> tuple[Tensor, ...]:
    return (torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)),)


def _texts() -> tuple[Tensor, ...]:
    ids = torch.randint(0, 30000, (8, 128), generator=torch.Generator().manual_seed(0))
    return ids, torch.ones_like(ids)


CASES: Final = (
    Case("mobilenet_v2", MobileNetV2, _picture, True),
    Case("resnet50", _resnet50, _picture, True),
    Case("minilm", _minilm, _texts, False),
)


def missing() -> str | None:
    """What this machine lacks for the benchmark, None where all is there."""
    if shutil.which("nvcc") is None:
        return "nvcc is not on the PATH"
    if not torch.backends.cuda.is_built():
        return f"PyTorch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "no NVIDIA GPU, or no driver for it"
    return None


def target_here() -> str:
    """The target's name of the first GPU."""
    major, minor = torch.cuda.get_device_capability(0)
    return f"cuda:sm_{major}{minor}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--log", type=Path, help="write the log there too")
    parser.add_argument("--only", nargs="*", choices=[case.name for case in CASES], help="these cases only")
    options = parser.parse_args(arguments)
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    handlers += [logging.FileHandler(options.log)] if options.log else []
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=handlers, force=True)
    lacking = missing()
    if lacking is not None:
        _log.error("nothing was measured: %s", lacking)
        return NO_DEVICE
    chosen = [case for case in CASES if not options.only or case.name in options.only]
    results = [result for case in chosen for result in _run(case)]
    if options.json:
        device = {"gpu": torch.cuda.get_device_name(0), "target": target_here(), "cuda": str(torch.version.cuda)}
        record = {"environment": environment() | device, "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(record, indent=2) + "\n")
    return 0 if all(result.right for result in results) else 1


def _run(case: Case) -> list[Result]:
    precisions = ("f16", "int8") if case.int8 else ("f16",)
    try:
        model = seeded_build(case.build).eval().requires_grad_(False)
    except ImportError as error:
        _log.warning("%s is skipped: %s", case.name, error)
        return [Result(case.name, precision, note=f"skipped: {error}") for precision in precisions]
    return [_measured(case, precision, model) for precision in precisions]


def _measured(case: Case, precision: str, model: nn.Module) -> Result:
    result = Result(case.name, precision)
    try:
        _MEASURES[precision](case, model, result)
    except Exception as error:  # one case must not hide the others: it is recorded, and the status says so
        _log.exception("%s %s failed", case.name, precision)
        result.right, result.note = False, f"{type(error).__name__}: {error}"
    _log.info("%s", result)
    return result


def _f16(case: Case, model: nn.Module, result: Result) -> None:
    """Whet, eager and torch.compile in f16, against the CPU in f32."""
    import whet

    inputs = case.inputs()
    expected = model(*inputs)
    half = copy.deepcopy(model).half()
    halves = tuple(_halved(item) for item in inputs)
    compiled = whet.optimize(half, target_here(), example_inputs=halves)
    _count_kernels(compiled, result)
    on_gpu = half.cuda()
    engines: dict[str, Callable[[], Any]] = {
        "whet": lambda: compiled(*halves),
        "eager": _on_gpu(on_gpu, halves),
        "torch.compile": _on_gpu(torch.compile(on_gpu), halves),
    }
    with torch.inference_mode():
        for name, call in engines.items():
            result.errors[name] = _relative_error(_tensor(call()), expected)
            result.milliseconds[name] = _median(call)
    result.right = result.errors["whet"] <= _FACTOR * result.errors["eager"] + _SLACK


def _int8(case: Case, model: nn.Module, result: Result) -> None:
    """Whet in int8, against the interpreter of the same quantized graph."""
    import whet
    from whet.ir.interpreter import Interpreter
    from whet.passes import QuantizeStatic

    inputs = case.inputs()
    compiled = whet.optimize(
        model, target_here(), example_inputs=inputs, passes=[QuantizeStatic()], calibration=[inputs]
    )
    _count_kernels(compiled, result)
    expected = Interpreter(compiled.graph)(*inputs)
    result.errors["whet"] = _relative_error(_tensor(compiled(*inputs)), _tensor(expected))
    result.milliseconds["whet"] = _median(lambda: compiled(*inputs))
    result.right = result.errors["whet"] <= _INT8_TOLERANCE


_MEASURES: Final[dict[str, Callable[[Case, nn.Module, Result], None]]] = {"f16": _f16, "int8": _int8}


def _halved(item: Tensor) -> Tensor:
    return item.half() if item.is_floating_point() else item


def _on_gpu(model: Callable[..., Any], inputs: Sequence[Tensor]) -> Callable[[], Any]:
    def call() -> Any:
        return model(*(item.cuda() for item in inputs)).cpu()

    return call


def _count_kernels(compiled: Any, result: Result) -> None:
    for kernel in compiled.report().kernels:
        result.kernels[kernel.schedule] = result.kernels.get(kernel.schedule, 0) + 1


def _tensor(value: Any) -> Tensor:
    while isinstance(value, (tuple, list)):
        value = value[0]
    return torch.as_tensor(value)


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual - expected‖ / ‖expected‖ in f64 (numerics: T1)."""
    difference = actual.double() - expected.double()
    return float(difference.norm() / expected.double().norm())


def _median(call: Callable[[], Any]) -> float:
    """Milliseconds of a call: the median of many, after some that are not counted."""
    for _ in range(WARM_UP):
        call()
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
