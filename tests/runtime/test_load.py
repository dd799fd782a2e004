"""Much work on one loaded module: many threads, many calls, an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import whet
from benchmarks.models.small import LeNet5
from tests.runtime.conftest import Array, DeviceRun
from whet.runtime import LoadedModule, load

THREADS, CALLS = 8, 1000


@pytest.fixture(scope="module")
def lenet_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("lenet") / "lenet.whet"
    whet.optimize(LeNet5().eval(), "x86", example_inputs=(torch.rand(1, 1, 28, 28),)).save(path)
    return path


@pytest.fixture(scope="module")
def lenet(lenet_bundle: Path) -> LoadedModule:
    return load(lenet_bundle)


def digits(count: int) -> list[Array]:
    return [np.random.rand(1, 1, 28, 28).astype("f4") for _ in range(count)]


@pytest.mark.parametrize("sessions", ["shared", "own"])
def test_eight_threads_of_a_thousand_calls(sessions: str, lenet: LoadedModule) -> None:
    """Bit for bit the results of one thread."""
    inputs = digits(32)
    expected = [lenet(x) for x in inputs]

    def work(thread: int) -> int:
        run: Callable[[Array], Array] = lenet if sessions == "shared" else lenet.session()
        order = [(thread * 5 + call) % len(inputs) for call in range(CALLS)]
        return sum(not np.array_equal(run(inputs[index]), expected[index]) for index in order)

    with ThreadPoolExecutor(THREADS) as pool:
        assert sum(pool.map(work, range(THREADS))) == 0


@pytest.mark.parametrize("kind", ["lenet_bundle", "affine_bundle", "counter_bundle"])
def test_memory_does_not_grow(kind: str, on_device: DeviceRun, request: pytest.FixtureRequest) -> None:
    """10,000 calls, half of them from threads that come and go; outputs of each are dropped."""
    printed = on_device(
        """
        import threading
        import numpy as np, whet
        module = whet.load(sys.argv[1])
        kinds = {"f32": "f4", "bool": "?"}
        inputs = {
            item.name: np.ones([size if isinstance(size, int) else 4 for size in item.shape], kinds[item.dtype])
            for item in module.inputs
        }

        def resident():
            with open("/proc/self/status") as status:
                return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))

        def calls(count):
            for _ in range(count):
                module(**inputs)

        def threads(count):
            for _ in range(count):
                made = [threading.Thread(target=calls, args=(25,)) for _ in range(4)]
                [item.start() for item in made]
                [item.join() for item in made]

        calls(500); threads(5)
        before = resident()
        calls(5000); threads(50)
        print(resident() - before)
        """,
        request.getfixturevalue(kind),
    )
    # KiB; what Python itself keeps between calls varies by some pages.
    assert int(printed) < 512


def test_an_event_loop_goes_on(lenet: LoadedModule) -> None:
    """Calls run beside it: they hold Python's lock neither while they run nor while they wait for their turn."""
    inputs = digits(64)
    expected = [lenet(x) for x in inputs]
    ticks: list[float] = []

    async def tick() -> None:
        while True:
            ticks.append(time.perf_counter())
            await asyncio.sleep(0)

    async def serve() -> list[Array]:
        ticking = asyncio.create_task(tick())
        results = await asyncio.gather(*(asyncio.to_thread(lenet, x) for x in inputs for _ in range(4)))
        ticking.cancel()
        return list(results)

    results = asyncio.run(serve())
    for index, result in enumerate(results):
        np.testing.assert_array_equal(result, expected[index // 4])
    assert len(ticks) > 10
