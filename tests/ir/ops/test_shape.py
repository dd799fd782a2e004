"""Operations that move elements, against torch and against what they refuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from tests.ir.ops.test_contraction import run
from tests.ir.samples import randn
from whet.ir import DType, TensorType
from whet.ir.definition import InferError
from whet.ir.dimensions import Dim, symbol
from whet.ir.ops import CATALOGUE
from whet.ir.ops.shape import matched_blocks


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("low, high", [(0, 0), (1, 0), (2, 3), (3, 3), (0, 2)])
def test_pad_is_torchs(mode: str, low: int, high: int) -> None:
    x = randn(2, 3, 4)
    expected = F.pad(x, (low, high), mode=mode)
    assert torch.equal(run("pad", x, padding=((0, 0), (0, 0), (low, high)), mode=mode), expected)
    y = randn(2, 3, 5, 4)
    expected = F.pad(y, (low, high, 1, 2), mode=mode)
    assert torch.equal(run("pad", y, padding=((0, 0), (0, 0), (1, 2), (low, high)), mode=mode), expected)


def test_pad_replicates_beyond_the_size_and_crops() -> None:
    assert run("pad", torch.tensor([1.0, 2.0]), padding=((3, 1),), mode="replicate").tolist() == [
        1,
        1,
        1,
        1,
        2,
        2,
    ]
    assert run("pad", torch.tensor([1.0, 2.0, 3.0]), padding=((-1, 1),), value=9.0).tolist() == [2, 3, 9]


def test_slice_flip_triangle() -> None:
    x = randn(6, 5)
    assert torch.equal(run("slice", x, starts=(1, 0), stops=(6, 3), steps=(2, 1)), x[1:6:2, 0:3])
    assert run("slice", x, starts=(3, 0), stops=(3, 5), steps=(1, 1)).shape == (0, 5)
    assert torch.equal(run("flip", x, dims=(0, 1)), x.flip(0, 1))
    for lower, function in ((True, torch.tril), (False, torch.triu)):
        assert torch.equal(run("triangle", x, lower=lower, diagonal=1), function(x, 1))


S0, S1 = symbol("s0"), symbol("s1")
BLOCKS: list[tuple[tuple[Dim, ...], tuple[Dim, ...], list[tuple[list[int], list[int]]]]] = [
    ((2, 3), (6,), [([0, 1], [0])]),
    ((6,), (2, 3), [([0], [0, 1])]),
    ((S0, 8, 16), (S0 * 8, 16), [([0, 1], [0]), ([2], [1])]),
    ((S0 * 8, 16), (S0, 8, 16), [([0], [0, 1]), ([1], [2])]),
    ((S0, S1, 12), (S0, S1, 3, 4), [([0], [0]), ([1], [1]), ([2], [2, 3])]),
    ((S0 * S1, 4), (S0, S1, 4), [([0], [0, 1]), ([1], [2])]),
    ((4, 6), (6, 4), [([0, 1], [0, 1])]),
    ((5, 1, 6), (5, 6), [([0], [0]), ([1, 2], [1])]),
    ((), (1, 1), [([], [0]), ([], [1])]),
    ((0, 4), (0,), [([0], [0])]),
]


@pytest.mark.parametrize("source, target, blocks", BLOCKS)
def test_reshape_finds_what_survives(source: Any, target: Any, blocks: Any) -> None:
    assert matched_blocks(source, target)[: len(blocks)] == blocks


BAD = [
    ("reshape", [(2, 3)], {"shape": (7,)}, "elements"),
    ("transpose", [(2, 3)], {"permutation": (0, 0)}, "permutation"),
    ("broadcast_to", [(2, 3)], {"shape": (3, 3)}, "broadcast"),
    ("broadcast_to", [(2, 3)], {"shape": (3,)}, "more dimensions"),
    ("slice", [(4,)], {"starts": (2,), "stops": (5,), "steps": (1,)}, "leaves"),
    ("slice", [(4,)], {"starts": (0,), "stops": (4,), "steps": (0,)}, "positive"),
    ("slice", [(4,)], {"starts": (0, 0), "stops": (4,), "steps": (1,)}, "one start"),
    ("concat", [(2, 3), (2, 4)], {"axis": 0}, "fit"),
    ("concat", [], {"axis": 0}, "operand"),
    ("concat", [(2,)], {"axis": 1}, "outside"),
    ("pad", [(4,)], {"padding": ((4, 0),), "mode": "reflect"}, "at most 3"),
    ("pad", [(4,)], {"padding": ((0, 5),), "mode": "circular"}, "at most 4"),
    ("pad", [(4,)], {"padding": ((0, 5),), "mode": "mirror"}, "mode"),
    ("flip", [(4,)], {"dims": (1,)}, "outside"),
    ("triangle", [(4,)], {"lower": True}, "two dimensions"),
]


@pytest.mark.parametrize("op, shapes, attributes, message", BAD)
def test_operands_that_do_not_fit_are_refused(
    op: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any], message: str
) -> None:
    definition = CATALOGUE[op]
    types = [TensorType(shape, DType.F32) for shape in shapes]
    with pytest.raises(InferError, match=message):
        definition.result_types(types, definition.signature.with_defaults(attributes))


def test_iota_and_full() -> None:
    assert run("iota", length=4, start=5, step=-2, dtype=DType.I64).tolist() == [5, 3, 1, -1]
    assert torch.equal(run("iota", length=3, start=0.5, step=0.1, dtype=DType.F32), torch.arange(0.5, 0.75, 0.1))
    assert run("full", shape=(2,), value=-1, dtype=DType.I8).tolist() == [-1, -1]
