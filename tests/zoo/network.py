"""What a test network is: a recipe that builds it, and the finished file with its float64 reference."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx
import torch

from .threads import one_thread
from .weights import module_with_weights_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import nn


@dataclass(frozen=True)
class Recipe:
    """How to make a network.

    Attributes:
        build: Gives the untrained torch module, (N, 3, H, W) to scores.
        batchnorms: How many BatchNorms the module has, each called once.
        size: Height and width of the calibration images, in pixels.
        exporter: Which of torch's two exporters writes the file.
    """

    build: Callable[[], nn.Module]
    batchnorms: int
    size: int
    exporter: Literal["torchscript", "dynamo"] = "torchscript"


@dataclass(frozen=True)
class Network:
    """A finished network; batch and image size are dynamic in its file.

    Attributes:
        name: Its key in `NETWORKS`.
        recipe: What it was built from.
        path: Its ONNX file, float32, read-only.
        input_name: The name of the only graph input.
    """

    name: str
    recipe: Recipe
    path: Path
    input_name: str

    @property
    def batchnorms(self) -> int:
        """The number of BatchNormalization nodes of the file, which is that of the module's BatchNorms."""
        return self.recipe.batchnorms

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """The shape of one image, (1, 3, H, W)."""
        return 1, 3, self.recipe.size, self.recipe.size

    @property
    def proto(self) -> onnx.ModelProto:
        """The model, read anew at each access, so that a test may change what it gets."""
        return onnx.load(self.path)

    def sample(self, seed: int, *, batch: int = 2, larger: int = 0) -> NDArray[np.float32]:
        """Standard normal images, (batch, 3, H + larger, W), float32; `larger` is a multiple of 32."""
        _, channels, height, width = self.input_shape
        shape = (batch, channels, height + larger, width)
        return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)

    def module(self) -> nn.Module:
        """A fresh torch module in eval mode with the weights of the file, float32."""
        return module_with_weights_of(self.proto, self.recipe.build)

    def reference(self, x: NDArray[np.float32] | NDArray[np.float64]) -> NDArray[np.float64]:
        """The output of the same weights in torch's float64.

        Args:
            x: Images, (N, 3, H, W), float32 or float64.
        """
        with torch.no_grad(), one_thread():
            y: NDArray[np.float64] = _oracle(self)(torch.from_numpy(x.astype(np.float64))).numpy()
        return y


@functools.lru_cache(maxsize=4)  # all of them together would hold a gigabyte in every worker
def _oracle(network: Network) -> nn.Module:
    return network.module().double()
