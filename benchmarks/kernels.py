"""Speed of single kernels, untuned, beside PyTorch eager: milliseconds, GFLOP/s and their ratio.

The two engines take turns in processes of their own (their thread pools would disturb each other), pinned to the same
cores; the median of the rounds counts. 8-bit kernels are compared with eager's float32 layer.

    python -m benchmarks.kernels --threads 2 --only conv3x3
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

_ROUND_SECONDS = 0.15
_WARM_UP = 10
_ENGINES = ("eager", "whet")


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
    integer: bool = False

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
    Layer("linear 512x512x512", 512, 512, 512),
    Layer("linear 1x2048x1000", 1, 2048, 1000),
)
LAYERS = {
    layer.name: layer
    for layer in (
        *_FLOAT_LAYERS,
        *(Layer(**{**vars(layer), "name": f"{layer.name} int8", "integer": True}) for layer in _FLOAT_LAYERS),
    )
}


def eager(layer: Layer, threads: int) -> Callable[[], object]:
    """The layer in PyTorch, in its default layout, float32."""
    torch.set_num_threads(threads)
    if layer.kernel == 0:
        module: torch.nn.Module = torch.nn.Linear(layer.inputs, layer.outputs, bias=False)
        x = torch.randn(layer.side, layer.inputs)
    else:
        module = torch.nn.Conv2d(
            layer.inputs, layer.outputs, layer.kernel, layer.stride, layer.padding, groups=layer.groups, bias=False
        )
        x = torch.randn(1, layer.inputs, layer.side, layer.side)

    def run() -> object:
        with torch.inference_mode():
            return module(x)

    return run


def whet(layer: Layer, threads: int) -> Callable[[], object]:
    """The layer as this project compiles it, on random data of the right shapes."""
    os.environ["TVM_NUM_THREADS"] = str(threads)
    import numpy as np
    import tvm
    from tvm import te

    from benchmarks.kernel_expressions import expression
    from whet.backends.tvm.pipeline import build_kernel
    from whet.backends.tvm.schedule.rules import schedule_cpu
    from whet.backends.tvm.targets import tvm_target
    from whet.ir.target import get_target

    target = get_target("x86")
    tensors = expression(layer, target)
    module = build_kernel(schedule_cpu(te.create_prim_func(tensors), target), tvm_target(target))
    generator = np.random.default_rng(0)
    arrays = []
    for tensor in tensors:
        shape, dtype = [int(size) for size in tensor.shape], str(tensor.dtype)
        values = generator.standard_normal(shape) if dtype == "float32" else generator.integers(0, 100, shape)
        arrays.append(tvm.runtime.tensor(values.astype(dtype)))
    main = module["main"]
    return lambda: main(*arrays)


def measure(run: Callable[[], object]) -> float:
    """Median seconds of one call."""
    for _ in range(_WARM_UP):
        run()
    times: list[float] = []
    end = time.perf_counter() + _ROUND_SECONDS
    while time.perf_counter() < end or len(times) < _WARM_UP:
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def child(engine: str, names: list[str], threads: int) -> None:
    """Measure the named layers with one engine and print the seconds as JSON."""
    build = {"eager": eager, "whet": whet}[engine]
    print(json.dumps({name: measure(build(LAYERS[name], threads)) for name in names}))


def rounds(names: list[str], threads: int, count: int) -> dict[str, dict[str, float]]:
    """Median seconds by engine and layer; the engines take turns."""
    found: dict[str, dict[str, list[float]]] = {engine: {name: [] for name in names} for engine in _ENGINES}
    for _ in range(count):
        for engine in _ENGINES:
            command = [sys.executable, "-m", "benchmarks.kernels", "--child", engine, "--threads", str(threads)]
            text = subprocess.run([*command, "--layers", *names], check=True, capture_output=True, text=True).stdout
            for name, seconds in json.loads(text.splitlines()[-1]).items():
                found[engine][name].append(seconds)
    return {
        engine: {name: statistics.median(values) for name, values in layers.items()} for engine, layers in found.items()
    }


def table(names: list[str], seconds: dict[str, dict[str, float]]) -> Table:
    """One row a layer."""
    result = Table(title="Kernels without tuning (ratio: time over eager's, below 1 is faster)")
    for heading in ("layer", "whet ms", "GFLOP/s", "eager ms", "GFLOP/s", "ratio"):
        result.add_column(heading, justify="left" if heading == "layer" else "right")
    for name in names:
        ours, theirs = seconds["whet"][name], seconds["eager"][name]
        work = LAYERS[name].operations
        cells: list[Any] = [ours * 1e3, work / ours / 1e9, theirs * 1e3, work / theirs / 1e9, ours / theirs]
        formats = ("{:.3f}", "{:.0f}", "{:.3f}", "{:.0f}", "{:.2f}")
        result.add_row(name, *(text.format(cell) for text, cell in zip(formats, cells, strict=True)))
    return result


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="layers whose name contains this")
    parser.add_argument("--child", choices=_ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--layers", nargs="*", default=[], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments.child, arguments.layers, arguments.threads)
        return
    names = [name for name in LAYERS if arguments.only in name]
    Console(width=110).print(table(names, rounds(names, arguments.threads, arguments.rounds)))


if __name__ == "__main__":
    main()
