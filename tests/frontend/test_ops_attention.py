"""Scaled dot-product attention in its variants, and the layers made of it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.frontend.operators import check, imported, operations, randn
from whet.errors import CaptureError, UnsupportedOpError
from whet.frontend import import_model
from whet.ir import Interpreter

Q, K, V = randn(2, 4, 5, 8), randn(2, 4, 6, 8, seed=1), randn(2, 4, 6, 7, seed=2)
X = randn(2, 3, 8)
SEEN = torch.rand((5, 6), generator=torch.Generator().manual_seed(0)) > 0.4
SEEN[0] = False
attend = F.scaled_dot_product_attention
aten = torch.ops.aten


def test_attention_stays_whole() -> None:
    graph = check(
        lambda q, k, v: [
            attend(q, k, v),
            attend(q, k, v, is_causal=True, scale=0.3),
            attend(q[0], k[0], v[0]),
            attend(q[0, 0], k[0, 0], v[0, 0]),
        ],
        Q, K, V,
    )  # fmt: skip
    assert operations(graph).count("attention") == 4
    assert "softmax" not in operations(graph)


def test_masks() -> None:
    added = torch.zeros(5, 6).masked_fill(~SEEN, -math.inf)
    check(
        lambda q, k, v, seen, added, bias: [attend(q, k, v, seen), attend(q, k, v, added), attend(q, k, v, bias)],
        Q, K, V, SEEN, added, randn(2, 1, 5, 6),
    )  # fmt: skip


@pytest.mark.parametrize("groups", [1, 2])
def test_query_heads_share_key_heads(groups: int) -> None:
    check(lambda q, k, v: attend(q, k, v, enable_gqa=True), Q, K[:, :groups], V[:, :groups])


def test_a_single_head_is_repeated() -> None:
    check(lambda q, k, v: [attend(q[:, :1], k, v), attend(q, k[:, :1], v), attend(q, k, v[:, :1])], Q, K, V)


def test_fused_kernels_of_decomposed_programs() -> None:
    def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> list[Tensor]:
        return [
            aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, True)[0],
            aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, attn_mask=mask, scale=0.2)[0],
            aten._scaled_dot_product_attention_math(q, k, v, mask)[0],
        ]

    graph = check(fused, Q, K, K, randn(5, 6))
    assert operations(graph).count("attention") == 3


def test_the_other_result_of_a_fused_kernel_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedOpError, match=r"flash_attention_for_cpu.default \(its result 1\)"):
        imported(lambda q: aten._scaled_dot_product_flash_attention_for_cpu(q, q, q)[1], Q)


def test_dropout_in_attention_is_refused() -> None:
    with pytest.raises(CaptureError, match=r"0\.5.*eval\(\)"):
        imported(lambda q, k, v: attend(q, k, v, dropout_p=0.5), Q, K, V)


def test_multi_head_layers() -> None:
    hidden = torch.tensor([[False, False, True], [False, False, False]])

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.MultiheadAttention(8, 2, batch_first=True)
            self.other = nn.MultiheadAttention(8, 2, kdim=5, vdim=4, bias=False, add_bias_kv=True)

        def forward(self, x: Tensor, hidden: Tensor, k: Tensor, v: Tensor) -> list[Tensor]:
            masked, _ = self.own(x, x, x, key_padding_mask=hidden, need_weights=False)
            return [*self.own(x, x, x), masked, *self.other(x, k, v)]

    with torch.no_grad():
        check(Layers(), X, hidden, randn(4, 3, 5), randn(4, 3, 4))


def test_transformer_layers() -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu", norm_first=True)
    graph = check(nn.TransformerEncoder(encoder, 2, enable_nested_tensor=False), X)
    assert operations(graph).count("attention") == 2
    check(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), X, randn(2, 4, 8))


@pytest.mark.parametrize("norm_first", [False, True])
def test_fused_encoder_layer_of_an_exported_program(norm_first: bool) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=norm_first).eval()
    attention, parts = layer.self_attn, (layer.norm1, layer.norm2, layer.linear1, layer.linear2)
    weights = [attention.in_proj_weight, attention.in_proj_bias, attention.out_proj.weight, attention.out_proj.bias]
    others = [parameter.detach() for part in parts for parameter in (part.weight, part.bias)]
    hidden = torch.tensor([[False, False, True], [False, False, False]])

    def fused(x: Tensor, hidden: Tensor) -> list[Tensor]:
        fixed = (8, 2, *(weight.detach() for weight in weights), False, norm_first, 1e-5, *others)
        plain = aten._transformer_encoder_layer_fwd(x, *fixed)
        masked = aten._transformer_encoder_layer_fwd(x, *fixed, hidden, 1)
        # what torch computes at padded positions is arbitrary
        return [plain, masked.masked_fill(hidden[:, :, None], 0.0)]

    check(fused, X, hidden)


def test_fused_multi_head_gives_its_weights() -> None:
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    weights = [layer.in_proj_weight, layer.in_proj_bias, layer.out_proj.weight, layer.out_proj.bias]
    parameters = [weight.detach() for weight in weights]
    check(lambda x: list(aten._native_multi_head_attention(x, x, x, 8, 2, *parameters)), X)


def test_the_fast_path_is_as_before_after_capture() -> None:
    assert torch.backends.mha.get_fastpath_enabled()
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    graph = import_model(layer, (X,))
    assert torch.backends.mha.get_fastpath_enabled()
    torch.testing.assert_close(Interpreter(graph)(X)[0], layer(X))
