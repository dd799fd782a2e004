"""Small models of the kinds that end-to-end tests compile, seeded."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ResidualConvs(nn.Module):
    """Strided, depthwise, pointwise and grouped convolutions with batch norms, a residual, pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 3, 2, 1, bias=False)
        self.stem_norm = nn.BatchNorm2d(24)
        self.depthwise = nn.Conv2d(24, 24, 3, 1, 1, groups=24, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(24)
        self.pointwise = nn.Conv2d(24, 24, 1)
        self.grouped = nn.Conv2d(24, 40, 3, 2, 1, groups=4)
        self.classifier = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        y = F.relu6(self.depthwise_norm(self.depthwise(x)))
        x = F.max_pool2d(self.pointwise(y) + x, 3, 2, 1)
        return self.classifier(F.silu(self.grouped(x)).mean((2, 3)))


class Encoder(nn.Module):
    """One transformer layer over token ids, with a padding mask; any sequence length."""

    def __init__(self, width: int = 32, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embedding = nn.Embedding(50, width)
        self.projections = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.feed_forward = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))

    def forward(self, tokens: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = self.embedding(tokens)
        batch, length, width = x.shape
        parts = self.projections(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(*parts.unbind(0), attn_mask=mask[:, None, None, :])
        x = self.norm(x + self.output(attended.transpose(1, 2).reshape(batch, length, width)))
        x = x + self.feed_forward(x)
        return {"hidden": x, "pooled": x.mean(1)}


class Counter(nn.Module):
    """A running sum and a count of calls, kept in buffers."""

    total: Tensor
    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("total", torch.zeros(4))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.total.add_(x)
        self.calls.add_(1)
        return self.total / self.calls, self.calls + 0


def seeded(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, with batch norms that do something."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in ((module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 1.5)):
                assert tensor is not None
                tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return model.eval()


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual - expected‖ / ‖expected‖."""
    left, right = actual.detach().double(), expected.detach().double()
    return float((left - right).norm() / right.norm())
