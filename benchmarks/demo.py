"""The main job on real input: a trained MobileNetV2, real pictures, this machine; beside PyTorch eager.

    python -m benchmarks.demo [--target x86] [--out DIR]

Compiles the model in float32 and in int8 (calibrated on 35 pictures), saves both bundles, then runs PyTorch eager and
the two bundles, each in a process of its own, on labelled pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks import datasets

Floats = npt.NDArray[np.float32]

CALIBRATION_STEP = 8
"""Every eighth of the cats and dogs calibrates; the others are classified."""
SHOWN_PICTURES = 4
_LATENCY_RUNS = 50
_RUNNERS = ("PyTorch eager", "Whet float32", "Whet int8")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="x86", help="what to compile for; it must be able to run here")
    parser.add_argument("--out", type=Path, help="keep the bundles in this folder")
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        return _measure(*options.measure)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="whet-demo-") as temporary:
        folder = options.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        _compile(options.target, folder, console)
        results = {
            name: _run_in_own_process(name, folder)
            for name in track(_RUNNERS, description="running each on 245 pictures", console=console)
        }
    _print_pictures(results, console)
    _print_table(results, console)
    return 0


def _compile(target: str, folder: Path, console: Console) -> None:
    import torch

    import whet
    from benchmarks.models.trained import load_mobilenet
    from whet.passes import QuantizeStatic

    console.print("MobileNetV2 with its ImageNet weights; the first run fetches weights and pictures")
    model = load_mobilenet()
    torch.save(model.state_dict(), folder / "eager.pt")
    calibration = [(_tensor(picture),) for picture in datasets.cats_and_dogs()[::CALIBRATION_STEP]]
    for name, passes in (("float32", ()), ("int8", (QuantizeStatic(),))):
        start = time.perf_counter()
        compiled = whet.optimize(
            model, target, example_inputs=calibration[0], passes=passes, calibration=calibration, progress=True
        )
        compiled.save(folder / f"{name}.whet")
        console.print(f"compiled and saved {name}.whet for {target} in {time.perf_counter() - start:.1f} s")


def _tensor(picture: datasets.Picture) -> Any:
    import torch

    return torch.from_numpy(datasets.preprocess_imagenet(picture.image))


def _run_in_own_process(name: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.demo", "--measure", name, str(folder)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return result


def _measure(name: str, folder: str) -> int:
    """Child process: accuracy on cats and dogs, top-5 of a few ImageNet pictures, latency, size."""
    run, file = _runner(name, Path(folder))
    cats_and_dogs = [item for index, item in enumerate(datasets.cats_and_dogs()) if index % CALIBRATION_STEP]
    right = sum(
        datasets.cat_or_dog(run(datasets.preprocess_imagenet(picture.image))[0]) == picture.label
        for picture in cats_and_dogs
    )
    shown = [datasets.preprocess_imagenet(picture.image) for picture in datasets.imagenet_pictures()[:SHOWN_PICTURES]]
    top = [np.argsort(-run(picture)[0])[:5].tolist() for picture in shown]
    times = []
    for _ in range(_LATENCY_RUNS):
        start = time.perf_counter()
        run(shown[0])
        times.append(time.perf_counter() - start)
    print(
        json.dumps(
            {
                "accuracy": right / len(cats_and_dogs),
                "top": top,
                "milliseconds": statistics.median(times) * 1e3,
                "megabytes": os.path.getsize(file) / 1e6,
            }
        )
    )
    return 0


def _runner(name: str, folder: Path) -> tuple[Callable[[Floats], Floats], Path]:
    if name == "PyTorch eager":
        import torch

        from benchmarks.models.trained import load_mobilenet

        model = load_mobilenet()

        def eager(x: Floats) -> Floats:
            with torch.inference_mode():
                scores: Floats = model(torch.from_numpy(x)).numpy()
            return scores

        return eager, folder / "eager.pt"
    import whet

    bundle = folder / f"{name.removeprefix('Whet ')}.whet"
    return whet.load(bundle), bundle


def _print_pictures(results: dict[str, dict[str, Any]], console: Console) -> None:
    names = datasets.imagenet_class_names()
    table = Table("labelled", *_RUNNERS, title="top-5 classes")
    for index, picture in enumerate(datasets.imagenet_pictures()[:SHOWN_PICTURES]):
        columns = ["\n".join(names[item] for item in results[name]["top"][index]) for name in _RUNNERS]
        table.add_row(picture.label, *columns, end_section=True)
    console.print(table)


def _print_table(results: dict[str, dict[str, Any]], console: Console) -> None:
    eager = results["PyTorch eager"]["milliseconds"]
    table = Table("", "cats and dogs, right", "median latency", "against eager", "size on disk")
    for name in _RUNNERS:
        row = results[name]
        table.add_row(
            name,
            f"{row['accuracy']:.1%}",
            f"{row['milliseconds']:.2f} ms",
            f"{eager / row['milliseconds']:.2f} x as fast",
            f"{row['megabytes']:.1f} MB",
        )
    console.print(table)


if __name__ == "__main__":
    raise SystemExit(main())
