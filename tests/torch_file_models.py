"""A small live network and functions that build it, or do not, for the tests of PyTorch files: `--model` names them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch_models import alive
from torch_models import sample as numbers


class Net(nn.Module):
    """A BatchNorm behind a convolution without bias, and one without gamma and beta behind a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.mid = nn.Linear(8, 6)
        self.norm = nn.BatchNorm1d(6, affine=False)
        self.head = nn.Linear(6, 4)

    def forward(self, image: Tensor) -> Tensor:
        """Scores, (N, 4)."""
        features = self.pool(torch.relu(self.bn(self.conv(image)))).flatten(1)
        return self.head(torch.relu(self.norm(self.mid(features))))


def net() -> Net:
    """As it is before training, in training mode."""
    return Net()


def live(dtype: torch.dtype = torch.float32) -> Net:
    """In eval mode, with numbers of no special form, the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = Net()
    alive(module)
    return module.to(dtype)


def sample(dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers."""
    return numbers(dtype=dtype)


class Pair(nn.Module):
    """Two inputs and an option."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.side = nn.Linear(5, 4)

    def forward(self, image: Tensor, side: Tensor, scale: float = 2.0) -> Tensor:
        """(N, 4)."""
        return self.bn(self.conv(image)).mean((2, 3)) * scale + self.side(side)


def pair() -> Pair:
    return Pair()


def other() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3))


def broken() -> nn.Module:
    raise ValueError("no such weights")


def no_module() -> int:
    return 3


built = Net()
