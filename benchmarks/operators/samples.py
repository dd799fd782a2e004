"""Sample calls of PyTorch's operator database as modules whose inputs are the tensors of the calls."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils import _pytree as pytree

MOST_GENERATED = 400
"""Some operators have thousands of samples; later ones are never looked at."""

UNINITIALIZED = frozenset({"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"})
"""Their elements mean nothing: only shapes and dtypes are compared."""

UNSTABLE = frozenset({"argsort", "kthvalue", "median", "mode", "nanmedian", "sort", "topk"})
"""Where equal elements stand, their last result, is undefined unless the call asks for a stable order."""


@dataclass
class Sample:
    """One call of an operator, with what eager gives for it.

    Attributes:
        name: of the operator in the database.
        function: the operator.
        leaves: the flattened arguments; tensors become inputs, the rest is fixed.
        structure: how the leaves make (input, args, kwargs).
        expected: the tensors that eager returns.
        inapplicable: why the call has no meaning in an inference graph; empty where it has one.
    """

    name: str
    function: Callable[..., Any]
    leaves: list[Any]
    structure: pytree.TreeSpec
    expected: list[Tensor] = field(default_factory=list)
    inapplicable: str = ""

    @property
    def meaningless(self) -> frozenset[int]:
        """Results of which only shape and dtype mean something."""
        if self.name in UNINITIALIZED:
            return frozenset(range(len(self.expected)))
        _, _, kwargs = pytree.tree_unflatten(self.leaves, self.structure)
        ties = any(not tensor.is_floating_point() for tensor in self.tensors)
        if self.name in UNSTABLE and ties and not kwargs.get("stable"):
            return frozenset({len(self.expected) - 1} if len(self.expected) > 1 or self.name == "argsort" else ())
        return frozenset()

    @property
    def tensors(self) -> list[Tensor]:
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    def call(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The call with other tensors; the tensors of its result, each its own."""
        supply = iter(tensors)
        leaves = [next(supply) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        first, args, kwargs = pytree.tree_unflatten(leaves, self.structure)
        results = pytree.tree_leaves(self.function(first, *args, **kwargs))
        return [result for result in results if isinstance(result, Tensor)]


class Calls(nn.Module):
    """Several calls in one module, because exporting costs more than calling."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        super().__init__()
        self.samples = list(samples)
        self.eval()

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """All results of all calls, one after the other."""
        supply = iter(tensors)
        results: list[Tensor] = []
        for sample in self.samples:
            results += sample.call(list(itertools.islice(supply, len(sample.tensors))))
        return tuple(results)

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The tensors that the samples came with."""
        return tuple(tensor for sample in self.samples for tensor in sample.tensors)


def load_samples(index: int, dtype: torch.dtype, limit: int) -> list[Sample]:
    """At most `limit` samples, spread evenly, of the operator at `index` of the database."""
    _seed(0)
    operator = op_db[index]
    generated = operator.sample_inputs("cpu", dtype, requires_grad=False)  # type: ignore[no-untyped-call]
    given = list(itertools.islice(iter(generated), MOST_GENERATED))
    step = max(len(given) / limit, 1.0)
    chosen = [given[int(position * step)] for position in range(min(limit, len(given)))]
    return [_sample(operator.name, operator.op, item) for item in chosen]


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def _sample(name: str, function: Callable[..., Any], item: Any) -> Sample:
    leaves, structure = pytree.tree_flatten((item.input, tuple(item.args), dict(item.kwargs)))
    leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    sample = Sample(name, function, leaves, structure)
    sample.inapplicable = _reason_against(sample) or _run_eager(sample)
    return sample


def _reason_against(sample: Sample) -> str:
    if not sample.tensors:
        return ""
    if any(tensor.layout is not torch.strided for tensor in sample.tensors):
        return "sparse"
    return "complex numbers" if any(tensor.is_complex() for tensor in sample.tensors) else ""


def _run_eager(sample: Sample) -> str:
    """Fill in `expected`; the reason why it cannot be one."""
    runs = []
    for seed in (1, 2):
        _seed(seed)
        try:
            with torch.no_grad():
                runs.append([result.clone() for result in sample.call([item.clone() for item in sample.tensors])])
        except Exception as error:  # whatever eager raises, the sample cannot be compared
            return f"eager raises {type(error).__name__}"
    sample.expected = runs[0]
    if not runs[0]:
        return "returns no tensor"
    if any(result.layout is not torch.strided for result in runs[0]):
        return "sparse"
    if any(result.is_complex() for result in runs[0]):
        return "complex numbers"
    if sample.name not in UNINITIALIZED and not all(map(_same, *runs)):
        return "random numbers"
    return ""


def _same(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.equal(torch.nan_to_num(left), torch.nan_to_num(right))
