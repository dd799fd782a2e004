"""Packed weights: the same bytes again, and few enough of them to be committed."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.baselines import WEIGHTS
from benchmarks.packed import pack, unpack

COMMITTED_BYTES = 6_000_000


@given(st.binary(max_size=70))
def test_what_is_packed_comes_back(content: bytes) -> None:
    assert unpack(pack(content)) == content


def test_floats_are_packed_by_planes() -> None:
    weights = np.random.default_rng(0).normal(0, 0.1, 5000).astype(np.float32).tobytes()
    assert len(pack(weights)) < 0.92 * len(weights)
    assert unpack(pack(weights)) == weights


def test_all_committed_weights_are_few_bytes() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.iterdir()) <= COMMITTED_BYTES
