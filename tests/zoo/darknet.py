"""Darknet-53 at an eighth of its width: Conv -> BN -> LeakyReLU(0.1), residual stages of 1, 2, 8, 8 and 4 blocks.

Joseph Redmon, Ali Farhadi: YOLOv3, an incremental improvement (2018), table 1.
"""

from __future__ import annotations

from torch import Tensor, nn

_BLOCKS = (1, 2, 8, 8, 4)


def _layer(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, size, stride=stride, padding=size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1))


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_layer(channels, channels // 2, 1), _layer(channels // 2, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        total: Tensor = x + self.body(x)
        return total


class Darknet53(nn.Module):
    """52 convolutions, each with its BatchNorm, and a linear classifier: (N, 3, H, W) to (N, 10)."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        stages = [_layer(3, width, 3)]
        for blocks in _BLOCKS:
            residuals = [_Residual(2 * width) for _ in range(blocks)]
            stages.append(nn.Sequential(_layer(width, 2 * width, 3, stride=2), *residuals))
            width *= 2
        self.features = nn.Sequential(*stages)
        self.classifier = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.classifier(self.features(x))
        return scores
