"""Runs graphs compiled for CUDA without a GPU: the CUDA source is compiled for this machine (see emulated_gpu.h).

What nvcc would be given is what runs here, but for its preamble and the inline assembly, whose instructions the header
has as functions.
"""

from __future__ import annotations

import ctypes
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import tvm
import tvm_ffi
from torch import Tensor

from whet.backends.tvm.build_options import OPTIONS_BY_KIND
from whet.backends.tvm.calls import View
from whet.backends.tvm.cuda import schedule_cuda
from whet.backends.tvm.dtypes import TVM_DTYPES
from whet.backends.tvm.emit import EmittedModule, emit
from whet.backends.tvm.nvcc import CALLBACK
from whet.backends.tvm.pipeline import PIPELINE
from whet.backends.tvm.targets import tvm_target
from whet.ir import Graph
from whet.ir.target import get_target

HEADER = Path(__file__).with_name("emulated_gpu.h")
DIMENSIONS = ("blockIdx.x", "blockIdx.y", "blockIdx.z", "threadIdx.x", "threadIdx.y", "threadIdx.z")

needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="g++ is not on the PATH: the emulated GPU is compiled by it"
)


@dataclass(frozen=True)
class Launch:
    """One call of a kernel by the host's code: buffers by name or numbers, then sizes by dimension."""

    kernel: str
    arguments: tuple[Any, ...]
    sizes: Mapping[str, Any]


@dataclass
class HostFunction:
    """What a lowered function does on the host: buffers it allocates, and kernels it launches."""

    parameters: list[str]
    allocated: dict[str, tuple[int, str]] = field(default_factory=dict)
    launches: list[Launch] = field(default_factory=list)


@contextmanager
def _keeping_source(kept: list[str]) -> Iterator[None]:
    def keep(code: str, _: object) -> str:
        kept.append(code)
        return code

    tvm_ffi.register_global_func(CALLBACK, keep, override=True)
    try:
        yield
    finally:
        tvm_ffi.remove_global_func(CALLBACK)


@tvm.ir.instrument.pass_instrument
class _HostFunctions:
    """Reads the host's code before TVM turns it into its calling convention."""

    def __init__(self) -> None:
        self.found: dict[str, HostFunction] = {}

    def run_before_pass(self, module: Any, info: Any) -> None:
        if info.name != "tirx.MakePackedAPI":
            return
        for variable, function in module.functions.items():
            if "tirx.kernel_launch_params" not in (function.attrs or {}):
                self.found[variable.name_hint] = _host_function(function)


def _host_function(function: Any) -> HostFunction:
    host = HostFunction([parameter.name for parameter in function.params])

    def on_call(call: Any) -> None:
        if getattr(call.op, "name", "") != "tirx.call_ffi_kernel":
            return
        name, *arguments = call.args
        dimensions = [str(item) for item in call.attrs.launch_params]
        cut = len(arguments) - len(dimensions)
        sizes = dict(zip(dimensions, arguments[cut:], strict=True))
        host.launches.append(Launch(name.value, tuple(arguments[:cut]), sizes))

    def on_buffer(statement: Any) -> None:
        buffer = statement.buffer
        host.allocated[buffer.name] = (math.prod(int(size) for size in buffer.shape), str(buffer.dtype))

    tvm_ffi.structural_walk(function.body, ((tvm.ir.Call, on_call), (tvm.tirx.AllocBuffer, on_buffer)))
    return host


def cuda_source(emitted: EmittedModule, architecture: str) -> tuple[str, dict[str, HostFunction]]:
    """The CUDA source of all kernels, and what the host does to run each function."""
    target = get_target(f"cuda:{architecture}")
    functions = {
        variable: function
        for variable, function in emitted.module.functions.items()
        if isinstance(function, tvm.tirx.PrimFunc)
    }
    kept: list[str] = []
    reader = _HostFunctions()
    options = tvm.transform.PassContext(opt_level=3, config=OPTIONS_BY_KIND["cuda"], instruments=[reader])
    with _keeping_source(kept), options:
        tvm.tirx.build(tvm.IRModule(functions), tvm_target(target), pipeline=PIPELINE)
    assert len(kept) == 1
    return kept[0], reader.found


_PREAMBLE_ENDS = "#define ushort unsigned short\n#endif\n"
_ASYNC = re.compile(
    r"__forceinline__ __device__ void (ptx_cp_async_legacy(_pred)?_c[ag]_(\d+)_(\d+)_(\d+))\(.*?\n}\n", re.DOTALL
)
_GROUPS = re.compile(
    r"__forceinline__ __device__ void (tvm_builtin_ptx_cp_async_\w+)\(\) \{\n"
    r" *asm volatile\(\"cp\.async\.(\w+)(?: (\d+))?;.*?\n}\n"
)
_DP4A = re.compile(
    r"static __device__ __forceinline__ int (whet_dp4a_\w+?_(u?int8))\(.*?dp4a\.(\w)32\.(\w)32.*?\n}\n", re.DOTALL
)
_ASSEMBLY = re.compile(
    r"__asm__ __volatile__\(\s*\"([\w.]+)\"\s*\"[^\"]*\"\s*:\s*(.*?)\n\s*:\s*(.*?)\s*\);\n", re.DOTALL
)
_OPERAND = re.compile(r"\"=?[rfl]\"")
_TYPES = {"f16": "half", "s8": "int8_t", "u8": "uint8_t", "f32": "float", "s32": "int"}


def _operands(text: str) -> list[str]:
    return [part.strip().rstrip(",").strip() for part in _OPERAND.split(text)[1:]]


def _as_async(match: re.Match[str]) -> str:
    name, predicated, size, to, source = match.groups()
    there, argument = ("there", ", bool there") if predicated else ("true", "")
    return (
        f"static void {name}(void* to, int to_at, const void* from, int from_at{argument}) {{\n"
        f"  copy_async((char*)to + to_at * {to}, (const char*)from + from_at * {source}, {size}, {there});\n}}\n"
    )


def _as_group(match: re.Match[str]) -> str:
    name, kind, count = match.groups()
    return f"static void {name}() {{ {'commit_async()' if kind == 'commit_group' else f'wait_async({count})'}; }}\n"


def _as_dp4a(match: re.Match[str]) -> str:
    types = {"s": "int8_t", "u": "uint8_t"}
    name, _, a, b = match.groups()
    return (
        f"static int {name}(const void* a, const void* b, int c) {{ return dp4a<{types[a]}, {types[b]}>(a, b, c); }}\n"
    )


def _as_call(match: re.Match[str]) -> str:
    instruction, outputs, inputs = match.groups()
    results, values = _operands(outputs), _operands(inputs)
    if instruction.startswith("ldmatrix"):
        assert instruction == "ldmatrix.sync.aligned.m8n8.x4.shared.b16"
        return f"ldmatrix_x4({', '.join(results)}, {values[0]});\n"
    parts = re.fullmatch(r"mma\.sync\.aligned\.m(\d+)n8k(\d+)\.row\.col\.(\w+)\.(\w+)\.(\w+)\.(\w+)", instruction)
    assert parts is not None, instruction
    rows, depth, total, left, right, start = parts.groups()
    assert total == start
    taken = int(rows) * int(depth) * (16 if left == "f16" else 8) // 32 // 32
    a, rest = values[:taken], values[taken:]
    b, sums = rest[: -len(results)], rest[-len(results) :]
    assert sums == results
    sum_type = _TYPES[total]
    template = f"{rows}, {depth}, {_TYPES[left]}, {_TYPES[right]}, {sum_type}"
    pointers = ", ".join(f"&{item}" for item in results)
    return (
        f"{{ {sum_type}* sums_[] = {{{pointers}}}; uint32_t a_[] = {{{', '.join(a)}}}, b_[] = {{{', '.join(b)}}}; "
        f"mma<{template}>(sums_, a_, b_); }}\n"
    )


def for_this_machine(source: str) -> str:
    """The kernels as C++ that includes the emulated GPU."""
    body = source[source.index(_PREAMBLE_ENDS) + len(_PREAMBLE_ENDS) :]
    body = _ASYNC.sub(_as_async, body)
    body = _GROUPS.sub(_as_group, body)
    body = _DP4A.sub(_as_dp4a, body)
    body = _ASSEMBLY.sub(_as_call, body)
    body = re.sub(r"__shared__ (alignas\(\d+\))", r"\1 static", body)
    body = body.replace("unsigned int addr = __cvta", "const void* addr = __cvta")
    assert "asm" not in body, re.findall(r".*asm.*", body)[:3]
    names = re.findall(r"extern \"C\" __global__ void __launch_bounds__\(\d+\) (\w+)\(([^)]*)\);", body)
    calls = []
    for name, parameters in names:
        kinds = [re.sub(r"\b\w+$", "", item.replace("__restrict__", "")).strip() for item in parameters.split(",")]
        held = ", ".join(f"*({kind}*)arguments[{slot}]" for slot, kind in enumerate(kinds))
        calls.append(
            f'extern "C" void launch_{name}(void** arguments, const unsigned* sizes) {{\n'
            f"  launch([=] {{ {name}({held}); }},\n"
            "  {sizes[0], sizes[1], sizes[2]}, {sizes[3], sizes[4], sizes[5]});\n}\n"
        )
    return f'#include "{HEADER}"\n{body}\n' + "".join(calls)


class EmulatedGpu:
    """Kernels of one emitted module, compiled for this machine."""

    def __init__(self, emitted: EmittedModule, architecture: str) -> None:
        self.emitted = emitted
        self.source, self.functions = cuda_source(emitted, architecture)
        self._folder = tempfile.TemporaryDirectory(prefix="whet-gpu-")
        self._library = self._compiled(Path(self._folder.name))

    def _compiled(self, folder: Path) -> ctypes.CDLL:
        (folder / "kernels.cpp").write_text(for_this_machine(self.source))
        command = ["g++", "-std=c++17", "-O1", "-ffp-contract=off", "-w", "-shared", "-fPIC"]
        command += ["-o", str(folder / "kernels.so"), str(folder / "kernels.cpp")]
        finished = subprocess.run(command, capture_output=True, text=True, check=False)
        assert finished.returncode == 0, finished.stderr[:3000]
        return ctypes.CDLL(str(folder / "kernels.so"))

    def run(self, graph: Graph, feeds: Sequence[Tensor], backwards: bool = False) -> list[Tensor]:
        """The graph's outputs. `backwards`: threads take turns in the other order, which must change nothing."""
        os.environ["WHET_ORDER"] = "-" if backwards else "+"
        held: dict[Any, Tensor] = dict(zip(graph.arguments, feeds, strict=True))
        sizes: dict[str, int] = {}
        for value, tensor in held.items():
            sizes |= {str(d): n for d, n in zip(value.type.shape, tensor.shape, strict=True) if not isinstance(d, int)}

        def tensor_of(operand: Any) -> Tensor:
            return self.emitted.weights[operand] if isinstance(operand, str) else held[operand]

        for step in self.emitted.steps:
            if isinstance(step, View):
                shape = [size if isinstance(size, int) else int(size.subs(sizes)) for size in step.result.type.shape]
                held[step.result] = tensor_of(step.source).reshape(shape)
                continue
            for value in step.results:
                shape = [size if isinstance(size, int) else int(size.subs(sizes)) for size in value.type.shape]
                held[value] = _filled(shape, getattr(torch, TVM_DTYPES[value.type.dtype]))
            arguments = [tensor_of(item) for item in step.arguments]
            self._launch(
                step.kernel,
                [*arguments, *(sizes[name] for name in step.symbols), *(held[value] for value in step.results)],
            )
        return [tensor_of(value) for value in self.emitted.returns]

    def _launch(self, name: str, given: Sequence[Any]) -> None:
        host = self.functions[name]
        known: dict[str, Any] = dict(zip(host.parameters, given, strict=True))
        for buffer, (count, dtype) in host.allocated.items():
            known[buffer] = _filled([count], getattr(torch, dtype))
        numbers = {key: value for key, value in known.items() if isinstance(value, int)}
        for launch in host.launches:
            values = [self._argument(item, known, numbers) for item in launch.arguments]
            pointers = (ctypes.c_void_p * len(values))(*(ctypes.addressof(value) for value in values))
            sizes = [_number(launch.sizes[axis], numbers) if axis in launch.sizes else 1 for axis in DIMENSIONS]
            getattr(self._library, f"launch_{launch.kernel}")(pointers, (ctypes.c_uint * 6)(*sizes))

    def _argument(self, item: Any, known: Mapping[str, Any], numbers: Mapping[str, int]) -> Any:
        if isinstance(item, tvm.ir.Call) and getattr(item.op, "name", "") == "tirx.buffer_data":
            return ctypes.c_void_p(known[item.args[0].name].data_ptr())
        number = _number(item, numbers)
        return ctypes.c_int64(number)


def _number(expression: Any, numbers: Mapping[str, int]) -> int:
    if isinstance(expression, tvm.tirx.IntImm):
        return int(expression)
    # TVM prints sizes in Python's words
    text = re.sub(r"T\.int64\((-?\d+)\)|T\.int32\((-?\d+)\)", lambda m: m.group(1) or m.group(2), str(expression))
    text = re.sub(r"T\.Cast\(\"int\d+\", (.*?)\)", r"(\1)", text)
    return int(eval(text, {"T": _Numbers, **numbers}))


class _Numbers:
    min, max = min, max
    int64 = int32 = int


def _filled(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Rubbish, so that an element that no thread wrote would show; 64-byte aligned as TVM's memory is."""
    tensor = torch.empty(*shape, dtype=dtype)
    return tensor.fill_(77 if dtype is not torch.bool else True)


def emulate(
    graph: Graph, feeds: Sequence[Tensor], architecture: str, backwards: bool = False
) -> tuple[list[Tensor], EmulatedGpu]:
    """Outputs of the graph, compiled as it is for this architecture, and what it was run on."""
    target = get_target(f"cuda:{architecture}")
    emitted = emit(graph, target, schedule_cuda, lambda _: None)
    gpu = EmulatedGpu(emitted, architecture)
    return gpu.run(graph, feeds, backwards), gpu
