"""Small modules written as functions: for the tests of PyTorch modules and for the benchmarks of folders of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Net(nn.Module):
    """A module whose forward pass is a function of itself and x."""

    def __init__(self, code: Callable[[Any, Tensor], Any], **parts: nn.Module) -> None:
        super().__init__()
        self.code = code
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        """What the function makes of x."""
        return self.code(self, x)


def conv(inputs: int = 3, outputs: int = 4, **options: int) -> nn.Conv2d:
    """A 3x3 convolution without bias."""
    return nn.Conv2d(inputs, outputs, 3, bias=False, **options)
