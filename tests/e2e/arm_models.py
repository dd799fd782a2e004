"""The trained models that run on emulated ARM cores, and their integer regions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks import datasets, splits
from benchmarks.baselines import load_baseline
from benchmarks.models.trained import load_mobilenet, load_voice_encoder, voice_input
from whet.frontend import import_model
from whet.ir import Graph, Interpreter
from whet.ir.graph import Value
from whet.ir.target import get_target
from whet.passes import Context, PassManager, QuantizeStatic

_TOKENS = 32


def _digits() -> list[tuple[Tensor, ...]]:
    images = splits.mnist().test.images
    return [(images[index : index + 1],) for index in range(8)]


def _pictures() -> list[tuple[Tensor, ...]]:
    pictures = datasets.cats_and_dogs()[::40]
    return [(torch.from_numpy(datasets.preprocess_imagenet(item.image)),) for item in pictures]


def _minilm() -> nn.Module:
    # Imported here: transformers takes seconds.
    from benchmarks.models.minilm import load_minilm

    return load_minilm()


def _sentences() -> list[tuple[Tensor, ...]]:
    from benchmarks.models.minilm import encode

    return [encode([item.content], _TOKENS) for item in datasets.bbc_news()[::200]]


@dataclass(frozen=True)
class ArmModel:
    """A trained model and real inputs, the first of which it is run on and all of which calibrate it.

    `integer_end` says that from the input to the last layer all is integers, so that the outputs are too. `static`:
    it is also run as a static program. `int8_error` is the most that the integer outputs may be off from the trained
    model's, relative to their norm.
    """

    load: Callable[[], nn.Module]
    inputs: Callable[[], list[tuple[Tensor, ...]]]
    integer_end: bool = False
    static: bool = False
    int8_error: float = 0.25


MODELS = {
    "lenet5": ArmModel(functools.partial(load_baseline, "lenet5"), _digits, integer_end=True, static=True),
    "mobilenet": ArmModel(load_mobilenet, _pictures, integer_end=True, static=True),
    "minilm": ArmModel(_minilm, _sentences),
    "voice_encoder": ArmModel(load_voice_encoder, lambda: [voice_input()]),
}


def graph_for(name: str, target: str, precision: str) -> tuple[Graph, list[tuple[Tensor, ...]]]:
    """The model as `target` wants it, "f32" or "int8", with outputs as a flat tuple; and its inputs.

    The same graph can be compiled for other targets, and then has the same integers there.
    """
    model = MODELS[name]
    inputs = model.inputs()
    graph = import_model(model.load(), inputs[0]).clone()
    graph.output_structure = None
    if precision == "f32":
        return graph, inputs
    context = Context(target=get_target(target), calibration=inputs)
    return PassManager([QuantizeStatic()]).run(graph, context).graph, inputs


def flat(result: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs of a graph without a structure."""
    return [result] if isinstance(result, Tensor) else list(result)


def integer_regions(graph: Graph, inputs: tuple[Tensor, ...]) -> tuple[Graph, tuple[Tensor, ...]]:
    """All that lies between each `quantize` and the next `dequantize`, in one graph; and what flows into it.

    Its inputs are the integers that the interpreter's `quantize` makes of the model's inputs: float operations, which
    may round otherwise on another processor, are not in it.
    """
    regions = graph.clone()
    regions.input_structure = regions.output_structure = None
    begins = [item.result for item in regions.operations if item.name == "quantize"]
    regions.outputs = begins
    fed = flat(Interpreter(regions)(*inputs))
    ends = [item.operand(0) for item in regions.operations if item.name == "dequantize"]
    regions.outputs = [value for value in dict.fromkeys(ends) if value not in begins and value.constant is None]
    regions.inputs = [Value(f"integers{index}", value.type) for index, value in enumerate(begins)]
    for old, new in zip(begins, regions.inputs, strict=True):
        regions.replace_value(old, new)
    for operation in reversed(regions.operations.copy()):
        if not any(value.uses or value in regions.outputs for value in operation.results):
            regions.erase(operation)
    return regions, tuple(fed)
