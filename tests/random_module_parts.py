"""Layers of a user's own that the sources of random modules import."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class Frozen(nn.Module):
    """A BatchNorm made of buffers, as torchvision's detectors have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean"):
            self.register_buffer(name, torch.randn(channels))
        self.register_buffer("running_var", torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *(1,) * (x.ndim - 2))
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        return x * scale.reshape(shape) + (self.bias - self.running_mean * scale).reshape(shape)


class NormAct(nn.BatchNorm2d):
    """A BatchNorm with its activation, as timm has it."""

    def __init__(self, channels: int, slope: float = 0.0) -> None:
        super().__init__(channels)
        self.act = nn.LeakyReLU(slope, inplace=True) if slope else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class Scale(nn.Module):
    """A number for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.reshape(1, -1, *(1,) * (x.ndim - 2))


class Block(nn.Module):
    """A residual block that reads its own layers in several ways."""

    def __init__(self, channels: int, way: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels) for _ in range(2)])
        self.way = way

    def forward(self, x: Tensor, *, rescale: bool = False) -> Tensor:
        y = self.norm(self.conv(x))
        if self.way == 1:
            y = y + getattr(self, "norm")(self.conv(x))  # noqa: B009  # a name that only the run tells
        if self.way == 2:
            for norm in self.norms:
                y = norm(self.conv(y))
        if self.way == 3:
            y = self.norms[int(x.shape[2] > 6)](y)
        return y.mul_(2) + x.expand_as(y) if rescale else torch.relu_(y) + x


def doubled(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
    """A forward hook that changes what the layer gives."""
    return output * 2 + 1
