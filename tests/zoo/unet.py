"""A small U-Net: BatchNorm behind transposed convolutions and, on request, behind the Concat of a skip connection.

down:  (Conv3x3 -> BN -> ReLU) x 2, then MaxPool 2x2
up:    ConvTranspose2x2, stride 2 -> BN -> ReLU -> Concat(skip, .) [-> BN -> Conv1x1] -> (Conv3x3 -> BN -> ReLU) x 2
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


def _conv_bn_relu(inputs: int, outputs: int) -> nn.Sequential:
    # padded and without a bias, as U-Nets are usually written; ConvTranspose below keeps its bias
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _double(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(_conv_bn_relu(inputs, outputs), _conv_bn_relu(outputs, outputs))


class _Up(nn.Module):
    """Twice the size, joined with the skip connection: (N, 2c, h, w) and (N, c, 2h, 2w) to (N, c, 2h, 2w)."""

    def __init__(self, channels: int, *, norm_after_concat: bool) -> None:
        super().__init__()
        transposed = nn.ConvTranspose2d(2 * channels, channels, 2, stride=2)
        self.enlarge = nn.Sequential(transposed, nn.BatchNorm2d(channels), nn.ReLU())
        joined = 2 * channels
        # the 1x1 convolution sees no padding, so it can absorb the whole affine of the BatchNorm before it
        self.join = (
            nn.Sequential(nn.BatchNorm2d(joined), nn.Conv2d(joined, joined, 1)) if norm_after_concat else nn.Identity()
        )
        self.refine = _double(joined, channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        joined: Tensor = self.refine(self.join(torch.cat([skip, self.enlarge(x)], dim=1)))
        return joined


class UNet(nn.Module):
    """Three resolutions and two classes: (N, 3, H, W) to (N, 2, H, W), H and W multiples of 4."""

    def __init__(self, *, norm_after_concat: bool, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        self.first = _double(3, widths[0])
        self.down = nn.ModuleList([nn.Sequential(nn.MaxPool2d(2), _double(a, b)) for a, b in pairwise(widths)])
        self.up = nn.ModuleList([_Up(c, norm_after_concat=norm_after_concat) for c in reversed(widths[:-1])])
        self.last = nn.Conv2d(widths[0], 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        levels = [self.first(x)]
        for down in self.down:
            levels.append(down(levels[-1]))
        y = levels.pop()
        for up in self.up:
            y = up(y, levels.pop())
        scores: Tensor = self.last(y)
        return scores
