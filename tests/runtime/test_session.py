"""State, aliasing, threads and the building of a module in process."""

from __future__ import annotations

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.runtime.conftest import (
    DeviceRun,
    Model,
    build_main,
    call_structure,
    compile_library,
    host_target,
    output_structure,
)
from whet.errors import InputError
from whet.runtime import Dimension, LoadedModule, Manifest, Program, TensorSpec, load, write_bundle

_ONES = np.ones(4, "f4")


def test_state_advances_and_resets(counter_bundle: Path) -> None:
    loaded = load(counter_bundle)
    total, last = loaded(_ONES)
    np.testing.assert_array_equal(total, [3, 4, 5, 6])
    np.testing.assert_array_equal(last, [-1, -1, -1, -1])
    total, last = loaded(np.full(4, 5, "f4"))
    np.testing.assert_array_equal(total, [13, 14, 15, 16])
    np.testing.assert_array_equal(last, _ONES)
    loaded.reset()
    np.testing.assert_array_equal(loaded(_ONES)[0], [3, 4, 5, 6])


def test_sessions_are_independent(counter_bundle: Path) -> None:
    loaded = load(counter_bundle)
    loaded(_ONES)
    first, second = loaded.session(), loaded.session()
    np.testing.assert_array_equal(first(_ONES)[0], [3, 4, 5, 6])
    np.testing.assert_array_equal(first(_ONES)[0], [5, 6, 7, 8])
    branch = first.copy()
    np.testing.assert_array_equal(second(_ONES)[0], [3, 4, 5, 6])
    np.testing.assert_array_equal(branch(_ONES)[0], [7, 8, 9, 10])
    np.testing.assert_array_equal(first(_ONES)[0], [7, 8, 9, 10])
    np.testing.assert_array_equal(loaded(_ONES)[0], [5, 6, 7, 8])


def test_writing_into_inputs_and_outputs_changes_no_state(counter_bundle: Path) -> None:
    """The compiled code returns its state and its input as they lie: the caller's copies must be the caller's
    own.
    """
    buffer = np.empty(4 + 32, "f4")
    start = -buffer.ctypes.data % 64 // 4
    x = buffer[start : start + 4]  # 64-byte aligned: taken without a copy
    x[:] = 1
    session = load(counter_bundle).session()
    total, last = session(x)
    for array in (x, total, last):
        assert array.flags.writeable
        array[:] = 99
    total, last = session(_ONES)
    np.testing.assert_array_equal(total, [5, 6, 7, 8])
    np.testing.assert_array_equal(last, _ONES)
    session.reset()
    np.testing.assert_array_equal(session(_ONES)[1], [-1, -1, -1, -1])


def test_outputs_that_are_arguments(tmp_path: Path) -> None:
    """A weight, a reshaped weight and one value twice come back as memory of the caller's own."""
    from tvm import relax

    def body(builder: Any, x: Any, w: Any) -> list[Any]:
        doubled = builder.emit(relax.op.add(x, x))
        return [w, builder.emit(relax.op.reshape(w, (4,))), doubled, doubled, x]

    module = build_main({"x": ((2, 2), "float32"), "w": ((2, 2), "float32")}, body)
    shapes = [(2, 2), (4,), (2, 2), (2, 2), (2, 2)]
    manifest = Manifest(
        target=host_target(),
        inputs=(TensorSpec("x", (2, 2), "f32"),),
        outputs=tuple(TensorSpec(f"o{i}", shape, "f32") for i, shape in enumerate(shapes)),
        weights=("w",),
        input_structure=call_structure("t"),
        output_structure=output_structure(["t"] * 5),
    )
    w, x = np.arange(4, dtype="f4").reshape(2, 2), np.ones((2, 2), "f4")
    write_bundle(tmp_path / "m.whet", manifest, compile_library(module, tmp_path / "lib.so"), {"w": w})
    loaded = load(tmp_path / "m.whet")
    for _ in range(2):
        outputs = loaded(x)
        for output, expected in zip(outputs, (w, w.reshape(4), x + x, x + x, x), strict=True):
            np.testing.assert_array_equal(output, expected)
            output[...] = 77
    np.testing.assert_array_equal(x, 1)


def test_outputs_survive_the_calls_that_follow(affine_bundle: Path) -> None:
    loaded = load(affine_bundle)
    mask = np.ones((4, 8), bool)
    outputs = [loaded(np.full((4, 8), value, "f4"), mask=mask)["y"] for value in range(20)]
    again = [loaded(np.full((4, 8), value, "f4"), mask=mask)["y"].copy() for value in range(20)]
    np.testing.assert_array_equal(outputs, again)


def test_eight_threads_give_the_results_of_one(affine_bundle: Path) -> None:
    loaded = load(affine_bundle)
    generator = np.random.default_rng(0)
    inputs = [generator.normal(size=(2 * (1 + i % 8), 8)).astype("f4") for i in range(64)]
    expected = [loaded(x, mask=x > 0)["y"].copy() for x in inputs]
    with ThreadPoolExecutor(1) as pool:
        # The first call from another thread starts the execution thread and its workers.
        pool.submit(lambda: loaded(inputs[0], mask=inputs[0] > 0)).result()
    before = len(os.listdir("/proc/self/task"))
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for got, wanted in zip(pool.map(lambda x: loaded(x, mask=x > 0)["y"], inputs), expected, strict=True):
                np.testing.assert_array_equal(got, wanted)
    # TVM left to itself makes a pool of workers for each caller, and never ends it. The system may still list
    # the callers for a moment after they were joined.
    for _ in range(100):
        left = len(os.listdir("/proc/self/task")) - before
        if left <= 0:
            break
        time.sleep(0.05)
    assert left <= 0


def test_threads_of_one_session_take_turns(counter_bundle: Path) -> None:
    """200 additions from 8 threads are 200 additions."""
    session = load(counter_bundle).session()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: session(_ONES), range(200)))
    np.testing.assert_array_equal(session(np.zeros(4, "f4"))[0], np.array([1, 2, 3, 4]) + 400)


_POOL_CODE = """
    import os, threading
    import numpy as np, whet
    from whet.errors import InputError
    import whet.runtime
    from whet.runtime.library import runtime_function
    from whet.runtime.executor import shared_executor

    def workers():
        return shared_executor().run(runtime_function("runtime.NumThreads"))

    def tasks():
        return len(os.listdir("/proc/self/task"))
"""


def test_thread_count_is_the_process_s(affine_bundle: Path, on_device: DeviceRun) -> None:
    printed = on_device(
        _POOL_CODE
        + """
    start = tasks()
    loaded = whet.load(sys.argv[1], threads=3)
    print(loaded.threads, workers(), tasks() - start)
    whet.load(sys.argv[1]); whet.load(sys.argv[1], threads=3)
    for wrong in (2, 0, True, "2"):
        try:
            whet.load(sys.argv[1], threads=wrong)
        except InputError as error:
            print(error)
    whet.runtime.set_threads(2)
    print(loaded.threads, workers(), loaded(np.ones((2, 8), "f4"), mask=np.ones((2, 8), bool))["y"].shape)
    print(len(os.sched_getaffinity(0)) == os.cpu_count())
    """,
        affine_bundle,
    ).splitlines()
    # tvm_ffi's own threads aside: two workers beside the main thread.
    assert printed[0] == "3 3 2"
    assert "set_threads(2)" in printed[1]
    assert all("1 or more" in line for line in printed[2:5])
    assert printed[5] == "2 2 (2, 4)"
    assert printed[6] == "True"


def test_the_main_thread_runs_its_calls_until_another_calls(affine_bundle: Path, on_device: DeviceRun) -> None:
    printed = on_device(
        _POOL_CODE
        + """
    def runs_on():
        return shared_executor().run(threading.get_ident)

    def in_another(function):
        results = []
        thread = threading.Thread(target=lambda: results.append(function()))
        thread.start()
        thread.join()
        return results[0]

    loaded = whet.load(sys.argv[1], threads=2)
    x = np.random.default_rng(0).normal(size=(64, 8)).astype("f4")
    call = lambda: loaded(x, mask=x > 0)["y"]
    main, first = threading.get_ident(), call()
    print(runs_on() == main, in_another(runs_on) == main, runs_on() == main)
    print(runs_on() == in_another(runs_on), workers(), shared_executor().run(runs_on) == runs_on())
    print((call() == first).all(), (in_another(call) == first).all())
    whet.runtime.set_threads(3)
    print(workers(), (call() == first).all())
    """,
        affine_bundle,
    ).splitlines()
    assert printed == ["True False False", "True 2 True", "True True", "3 True"]


def test_default_threads(affine_bundle: Path, on_device: DeviceRun) -> None:
    code = _POOL_CODE + "\n    print(whet.load(sys.argv[1]).threads, workers())\n"
    from whet.runtime.cpu import physical_cores

    assert on_device(code, affine_bundle).strip() == f"{physical_cores()} {physical_cores()}"
    assert on_device(code, affine_bundle, TVM_NUM_THREADS="5").strip() == "5 5"


def test_works_after_fork(affine_bundle: Path, on_device: DeviceRun) -> None:
    """A pool of the calling thread would have no workers in the child, and wait for them for ever."""
    printed = on_device(
        """
        import os, signal
        import numpy as np, whet
        loaded = whet.load(sys.argv[1], threads=2)
        x, mask = np.ones((64, 8), "f4"), np.ones((64, 8), bool)
        expected = loaded(x, mask=mask)["y"]
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            os._exit(0 if np.array_equal(loaded(x, mask=mask)["y"], expected) else 1)
        print(os.waitpid(child, 0)[1], np.array_equal(loaded(x, mask=mask)["y"], expected))
        """,
        affine_bundle,
    )
    assert printed.strip() == "0 True"


def test_torch_in_torch_out(affine_bundle: Path, affine: Model) -> None:
    import torch

    loaded = load(affine_bundle)
    with pytest.raises(InputError, match="float64"):
        loaded(torch.ones(4, 8, dtype=torch.float64), mask=torch.ones(4, 8, dtype=torch.bool))
    x = torch.randn(8, 6, requires_grad=True).T  # neither contiguous nor without a gradient
    out = loaded(x, mask=x.detach().numpy() > 0)
    assert isinstance(out["y"], torch.Tensor) and out["rest"][0].dtype == torch.bool
    expected = x.detach().clamp(min=0) @ torch.from_numpy(affine.weights["w"]) + torch.from_numpy(affine.weights["b"])
    torch.testing.assert_close(out["y"], expected)


def test_layouts_of_numpy_inputs(affine_bundle: Path) -> None:
    """Views, read-only arrays, odd addresses and the other byte order are all taken for their values."""
    loaded = load(affine_bundle)
    x = np.random.rand(4, 8).astype("f4")
    mask = x > 0.5
    expected = loaded(x, mask=mask)["y"]
    frozen = x.copy()
    frozen.flags.writeable = False
    odd = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view("f4").reshape(4, 8)
    for variant in (np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], frozen, odd, x.astype(">f4")):
        np.testing.assert_array_equal(loaded(variant, mask=mask)["y"], expected)


def test_in_process_without_a_bundle(affine: Model) -> None:
    """The compiler runs what it has just built through the same sessions, from the VM that it holds."""
    import tvm
    from tvm import relax

    made: list[int] = []

    def factory() -> Any:
        made.append(threading.get_ident())
        return relax.VirtualMachine(tvm.runtime.load_module(str(affine.library)), tvm.cpu())["main"]

    module = LoadedModule(affine.manifest, lambda: Program(factory, affine.manifest, affine.weights))
    x = np.random.rand(4, 8).astype("f4")
    mask = x > 0.5
    expected = np.where(mask, x, 0) @ affine.weights["w"] + affine.weights["b"]
    with ThreadPoolExecutor(3) as pool:
        for result in pool.map(lambda _: module(x, mask=mask)["y"], range(9)):
            np.testing.assert_allclose(result, expected, rtol=1e-5)
    assert len(made) == 1 and made[0] != threading.get_ident()


def test_benchmark_leaves_the_state(counter_bundle: Path) -> None:
    loaded = load(counter_bundle)
    assert 0 < loaded.benchmark(_ONES, repeat=5) < 1000
    np.testing.assert_array_equal(loaded(_ONES)[0], [3, 4, 5, 6])
    with pytest.raises(InputError, match="repeat"):
        loaded.benchmark(_ONES, repeat=0)


def test_an_error_in_compiled_code_reaches_the_caller(affine: Model) -> None:
    """...and the next call works."""
    calls: list[int] = []

    def main(*_: Any) -> Any:
        calls.append(1)
        raise RuntimeError("kernel failed")

    module = LoadedModule(affine.manifest, lambda: Program(lambda: main, affine.manifest, affine.weights))
    for _ in range(2):
        with pytest.raises(RuntimeError, match="kernel failed"):
            module(np.ones((2, 8), "f4"), mask=np.ones((2, 8), bool))
    assert len(calls) == 2


def test_symbolic_expression_binds_its_symbol(tmp_path: Path) -> None:
    """An input of size 2*s0 + 1 alone determines s0."""
    manifest = Manifest(
        target=host_target(),
        inputs=(TensorSpec("x", ("2*s0 + 1",), "f32"),),
        outputs=(TensorSpec("y", ("2*s0 + 1",), "f32"),),
        weights=(),
        input_structure=call_structure("t"),
        output_structure=output_structure("t"),
        dimensions={"s0": Dimension(1, 4)},
    )
    from whet.runtime.library import tvm_ffi

    module = LoadedModule(manifest, lambda: Program(lambda: lambda x: tvm_ffi().convert([x]), manifest, {}))
    assert module(np.ones(5, "f4")).shape == (5,)
    with pytest.raises(InputError, match="no size makes"):
        module(np.ones(4, "f4"))
    with pytest.raises(InputError, match=r"s0 = 5 is not allowed"):
        module(np.ones(11, "f4"))
