"""Speed of single kernels, untuned: beside PyTorch eager and OpenVINO, and as a share of what the machine reaches.

The engines take turns in processes of their own (their thread pools would disturb each other), pinned to the same
cores. Engines are compared by the median of the rounds' medians. The share of the peak is that of the shortest call of
all: what else runs on the machine only adds to a time, and peaks (multiply-adds in registers alone, `benchmarks.peaks`)
are the best of their calls too, in the same turns. OpenVINO's time is that of the layer by its own profile, without
bringing the input into its layout and the output back. 8-bit kernels are compared with the peers' float32 layer; those
called vnni are compiled without the matrix unit.

    python -m benchmarks.kernels --threads 2 --only conv3x3
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.engines.openvino_engines import latency_hints
from benchmarks.environment import environment, wide_console
from benchmarks.processes import cores_for, run_child

if TYPE_CHECKING:
    from whet.ir.target import Target

_ROUND_SECONDS = 0.15
_WARM_UP = 10
Call = Callable[[], float]
"""Computes a layer once, and returns the seconds that it took."""
F32, INT8, VNNI = "f32", "int8", "vnni"


@dataclass(frozen=True)
class Layer:
    """One layer: a convolution over `[1, inputs, side, side]`, or where `kernel` is 0 a linear layer of `side` rows."""

    name: str
    side: int
    inputs: int
    outputs: int
    kernel: int = 0
    stride: int = 1
    groups: int = 1
    precision: str = F32

    @property
    def integer(self) -> bool:
        """Whether 8-bit integers are multiplied."""
        return self.precision != F32

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        if self.kernel == 0:
            return 2 * self.side * self.inputs * self.outputs
        area = math.ceil(self.side / self.stride) ** 2
        return 2 * area * self.outputs * (self.inputs // self.groups) * self.kernel**2

    @property
    def padding(self) -> int:
        """Padding that keeps the extent at stride 1."""
        return self.kernel // 2


_FLOAT_LAYERS = (
    Layer("matmul 512", 512, 512, 512),
    Layer("matmul 1024", 1024, 1024, 1024),
    Layer("conv3x3 64 56", 56, 64, 64, 3),
    Layer("conv3x3 128 28", 28, 128, 128, 3),
    Layer("conv3x3 256 14", 14, 256, 256, 3),
    Layer("conv3x3 512 7", 7, 512, 512, 3),
    Layer("conv3x3/2 128 56", 56, 128, 128, 3, 2),
    Layer("stem7x7/2 3-64 224", 224, 3, 64, 7, 2),
    Layer("conv1x1 64-256 56", 56, 64, 256, 1),
    Layer("conv1x1 256-64 56", 56, 256, 64, 1),
    Layer("conv1x1 512-128 28", 28, 512, 128, 1),
    Layer("conv1x1 1024-256 14", 14, 1024, 256, 1),
    Layer("conv1x1 512-2048 7", 7, 512, 2048, 1),
    Layer("conv1x1/2 256-512 56", 56, 256, 512, 1, 2),
    Layer("grouped3x3 128 56", 56, 128, 128, 3, 1, 32),
    Layer("depthwise3x3 32 112", 112, 32, 32, 3, 1, 32),
    Layer("depthwise3x3/2 96 112", 112, 96, 96, 3, 2, 96),
    Layer("depthwise3x3 144 56", 56, 144, 144, 3, 1, 144),
    Layer("depthwise3x3 384 14", 14, 384, 384, 3, 1, 384),
    Layer("depthwise3x3 960 7", 7, 960, 960, 3, 1, 960),
    Layer("linear 128x384x384", 128, 384, 384),
    Layer("linear 128x384x1536", 128, 384, 1536),
    Layer("linear 128x1536x384", 128, 1536, 384),
    Layer("linear 1x2048x1000", 1, 2048, 1000),
)
LAYERS = {
    layer.name: layer
    for layer in (
        *_FLOAT_LAYERS,
        *(
            replace(layer, name=f"{layer.name} {precision}", precision=precision)
            for precision in (INT8, VNNI)
            for layer in _FLOAT_LAYERS
        ),
    )
}


def eager(layer: Layer, threads: int) -> Call:
    """The layer in PyTorch, in its default layout, float32."""
    import torch

    torch.set_num_threads(threads)
    if layer.kernel == 0:
        module: torch.nn.Module = torch.nn.Linear(layer.inputs, layer.outputs, bias=False)
    else:
        module = torch.nn.Conv2d(
            layer.inputs, layer.outputs, layer.kernel, layer.stride, layer.padding, groups=layer.groups, bias=False
        )
    x = torch.randn(_input_shape(layer))

    def run() -> object:
        with torch.inference_mode():
            return module(x)

    return _timed(run)


def _timed(run: Callable[[], object]) -> Call:
    def call() -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    return call


def openvino(layer: Layer, threads: int) -> Call:
    """The layer in OpenVINO, float32."""
    import numpy as np
    import openvino as ov
    from openvino import opset13 as ops

    shape = _input_shape(layer)
    x = ops.parameter(shape, np.float32)
    generator = np.random.default_rng(0)

    def weight(*sizes: int) -> Any:
        return ops.constant(generator.standard_normal(sizes).astype(np.float32))

    kernel, side = (layer.kernel,) * 2, (layer.padding,) * 2
    window = (layer.stride,) * 2, side, side, (1, 1)
    if layer.kernel == 0:
        y = ops.matmul(x, weight(layer.outputs, layer.inputs), False, True)
    elif layer.groups > 1:
        inner, outer = layer.inputs // layer.groups, layer.outputs // layer.groups
        y = ops.group_convolution(x, weight(layer.groups, outer, inner, *kernel), *window)
    else:
        y = ops.convolution(x, weight(layer.outputs, layer.inputs, *kernel), *window)
    hints = latency_hints(threads, "f32") | {"PERF_COUNT": True}
    request = ov.Core().compile_model(ov.Model([y], [x]), "CPU", hints).create_infer_request()
    feed = [generator.standard_normal(shape).astype(np.float32)]

    def call() -> float:
        request.infer(feed, share_inputs=True, share_outputs=True)
        return sum(
            float(node.real_time.total_seconds())
            for node in request.profiling_info
            if node.node_type in _OPENVINO_LAYERS
        )

    return call


_OPENVINO_LAYERS = ("Convolution", "GroupConvolution", "FullyConnected", "MatMul")


def _input_shape(layer: Layer) -> tuple[int, ...]:
    return (layer.side, layer.inputs) if layer.kernel == 0 else (1, layer.inputs, layer.side, layer.side)


def whet(layer: Layer, threads: int) -> Call:
    """The layer as this project compiles it, on random data of the right shapes."""
    import numpy as np
    import tvm
    from tvm import te

    from benchmarks.kernel_expressions import expression
    from whet.backends.tvm.pipeline import build_kernel
    from whet.backends.tvm.schedule.rules import schedule_cpu
    from whet.backends.tvm.targets import tvm_target

    target = _target(layer.precision)
    tensors = expression(layer, target)
    module = build_kernel(schedule_cpu(te.create_prim_func(tensors), target), tvm_target(target))
    generator = np.random.default_rng(0)
    arrays = []
    for tensor in tensors:
        shape, dtype = [int(size) for size in tensor.shape], str(tensor.dtype)
        values = generator.standard_normal(shape) if dtype == "float32" else generator.integers(0, 100, shape)
        arrays.append(tvm.runtime.tensor(values.astype(dtype)))
    main = module["main"]
    return _timed(lambda: main(*arrays))


def _target(precision: str) -> Target:
    """This machine; for vnni without its matrix unit."""
    from whet.ir.target import get_target

    target = get_target("x86")
    if precision != VNNI:
        return target
    return replace(target, features=tuple(name for name in target.features if not name.lstrip("+").startswith("amx")))


def _peaks(threads: int) -> dict[str, float]:
    """Operations a second by precision; 0 where the machine has no instruction for it."""
    from benchmarks.peaks import peak_operations

    return {
        precision: peak_operations(F32 if precision == F32 else INT8, _target(precision), threads)
        for precision in (F32, INT8, VNNI)
    }


def measure(call: Call) -> tuple[float, float]:
    """Median and least seconds of a call."""
    for _ in range(_WARM_UP):
        call()
    times: list[float] = []
    end = time.perf_counter() + _ROUND_SECONDS
    while time.perf_counter() < end or len(times) < _WARM_UP:
        times.append(call())
    return statistics.median(times), min(times)


ENGINES: Mapping[str, Callable[[Layer, int], Call]] = {
    "eager": eager,
    "openvino": openvino,
    "whet": whet,
}
PEAKS = "peaks"


def child(engine: str, names: Sequence[str], threads: int) -> None:
    """Measure the named layers with one engine, or the peaks, and print the figures as JSON."""
    if engine == PEAKS:
        print(json.dumps(_peaks(threads)))
        return
    print(json.dumps({name: measure(ENGINES[engine](LAYERS[name], threads)) for name in names}))


def _layers_of(engine: str, names: Sequence[str]) -> list[str]:
    """Peers are measured in float32 alone."""
    return [name for name in names if engine == "whet" or LAYERS[name].precision == F32]


@dataclass(frozen=True)
class Figures:
    """What the rounds gave.

    Attributes:
        peaks: by precision, operations a second; 0: the machine has no instruction for it.
        medians: by engine and layer, seconds.
        least: the same of the shortest call.
    """

    peaks: Mapping[str, float]
    medians: Mapping[str, Mapping[str, float]]
    least: Mapping[str, Mapping[str, float]]


def rounds(names: Sequence[str], threads: int, count: int) -> Figures:
    """Measure peaks and engines in turn."""
    peaks: list[dict[str, float]] = []
    times: dict[str, dict[str, list[list[float]]]] = {engine: {} for engine in ENGINES}
    turns = [engine for _ in range(count) for engine in (PEAKS, *ENGINES)]
    for engine in track(turns, "measure", console=Console(stderr=True)):
        arguments = ["--child", engine, "--threads", str(threads), "--layers", *_layers_of(engine, names)]
        answer = run_child("benchmarks.kernels", arguments, cores_for(threads))
        if engine == PEAKS:
            peaks.append(answer)
            continue
        for name, pair in answer.items():
            times[engine].setdefault(name, []).append(pair)

    def each(of: Callable[[list[list[float]]], float]) -> dict[str, dict[str, float]]:
        return {engine: {name: of(pairs) for name, pairs in layers.items()} for engine, layers in times.items()}

    return Figures(
        {name: max(turn[name] for turn in peaks) for name in peaks[0]},
        each(lambda pairs: statistics.median(median for median, _ in pairs)),
        each(lambda pairs: min(least for _, least in pairs)),
    )


@dataclass(frozen=True)
class Row:
    """What was measured of a layer.

    Attributes:
        layer: its name.
        precision: what is multiplied.
        milliseconds: by engine, of the median call.
        gigaflops: of the shortest call of Whet's kernel, 10^9 multiplications and additions a second.
        of_peak: these over what the machine reaches; None: it has no such instruction.
    """

    layer: str
    precision: str
    milliseconds: Mapping[str, float]
    gigaflops: float
    of_peak: float | None


def rows(figures: Figures) -> list[Row]:
    """One a layer that Whet was measured on."""
    found = []
    for name, seconds in figures.medians["whet"].items():
        layer = LAYERS[name]
        plain = name.removesuffix(f" {layer.precision}")
        peers = {engine: times[plain] * 1e3 for engine, times in figures.medians.items() if plain in times}
        speed, peak = layer.operations / figures.least["whet"][name], figures.peaks[layer.precision]
        found.append(
            Row(name, layer.precision, peers | {"whet": seconds * 1e3}, speed / 1e9, speed / peak if peak else None)
        )
    return found


def table(found: Sequence[Row], peaks: Mapping[str, float]) -> Table:
    """One line a layer; ratio: the faster peer's time over Whet's, above 1 is faster."""
    reached = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in peaks.items() if value)
    result = Table(title=f"Kernels without tuning; the machine's peaks, GOP/s: {reached}")
    for heading in ("layer", "eager ms", "OpenVINO ms", "Whet ms", "ratio", "GOP/s", "of peak"):
        result.add_column(heading, justify="left" if heading == "layer" else "right")
    for row in found:
        theirs = [row.milliseconds.get(engine) for engine in ("eager", "openvino")]
        known = [value for value in theirs if value is not None]
        ratio = f"{min(known) / row.milliseconds['whet']:.2f}" if known else "-"
        cells = [f"{value:.3f}" if value is not None else "-" for value in (*theirs, row.milliseconds["whet"])]
        share = f"{row.of_peak:.0%}" if row.of_peak is not None else "-"
        result.add_row(row.layer, *cells, ratio, f"{row.gigaflops:.0f}", share)
    return result


def main() -> None:
    """Command line; a child prints JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="layers whose name contains this")
    parser.add_argument("--json", type=Path, help="also write the figures there")
    parser.add_argument("--child", choices=(PEAKS, *ENGINES), help=argparse.SUPPRESS)
    parser.add_argument("--layers", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.layers, options.threads)
        return
    names = [name for name in LAYERS if options.only in name]
    if not names:
        parser.error(f"no layer's name contains {options.only!r}; there are {', '.join(LAYERS)}")
    figures = rounds(names, options.threads, options.rounds)
    found = rows(figures)
    wide_console().print(table(found, figures.peaks))
    if options.json is not None:
        record = {"environment": environment(), "peaks": dict(figures.peaks), "rows": [asdict(row) for row in found]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
