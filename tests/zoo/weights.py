"""The weights of an exported file back in a torch module: W_torch = W_onnx, matched by name, none missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import torch
from onnx import numpy_helper

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn


def module_with_weights_of(proto: onnx.ModelProto, build: Callable[[], nn.Module]) -> nn.Module:
    """Build a module and fill it from the initializers of the file exported from it.

    Args:
        proto: The file; its initializers carry the names of the module's parameters and buffers.
        build: Gives a module of the same architecture.

    Returns:
        The module in eval mode, float32.

    Raises:
        RuntimeError: A name or shape is missing or left over, so the file is not of that module.
    """
    with torch.device("meta"):  # neither draws nor allocates the weights that are replaced at once
        module = build()
    state: dict[str, Tensor] = {
        initializer.name: torch.from_numpy(numpy_helper.to_array(initializer).copy())
        for initializer in proto.graph.initializer
    }
    for name in module.state_dict():
        if name.endswith("num_batches_tracked"):  # counts training batches; no inference file keeps it
            state[name] = torch.tensor(1)
    module.load_state_dict(state, strict=True, assign=True)
    return module.eval()
