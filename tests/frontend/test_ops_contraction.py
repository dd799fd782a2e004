"""Linear layers, matrix products, Einstein sums and convolutions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.frontend.operators import Function, check, integers, operations, randn

A, B = randn(3, 4), randn(4, 5, seed=1)
V, W = randn(4, seed=2), randn(3, seed=3)
BATCH_A, BATCH_B = randn(2, 3, 4), randn(2, 4, 5, seed=1)
INTEGERS = integers(3, 4)

PRODUCTS: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    "mm": (lambda a, b: [a @ b, torch.mm(a, b), a.mm(b).t()], (A, B)),
    "mm_of_integers": (lambda a, b: [a @ b, torch.addmm(b[:3], a, b, beta=2, alpha=3)], (INTEGERS, INTEGERS.T)),
    "bmm": (lambda a, b: [torch.bmm(a, b), torch.matmul(a, b[0])], (BATCH_A, BATCH_B)),
    "matmul_broadcasts": (torch.matmul, (randn(2, 1, 3, 4), randn(5, 4, 3))),
    "vectors": (
        lambda a, v, w: [torch.mv(a, v), a @ v, w @ a, v @ v, torch.dot(v, v), torch.vdot(v, v), torch.inner(a, v)],
        (A, V, W),
    ),
    "batches_of_vectors": (lambda a, v: [a @ v, v[:3] @ a], (BATCH_A, V)),
    "outer": (lambda v, w: [torch.outer(v, w), torch.ger(v, w), torch.kron(v, w)], (V, W)),
    "add_products": (
        lambda a, b, v, w: [
            torch.addmv(w, a, v, beta=0.5, alpha=2),
            torch.addmm(b[0], a, b, beta=0.5, alpha=2),
            torch.addmm(b[:3], a, b, beta=0),
            torch.addr(a, w, v, alpha=3),
        ],
        (A, B, V, W),
    ),
    "add_batches": (
        lambda x, a, b: [torch.baddbmm(x, a, b, beta=2, alpha=3), torch.addbmm(x[0], a, b)],
        (randn(2, 3, 5), BATCH_A, BATCH_B),
    ),
    "composed": (
        lambda a, b, c: [torch.tensordot(a, b, ([1], [0])), torch.linalg.multi_dot([a, b, b.T]), c.matrix_power(3)],
        (A, B, randn(3, 3)),
    ),
    "linear": (
        lambda x, w, v, b: [F.linear(x, w), F.linear(x, w, b), F.linear(x[0, 0], w), F.linear(x, v)],
        (BATCH_A, randn(5, 4), V, randn(5)),
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name: str) -> None:
    check(PRODUCTS[name][0], *PRODUCTS[name][1])


def test_beta_of_zero_forgets_even_nan() -> None:
    start = torch.full((3, 5), torch.nan)
    check(lambda x, a, b: torch.addmm(x, a, b, beta=0), start, A, B)


def test_mixture_of_experts() -> None:
    """Rows of x in groups, each group times its own matrix; rows after the last group are zero."""
    experts, ends = randn(3, 4, 5), torch.tensor([2, 2, 6], dtype=torch.int32)

    @torch.library.custom_op("transformers::grouped_mm_fallback", mutates_args=())
    def grouped(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
        parts = [x[start:end] @ w for start, end, w in zip([0, *offs[:-1]], offs, weight, strict=True)]
        return torch.cat([*parts, torch.zeros(len(x) - int(offs[-1]), weight.shape[2])])

    grouped.register_fake(lambda x, weight, offs: x.new_empty(x.shape[0], weight.shape[2]))
    graph = check(lambda x, w, e: grouped(x, w, e), randn(7, 4), experts, ends)
    assert "matmul" in operations(graph)


def test_bilinear_layer() -> None:
    check(nn.Bilinear(3, 4, 5), randn(2, 6, 3), randn(2, 6, 4))


EQUATIONS: dict[str, tuple[Tensor, ...]] = {
    "ij,jk->ik": (A, B),
    "ij,jk": (A, B),
    "ba,b": (A, W),
    "ii->i": (randn(3, 3),),
    "ii": (randn(3, 3),),
    "ijij->j": (randn(2, 3, 2, 3),),
    "...ij,...jk->...ik": (BATCH_A, BATCH_B),
    "...ij,jk": (randn(2, 7, 3, 4), B),
    "...,...->...": (randn(1, 4), A),
    "...i->i": (BATCH_A,),
    "ij,jk->ik ": (randn(3, 1), B),
    "i,j,k->kij": (V, W, V),
    "bhid,bhjd->bhij": (randn(2, 3, 4, 5), randn(2, 3, 6, 5)),
    "ij,j->": (A, V),
    "Ab,bA->bA": (A, A.T),
}


@pytest.mark.parametrize("equation", EQUATIONS)
def test_einsum(equation: str) -> None:
    graph = check(lambda *operands: torch.einsum(equation, *operands), *EQUATIONS[equation])
    assert "einsum" in operations(graph)


CONVOLUTIONS = {
    1: (nn.Conv1d, nn.ConvTranspose1d),
    2: (nn.Conv2d, nn.ConvTranspose2d),
    3: (nn.Conv3d, nn.ConvTranspose3d),
}


@pytest.mark.parametrize("spatial", CONVOLUTIONS)
def test_convolutions(spatial: int) -> None:
    conv, transposed = CONVOLUTIONS[spatial]
    x = randn(2, 4, *[7] * spatial)
    layers = nn.ModuleList(
        [
            conv(4, 6, 3, stride=2, padding=1, dilation=2, groups=2),
            conv(4, 6, 4, padding="same", dilation=2),
            conv(4, 4, 3, padding="valid", groups=4, bias=False),
            conv(4, 6, 3, padding=1, padding_mode="circular"),
            transposed(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2),
            transposed(4, 3, 2, stride=2, bias=False),
        ]
    )

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor) -> list[Tensor]:
            return [layer(x) for layer in self.layers] + [self.layers[0](x[0]), self.layers[4](x[0])]

    graph = check(Layers(), x)
    assert operations(graph).count("conv") == 5
    assert operations(graph).count("conv_transpose") == 3


def test_convolution_in_its_general_form() -> None:
    weight, x = randn(6, 2, 3, 3), randn(2, 4, 7, 7)

    def general(x: Tensor, w: Tensor) -> list[Tensor]:
        plain = torch.convolution(x, w, None, [2, 1], [1, 0], [1, 2], False, [0, 0], 2)
        return [plain, torch.convolution(plain, w, None, [2], [1], [1], True, [1], 2)]

    check(general, x, weight)


def test_convolution_over_time_first() -> None:
    check(lambda x, w, b: torch.conv_tbc(x, w, b, 1), randn(7, 2, 4), randn(3, 4, 5), randn(5))
