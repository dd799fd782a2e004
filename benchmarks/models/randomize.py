"""Seeded random weights that exercise every path of a network.

Libraries initialize many parameters to a constant: batch-norm statistics to 0 and 1, the last norm of a
residual branch to 0, layer scales to 1e-6. A network left that way hides errors: a wrong channel of an
all-ones scale gives the right answer. Every constant parameter is therefore replaced by random values that
keep the signal's magnitude.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

SEED = 1234
NEAR_ZERO = 1e-3


def seeded_build(make: Callable[[], Any]) -> nn.Module:
    """Build a module in eval mode with seeded, non-degenerate random weights.

    The global random state is restored afterwards, so that building one model never changes another.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module: nn.Module = make()
        module.eval()
        randomize_constants(module)
    return module.requires_grad_(False)


def randomize_constants(module: nn.Module) -> None:
    """Replace running statistics and constant parameters by values from the global random generator."""
    with torch.no_grad():
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(0.0, 0.1)
            if name.endswith("running_var"):
                buffer.uniform_(0.7, 1.3)
        for parameter in module.parameters():
            if parameter.is_floating_point() and _is_constant(parameter):
                _spread(parameter)


def strengthen(module: nn.Module) -> None:
    """Scale weak matrices up until a layer keeps the variance of its input: a deviation of 1 / sqrt(fan-in).

    Small transformers begin with weights so small that attention is all but uniform and masks hardly matter.
    Deep networks are better left alone: they become chaotic, and eager float32 itself loses the tolerance.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim < 2 or not parameter.is_floating_point() or parameter.numel() < 2:
                continue
            wanted = parameter[0].numel() ** -0.5
            deviation = float(parameter.std())
            if 0.0 < deviation < wanted / 2:
                parameter.mul_(wanted / deviation)


def _is_constant(parameter: Tensor) -> bool:
    return parameter.numel() > 0 and bool(parameter.min() == parameter.max())


def _spread(parameter: Tensor) -> None:
    """Zeros become small normals, other constants are scaled by 0.8 to 1.2, layer scales lifted to 0.1."""
    value = float(parameter.flatten()[0])
    if abs(value) < 1e-12:
        parameter.normal_(0.0, 0.05)
        return
    if abs(value) < NEAR_ZERO:
        parameter.uniform_(0.05, 0.15)
        return
    parameter.uniform_(0.8, 1.2).mul_(value)


def seeded_normal(*shape: int) -> Tensor:
    """A float32 tensor of standard normals, the same for the same shape."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(SEED))


def seeded_tokens(vocabulary: int, *shape: int) -> Tensor:
    """Token ids (int64) in [4, vocabulary): the lowest ids are usually reserved for padding and the like."""
    return torch.randint(4, vocabulary, shape, generator=torch.Generator().manual_seed(SEED))
