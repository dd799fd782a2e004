"""Random numbers of one pass, or of one epoch, the same in every run, without touching the caller's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch

_STRIDE: Final = 1_000_003


@contextmanager
def seeded(seed: int, epoch: int) -> Iterator[None]:
    """torch, numpy and random start from (seed, epoch) inside; afterwards they go on where they were."""
    number = (seed * _STRIDE + epoch) % 2**32
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number)
        random.seed(number)
        np.random.seed(number)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
