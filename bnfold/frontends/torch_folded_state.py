"""The state dict of a folded module, loaded into a new module of the same class.

Where the state has no statistics of a BatchNorm, the fold took it out: what is left of it takes its place. Where it has
a bias that the module lacks, the fold added it. `load_state_dict(strict=False)` would pass over both, and be wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from bnfold.frontends.torch_read_batchnorm import TorchBatchNorm, rest_of
from bnfold.frontends.torch_states import load_state
from bnfold.frontends.torch_write import take_out

if TYPE_CHECKING:
    from torch import Tensor, nn


def load_folded_state(module: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Give `module`, as its class builds it, the form and the numbers of a folded one.

    Args:
        module: The module; it changes.
        state: The state dict of a folded module of the same class.
        where: The file, for messages.

    Raises:
        ModelError: It is the state dict of another module.
    """
    for path, part in list(module.named_modules()):
        rest = rest_of(part)
        if path and rest is not None and _has_statistics(part) and f"{path}.running_mean" not in state:
            take_out(module, TorchBatchNorm(path, rest))
    parts = dict(module.named_modules())
    for name, tensor in state.items():
        path, _, last = name.rpartition(".")
        if path in parts and last in ("weight", "bias") and parts[path]._parameters.get(last, tensor) is None:
            _add(parts[path], last, tensor)
    load_state(module, state, where)


def _has_statistics(part: nn.Module) -> bool:
    return part._buffers.get("running_mean") is not None


def _add(part: nn.Module, name: str, tensor: Tensor) -> None:
    """A parameter that its class leaves out, like the one beside it."""
    from torch import nn  # noqa: PLC0415

    like = next(part.parameters(recurse=False), tensor)
    place = tensor.new_empty(tensor.shape, dtype=like.dtype, device=like.device)
    part.register_parameter(name, nn.Parameter(place, requires_grad=like.requires_grad))
    if hasattr(part, "affine"):  # a BatchNorm that took up another one
        part.affine = True  # type: ignore[assignment]
