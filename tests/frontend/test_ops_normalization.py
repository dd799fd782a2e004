"""Normalizations in all their forms, and softmax."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.frontend.operators import Function, check, imported, operations, randn
from whet.errors import CaptureError

X = randn(2, 4, 5)
PICTURE = randn(2, 4, 5, 6)
WEIGHT, BIAS, MEAN = randn(4), randn(4, seed=1), randn(4, seed=2)
VARIANCE = torch.tensor([0.5, 1.0, 2.0, 0.1])
aten = torch.ops.aten


class Layers(nn.Module):
    """Several layers on one input, with statistics and weights that are not the initial ones."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        generator = torch.Generator().manual_seed(3)
        for tensor in [*self.parameters(), *self.buffers()]:
            if tensor.is_floating_point():
                tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [layer(x) for layer in self.layers]


BATCH = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}


@pytest.mark.parametrize("spatial", BATCH)
def test_batch_norm(spatial: int) -> None:
    norm = BATCH[spatial]
    layers = Layers(norm(4), norm(4, affine=False, eps=1e-3), norm(4, track_running_stats=False))
    graph = check(layers, randn(2, 4, *[5] * spatial))
    assert operations(graph).count("batch_norm") == 2
    assert not graph.state


def test_batch_norm_of_vectors() -> None:
    check(Layers(nn.BatchNorm1d(4)), randn(3, 4))


@pytest.mark.parametrize("spatial", INSTANCE)
def test_instance_norm(spatial: int) -> None:
    norm = INSTANCE[spatial]
    layers = Layers(norm(4), norm(4, affine=True), norm(4, affine=True, track_running_stats=True))
    graph = check(layers, randn(2, 4, *[5] * spatial))
    assert operations(graph).count("group_norm") == 2
    assert operations(graph).count("batch_norm") == 1
    check(Layers(norm(4)), randn(4, *[5] * spatial))


def test_batch_norm_in_every_form_of_aten() -> None:
    fixed = (WEIGHT, BIAS, MEAN, VARIANCE)

    def forms(x: Tensor) -> list[Tensor]:
        return [
            aten.batch_norm(x, *fixed, False, 0.1, 1e-5, False),
            aten.batch_norm(x, None, None, MEAN, VARIANCE, False, 0.1, 1e-5, False),
            aten.native_batch_norm(x, *fixed, False, 0.1, 1e-5)[0],
            aten._native_batch_norm_legit_no_training(x, *fixed, 0.1, 1e-5)[0],
            aten._native_batch_norm_legit(x, WEIGHT, BIAS, True, 0.1, 1e-5)[0],
        ]

    check(forms, PICTURE)


def test_the_empty_statistics_of_inference() -> None:
    check(
        lambda x: list(aten._native_batch_norm_legit_no_training(x, WEIGHT, BIAS, MEAN, VARIANCE, 0.1, 1e-5)), PICTURE
    )


def test_softmax_of_rows_that_see_nothing() -> None:
    x = X.masked_fill(torch.arange(4)[:, None] == 1, -torch.inf)
    check(lambda x: [aten._safe_softmax(x, -1), aten._safe_softmax(x, 1)], x)


def test_a_program_exported_in_training_mode_is_refused() -> None:
    def training(x: Tensor) -> Tensor:
        result: Tensor = aten._native_batch_norm_legit_functional(x, WEIGHT, BIAS, MEAN, VARIANCE, True, 0.1, 1e-5)[0]
        return result

    with pytest.raises(CaptureError, match=r"training mode.*eval\(\)"):
        imported(training, PICTURE)


OTHERS: dict[str, tuple[Function, tuple[Tensor, ...]]] = {
    "group": (Layers(nn.GroupNorm(2, 4), nn.GroupNorm(4, 4, affine=False), nn.GroupNorm(1, 4)), (X,)),
    "native_group": (lambda x: aten.native_group_norm(x, WEIGHT, BIAS, 2, 4, 5, 2, 1e-5)[0], (X,)),
    "layer": (Layers(nn.LayerNorm(5), nn.LayerNorm([4, 5]), nn.LayerNorm(5, elementwise_affine=False)), (X,)),
    "layer_without_bias": (Layers(nn.LayerNorm(5, bias=False)), (X,)),
    "native_layer": (lambda x: aten.native_layer_norm(x, [5], None, None, 1e-5)[0], (X,)),
    "rms": (Layers(nn.RMSNorm(5), nn.RMSNorm([4, 5], eps=1e-3), nn.RMSNorm(5, elementwise_affine=False)), (X,)),
    "local_response": (Layers(nn.LocalResponseNorm(3), nn.LocalResponseNorm(2, 0.1, 0.5, 2.0)), (PICTURE.abs(),)),
    "normalize": (lambda x: [F.normalize(x, dim=1), F.normalize(x, p=1, dim=-1), F.normalize(x, p=3)], (X,)),
    "softmax": (lambda x: [x.softmax(1), x.log_softmax(-1), F.softmin(x, 0), x[0, 0, 0].softmax(0)], (X,)),
    "softmax_with_dtype": (lambda x: [x.softmax(1, dtype=torch.float32)], (X.half(),)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_norms(name: str) -> None:
    check(OTHERS[name][0], *OTHERS[name][1])


def test_norms_stay_whole() -> None:
    graph = check(Layers(nn.LayerNorm(5), nn.RMSNorm(5), nn.GroupNorm(2, 4)), X)
    assert sorted(operations(graph)) == ["group_norm", "layer_norm", "rms_norm"]


def test_reparametrized_weights() -> None:
    weight_norm = nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 3, 3))
    spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 3)).eval()
    check(lambda x: [weight_norm(x), spectral(x)], X)
    check(lambda x, g: torch._weight_norm(x, g, 0), X, randn(2, 1, 1))


def test_statistics_may_be_wider_than_the_input() -> None:
    x = PICTURE.bfloat16()
    graph = imported(lambda x: F.batch_norm(x, MEAN, VARIANCE, WEIGHT, BIAS), x)
    assert str(graph.outputs[0].type).startswith("bf16")
