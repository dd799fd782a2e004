"""MobileNetV2 (Sandler et al. 2018, arXiv:1801.04381) in plain PyTorch; keys as in published weights."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

# Table 2 of the paper: expansion t, channels c, repeats n, first stride s.
BLOCKS = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280


def conv_norm_relu6(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution with 'same'-like padding, batch norm, ReLU6."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU6(inplace=True),
    )


class InvertedResidual(nn.Module):
    """Expand (1x1), filter each channel (3x3), project (1x1) without activation; skip where shapes allow."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = inputs * expansion
        expand = [conv_norm_relu6(inputs, hidden, 1)] if expansion != 1 else []
        self.skip = stride == 1 and inputs == outputs
        self.conv = nn.Sequential(
            *expand,
            conv_norm_relu6(hidden, hidden, 3, stride, groups=hidden),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H/stride, W/stride)."""
        y = cast(Tensor, self.conv(x))
        return x + y if self.skip else y


class MobileNetV2(nn.Module):
    """Pictures (N, 3, 224, 224), normalized, to class scores (N, classes)."""

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_norm_relu6(3, STEM_CHANNELS, 3, 2)]
        channels = STEM_CHANNELS
        for expansion, outputs, repeats, first_stride in BLOCKS:
            for index in range(repeats):
                stride = first_stride if index == 0 else 1
                layers.append(InvertedResidual(channels, outputs, stride, expansion))
                channels = outputs
        layers.append(conv_norm_relu6(channels, HEAD_CHANNELS, 1))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(HEAD_CHANNELS, classes))

    def forward(self, x: Tensor) -> Tensor:
        """Scores before softmax."""
        pooled = self.features(x).mean((2, 3))
        return cast(Tensor, self.classifier(pooled))
