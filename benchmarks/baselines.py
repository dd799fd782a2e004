"""Train the float baselines of the compression cases, once: `python -m benchmarks.baselines NAME`.

Every epoch is checkpointed, so that an interrupted run goes on where it stopped; the weights of the last epoch are
written to benchmarks/weights/NAME.weights. The test set is looked at once, at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from safetensors.torch import load, load_file, save, save_file
from torch import Tensor, nn

from benchmarks import data, packed, splits
from benchmarks.models.small import LeNet5, LeNet300, ResNetCifar

WEIGHTS = Path(__file__).parent / "weights"


@dataclass(frozen=True)
class Recipe:
    """How a baseline is trained: SGD with Nesterov momentum, the learning rate rising, then falling to zero."""

    build: Callable[[], nn.Module]
    dataset: Callable[[], splits.Splits]
    epochs: int
    rate: float
    decay: float
    batch: int = 128
    augment: bool = False
    seed: int = 0


RECIPES = {
    "lenet300": Recipe(LeNet300, splits.mnist, 30, 0.05, 5e-4),
    "lenet5": Recipe(LeNet5, splits.mnist, 30, 0.05, 5e-4),
    "resnet20": Recipe(ResNetCifar, splits.cifar10, 60, 0.4, 5e-4, augment=True),
}


def load_baseline(name: str) -> nn.Module:
    """The trained model in evaluation mode. Raises DataError where its weights were never trained."""
    path = WEIGHTS / f"{name}.weights"
    if not path.exists():
        raise data.DataError(f"{path.name} is missing: python -m benchmarks.baselines {name}")
    model = RECIPES[name].build()
    model.load_state_dict(load(packed.unpack(path.read_bytes())))
    return model.eval()


def accuracy(model: Callable[[Tensor], Tensor], part: splits.Part, batch: int = 500) -> float:
    """Share of pictures whose highest score is their label's, in percent."""
    with torch.no_grad():
        right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in part.batches(batch))
    return 100 * right / len(part.labels)


class _Training:
    """Model, optimizer and schedule, with everything that a resumed run needs in two files."""

    def __init__(self, name: str, recipe: Recipe) -> None:
        self.recipe = recipe
        self.data = recipe.dataset()
        torch.manual_seed(recipe.seed)
        self.model = recipe.build().to(memory_format=torch.channels_last)
        parameters = list(self.model.parameters())
        # norms and biases have one dimension: decaying them only shrinks what they scale
        groups = [
            {"params": [item for item in parameters if item.dim() > 1], "weight_decay": recipe.decay},
            {"params": [item for item in parameters if item.dim() <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.SGD(groups, recipe.rate, momentum=0.9, nesterov=True)
        self.batches = splits.Shuffled(self.data.train, recipe.batch, recipe.augment)
        self.steps = len(self.batches)
        self.folder = data.cache_folder() / "training" / name
        self.epoch = 0
        self._resume()

    def _resume(self) -> None:
        state = self.folder / "state.json"
        if not state.exists():
            return
        known = json.loads(state.read_text())
        if known["recipe"] != self._fingerprint():
            raise data.DataError(f"{self.folder} is of another recipe: delete it to train anew")
        self.epoch = known["epoch"]
        tensors = load_file(self.folder / f"epoch-{self.epoch}.safetensors")
        self.model.load_state_dict({key[6:]: value for key, value in tensors.items() if key.startswith("model.")})
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter]["momentum_buffer"] = tensors[f"momentum.{name}"]

    def save(self) -> None:
        """Weights and momenta first, then the note that names them: an interruption leaves the older pair."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors = {f"model.{key}": value.contiguous() for key, value in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            tensors[f"momentum.{name}"] = self.optimizer.state[parameter]["momentum_buffer"].contiguous()
        save_file(tensors, self.folder / f"epoch-{self.epoch}.safetensors")
        note = self.folder / "state.json.new"
        note.write_text(json.dumps({"epoch": self.epoch, "recipe": self._fingerprint()}))
        os.replace(note, self.folder / "state.json")
        (self.folder / f"epoch-{self.epoch - 1}.safetensors").unlink(missing_ok=True)

    def _fingerprint(self) -> dict[str, object]:
        values = dataclasses.asdict(self.recipe)
        return {key: value for key, value in values.items() if key not in ("build", "dataset")}

    def rate(self, step: int) -> float:
        """Linear up over the first fifth of all steps, linear down to zero over the rest."""
        total = self.recipe.epochs * self.steps
        peak = total / 5
        return self.recipe.rate * (step / peak if step < peak else (total - step) / (total - peak))

    def run_epoch(self, advance: Callable[[], None]) -> float:
        """One pass over the shuffled training set; the mean loss."""
        torch.manual_seed(1_000_003 * self.recipe.seed + self.epoch)
        self.model.train()
        total = 0.0
        for step, (images, labels) in enumerate(self.batches):
            for group in self.optimizer.param_groups:
                group["lr"] = self.rate(self.epoch * self.steps + step)
            # bfloat16 halves the time where the processor has it; weights and norms stay float32
            with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.augment):
                scores = self.model(images.contiguous(memory_format=torch.channels_last))
            loss = F.cross_entropy(scores.float(), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item()
            advance()
        self.epoch += 1
        return total / self.steps


def train(name: str) -> None:
    """Train or go on training a baseline, and write its weights."""
    training = _Training(name, RECIPES[name])
    epochs, steps = training.recipe.epochs, training.steps
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(name, total=epochs * steps, completed=training.epoch * steps)
        while training.epoch < epochs:
            started = time.perf_counter()
            loss = training.run_epoch(lambda: progress.advance(task))
            training.save()
            validation = accuracy(training.model.eval(), training.data.validation)
            seconds = time.perf_counter() - started
            line = f"{name} epoch {training.epoch}/{epochs}: loss {loss:.4f}, validation {validation:.2f} %"
            print(f"{line}, {seconds:.0f} s", flush=True)
    WEIGHTS.mkdir(exist_ok=True)
    tensors = {key: value.contiguous() for key, value in training.model.state_dict().items()}
    (WEIGHTS / f"{name}.weights").write_bytes(packed.pack(save(tensors)))
    print(f"{name}: test {accuracy(training.model.eval(), training.data.test):.2f} %")


def main() -> None:
    """Train what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="+", choices=sorted(RECIPES), metavar="NAME", help=", ".join(sorted(RECIPES)))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.names:
        train(name)


if __name__ == "__main__":
    main()
