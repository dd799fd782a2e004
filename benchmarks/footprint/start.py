"""One start of one runtime, in an environment of its own: `python -I start.py RUNTIME FOLDER THREADS BEGUN`.

BEGUN is when the process was made (nanoseconds of the monotonic clock), so that the interpreter's own start counts.
Nothing but the runtime and what it brings is imported: times and memory are to be its own.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from typing import Any

Run = Callable[[], Any]


def whet(folder: str, threads: int) -> Run:
    """A bundle on Whet's runtime."""
    import numpy as np

    import whet

    module = whet.load(f"{folder}/model.whet", threads=threads)
    x = np.load(f"{folder}/input.npy")
    return lambda: module(x)


def onnxruntime(folder: str, threads: int) -> Run:
    """A session of the CPU provider."""
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = ort.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
    feeds = {session.get_inputs()[0].name: np.load(f"{folder}/input.npy")}
    return lambda: session.run(None, feeds)[0]


def openvino(folder: str, threads: int) -> Run:
    """The CPU plugin, which by default would take bf16 where the processor has it."""
    import numpy as np
    import openvino as ov

    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = ov.Core().compile_model(f"{folder}/model.xml", "CPU", hints)
    x = np.load(f"{folder}/input.npy")
    return lambda: compiled([x])[0]


def executorch(folder: str, threads: int) -> Run:
    """The program's `forward`, with XNNPACK."""
    import numpy as np
    import torch
    from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
    from executorch.runtime import Runtime

    _unsafe_reset_threadpool(threads)
    program = Runtime.get().load_program(f"{folder}/model.pte")
    forward = program.load_method("forward")
    if forward is None:
        raise RuntimeError("ExecuTorch's program has no forward")
    x = torch.from_numpy(np.load(f"{folder}/input.npy"))

    def run() -> Any:
        # The method needs the program, and does not keep it.
        assert program
        return forward.execute([x])[0].numpy()

    return run


def python(folder: str, threads: int) -> Run:
    """The interpreter with numpy, of which all the others are made."""
    import numpy as np

    x = np.load(f"{folder}/input.npy")
    return lambda: x


def main() -> None:
    """Start, run once, and print what it took."""
    name, folder, threads, begun = sys.argv[1:]
    run: Run = globals()[name](folder, int(threads))
    ready = time.monotonic_ns()
    output = run().reshape(-1)
    done = time.monotonic_ns()
    with open("/proc/self/status") as status:
        (peak,) = (int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    result = {
        "ready_seconds": (ready - int(begun)) / 1e9,
        "first_result_seconds": (done - int(begun)) / 1e9,
        "peak_megabytes": peak * 1024 / 1e6,
        "output": [float(value) for value in output[:8]],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
