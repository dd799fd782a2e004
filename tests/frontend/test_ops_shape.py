"""Views, padding, windows, diagonals, and tensors made from shapes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.frontend.operators import Function, check, imported, integers, operations, randn
from whet.ir import Interpreter

X = randn(2, 3, 4)
IMAGE = randn(1, 4, 6, 8)
MATRIX = randn(4, 6)
INTEGERS = integers(2, 3, 4)

CASES: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    "views": (
        lambda x: [x.view(6, 4), x.reshape(-1), x.flatten(1), x.unflatten(2, (2, 2)), x.view_as(x)],
        (X,),
    ),
    "squeeze": (
        lambda x: [x[:, :1].squeeze(1), x.squeeze(), x.unsqueeze(-1), x[:1, :1].squeeze((0, 1))],
        (X,),
    ),
    "permute": (
        lambda x: [x.permute(2, 0, 1), x.transpose(0, -1), x.mT, x.movedim(0, 2), x.swapaxes(1, 2)],
        (X,),
    ),
    "expand": (lambda x: [x[:, :1].expand(2, 5, 4), x.expand(3, -1, -1, -1), x[:, :1].expand_as(x)], (X,)),
    "slices": (lambda x: [x[1:], x[:, ::2], x[..., -2:], x[:, 1:1], x.narrow(2, 1, 2), x[:, 10:]], (X,)),
    "select": (lambda x: [x[0], x[:, -1], x.select(2, 1), x[1, 2, 3]], (X,)),
    "cat": (
        lambda x, i: [
            torch.cat([x, x], 1),
            torch.cat([x, i], -1),
            torch.stack([x, x], 1),
            torch.hstack([x, x]),
        ],
        (X, INTEGERS),
    ),
    "cat_with_empty": (lambda x: torch.cat([torch.empty(0), x, x]), (X,)),
    "split": (
        lambda x: [*x.split(2, 2), *x.split([1, 2], 1), *x.chunk(2, 2), *x.unbind(1), *x.tensor_split(3, 2)],
        (X,),
    ),
    "repeat": (
        lambda x: [x.repeat(2, 1, 3), x.repeat(2, 1, 1, 1), x.tile(2), x.repeat_interleave(3, 1)],
        (X,),
    ),
    "repeat_interleave": (
        lambda x, r: [x.repeat_interleave(2), x.repeat_interleave(r, 1, output_size=3)],
        (X, torch.tensor([1, 0, 2])),
    ),
    "roll": (lambda x: [x.roll(1, 1), x.roll((2, -1), (0, 2)), x.roll(5), x.roll(7, 1)], (X,)),
    "flip": (lambda x: [x.flip(0), x.flip((1, 2)), x.fliplr(), torch.rot90(x)], (X,)),
    "pad": (lambda x: [F.pad(x, (1, 2)), F.pad(x, (0, 1, 2, 0), value=3.0), F.pad(x, (-1, 1, 1, -1))], (X,)),
    "pad_integers": (
        lambda i, p: [F.pad(i, (1, 1), value=7), F.pad(p, (1, 1), value=True)],
        (INTEGERS, INTEGERS > 0),
    ),
    "pad_reflect": (lambda x: [F.pad(x, (1, 2), "reflect"), F.pad(x[None], (1, 2, 2, 1), "reflect")], (X,)),
    "pad_replicate": (
        lambda x: [F.pad(x, (3, 1), "replicate"), F.pad(x[None], (1, 2, 2, 1), "replicate")],
        (X,),
    ),
    "pad_circular": (
        lambda x: [F.pad(x, (1, 2), "circular"), F.pad(x[None], (-1, 2, 2, -1), "circular")],
        (X,),
    ),
    "pad_volume": (
        lambda x: [F.pad(x[None, None], (1, 1, 1, 2, 1, 0), mode) for mode in ("reflect", "replicate", "circular")],
        (X,),
    ),
    "slice_scatter": (
        lambda x: [
            x.slice_scatter(torch.zeros(2, 3, 2), 2, 1, 3),
            x.slice_scatter(torch.zeros(2, 2, 4), 1, 0, 3, 2),
        ],
        (X,),
    ),
    "select_scatter": (
        lambda x: [x.select_scatter(torch.ones(2, 4), 1, -1), x.select_scatter(x[0] * 2, 0, 1)],
        (X,),
    ),
    "diagonal_scatter": (
        lambda x: [x.diagonal_scatter(torch.zeros(4)), x.diagonal_scatter(torch.ones(3), -1)],
        (MATRIX,),
    ),
    "diagonal": (
        lambda x, y: [x.diagonal(), x.diagonal(2), x.diagonal(-1), y.diagonal(1, 2, 0), x.diag()],
        (MATRIX, X),
    ),
    "diagonal_outside": (lambda x: x.diagonal(9), (MATRIX,)),
    "diag_embed": (lambda x: [x.diag_embed(), x.diag_embed(1), x.diag_embed(-2, 0, 2), x[0, 0].diag()], (X,)),
    "triangles": (lambda x, i: [x.tril(), x.triu(1), x.tril(-1), i.triu(-1)], (MATRIX, INTEGERS)),
    "unfold": (lambda x: [x.unfold(2, 2, 1), x.unfold(1, 2, 1), x.unfold(2, 2, 2), x.unfold(2, 3, 1)], (X,)),
    "im2col": (lambda x: [F.unfold(x, 3), F.unfold(x, (2, 3), 2, (1, 0), (2, 1))], (IMAGE,)),
    "col2im": (
        lambda x: [
            F.fold(F.unfold(x, 3), (6, 8), 3),
            F.fold(F.unfold(x, 2, stride=2, padding=1), (6, 8), 2, stride=2, padding=1),
        ],
        (IMAGE,),
    ),
    "pixel_shuffle": (
        lambda x: [F.pixel_shuffle(x, 2), F.pixel_unshuffle(x, 2), F.channel_shuffle(x, 2)],
        (IMAGE,),
    ),
    "meshgrid": (lambda x: torch.meshgrid(x[0, 0], x[0, :, 0], indexing="ij"), (X,)),
    "broadcast_tensors": (lambda x, y: torch.broadcast_tensors(x, y[0]), (X, X)),
    "block_diag": (lambda x: torch.block_diag(x[0], x[1]), (X,)),
    "kron": (lambda x: torch.kron(x[0], x[1]), (X,)),
    "copies": (lambda x: [x.clone(), x.contiguous(), x.detach() + 0], (X,)),
}
CREATION: dict[str, Function] = {
    "full": lambda x: [
        torch.full((2, 3), 1.5),
        torch.full((2,), 3),
        torch.full((2,), True),
        x.new_full((2,), 7),
    ],
    "full_like": lambda x: [
        torch.full_like(x, 2),
        torch.full_like(x, 2, dtype=torch.int32),
        torch.ones_like(x),
    ],
    "zeros": lambda x: [torch.zeros(2, 3), x.new_zeros(2), torch.zeros_like(x), torch.ones(2), x.new_ones(3)],
    "arange": lambda x: [
        torch.arange(5),
        torch.arange(2, 9, 3),
        torch.arange(0.5, 3, 0.7),
        torch.arange(5, 0, -2),
    ],
    "arange_of_a_type": lambda x: [
        torch.arange(4, dtype=torch.float32),
        torch.arange(0, 9, 2, dtype=torch.int32),
    ],
    "eye": lambda x: [torch.eye(3), torch.eye(2, 4), torch.eye(3, dtype=torch.bool)],
    "linspace": lambda x: [torch.linspace(0, 1, 7), torch.linspace(-3, 3, 4), torch.logspace(0, 2, 5)],
    "linspace_between_tensors": lambda x: [torch.linspace(x[0, 0, 0], 2.0, 5), torch.linspace(x.min(), x.max(), 4)],
    "scalar_tensor": lambda x: [torch.scalar_tensor(2.0), torch.tensor(3.0) * x, torch.tensor([1, 2]) + 0],
    "triangle_indices": lambda x: [torch.tril_indices(3, 4), torch.triu_indices(3, 3, 1)],
    "fill": lambda x: [
        torch.fill(x, 2.0),
        torch.fill(x, torch.tensor(3.0)),
        x.clone().fill_(1),
        x.clone().zero_(),
    ],
    "copy": lambda x: torch.empty_like(x).copy_(x[:, :1]),
}


@pytest.mark.parametrize("name", CASES)
def test_movement(name: str) -> None:
    function, inputs = CASES[name]
    check(function, *inputs)


@pytest.mark.parametrize("name", CREATION)
def test_creation(name: str) -> None:
    check(CREATION[name], X)


def test_scalars_and_empty_tensors() -> None:
    check(
        lambda s, e: [
            s.reshape(1),
            s.expand(2),
            s.repeat(2),
            s.flip(()),
            e.flip(0),
            e.roll(1, 0),
            e.repeat(2, 1),
            e.t(),
        ],
        torch.tensor(2.0),
        torch.empty(0, 3),
    )


def test_tensors_that_are_not_contiguous() -> None:
    check(lambda x: [x.reshape(-1), x.flatten(), x[::2].roll(1, 1), x.diagonal(), F.pad(x, (1, 1))], MATRIX.t())


def test_views_that_change_nothing_are_nothing() -> None:
    assert operations(check(lambda x: x.view(2, 3, 4).contiguous()[:, :].expand(2, -1, -1), X)) == []


def test_symbolic_sizes() -> None:
    """Shapes that are only known at run time pass through views, ranges, padding, rolling and repetition."""
    size = torch.export.Dim("size", min=3, max=64)

    def function(x: Tensor) -> list[Tensor]:
        n = x.shape[1]
        return [
            x.flatten(1),
            torch.arange(n) * 2,
            x.new_zeros(n, 3),
            x.new_ones(n, n).tril(),
            F.pad(x, (0, 0, 1, 2)),
            x.roll(1, 1),
            x.repeat(1, 2, 1),
            x[:, 1:] * 2,
            x[:, -1],
            torch.cat([x, x], 1),
            x.flip(1),
        ]

    graph = imported(function, X, dynamic_shapes=(({1: size},),))
    for length in (3, 7):
        x = randn(2, length, 4, seed=length)
        for result, expected in zip(Interpreter(graph)(x), function(x), strict=True):
            assert torch.equal(result, expected)
