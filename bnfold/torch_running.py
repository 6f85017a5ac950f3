"""Runs of PyTorch modules on seeded inputs: outputs as arrays in float64, whatever dtype they were computed in."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.comparison import UNIT_ROUNDOFF
from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_capture import copied, grown
from bnfold.frontends.torch_decisions import forced

if TYPE_CHECKING:
    from torch import nn

#: How far the inputs are moved to see what roundings of them do.
ROUNDINGS = 64.0


class Stored(np.ndarray[Any, Any]):
    """An output in float64 that knows the dtype it was computed in."""

    dtype_name = "float64"


def samples(module: nn.Module, inputs: Arguments, seed: int, notes: list[str]) -> Iterator[Arguments]:
    """The example's sizes, and another size of image where the module takes it."""
    yield drawn(inputs, seed)
    larger = grown(module, inputs)
    if larger is not inputs:
        yield drawn(larger, seed + 2)
    else:
        notes.append("The module takes no other sizes than the example's.")


def drawn(inputs: Arguments, seed: int) -> Arguments:
    """The same with standard normal numbers in the place of every floating-point one."""
    import torch  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    generator = torch.Generator().manual_seed(seed)

    def draw(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
            return leaf
        numbers = torch.randn(leaf.shape, generator=generator, dtype=torch.float64)
        fresh = torch.empty_like(leaf, memory_format=torch.preserve_format, requires_grad=False)
        return fresh.copy_(numbers)

    found: Arguments = _pytree.tree_map(draw, inputs)
    return found


def cast(inputs: Arguments) -> Arguments:
    """The same in float64."""
    import torch  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    def widen(leaf: Any) -> Any:
        return leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf

    found: Arguments = _pytree.tree_map(widen, inputs)
    return found


def moved(inputs: Arguments) -> Arguments:
    """Every second number larger by 64 roundings, in float64."""
    import torch  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    def nudge(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
            return leaf
        signs = 1 - 2 * (torch.arange(leaf.numel(), device=leaf.device) % 2).reshape(leaf.shape)
        return leaf * (1 + ROUNDINGS * UNIT_ROUNDOFF["float64"] * signs)

    found: Arguments = _pytree.tree_map(nudge, inputs)
    return found


def tensors(inputs: Any) -> list[Any]:
    """The tensors among what a forward pass takes or gives, in order."""
    import torch  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    return [leaf for leaf in _pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]


def run(
    module: nn.Module,
    inputs: Arguments,
    seed: int,
    landmarks: Mapping[str, str] = MappingProxyType({}),
    path: tuple[bool, ...] | None = None,
) -> tuple[list[Any], dict[str, list[Any]]]:
    """The outputs of a copy in float64, and those of the landmarks; whatever is random is the same each time.

    Args:
        module: The module.
        inputs: What its forward pass takes.
        seed: Of whatever is random.
        landmarks: Modules whose outputs are wanted, by path.
        path: What the forward pass decides by the numbers of tensors; None to let it decide.
    """
    import torch  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    running = copied(module)  # a BatchNorm in training mode changes its statistics
    seen: dict[str, list[Any]] = {}
    for name in landmarks:
        running.get_submodule(name).register_forward_hook(
            lambda _m, _i, out, name=name: seen.__setitem__(name, arrays(out))
        )
    sample: Arguments = _pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, inputs)
    with torch.random.fork_rng(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        with nullcontext() if path is None else forced(path):
            outputs = sample.call(running)
        return arrays(outputs), seen


def arrays(outputs: Any) -> list[Any]:
    """The tensors among what a forward pass gives, in float64."""
    found = []
    for tensor in tensors(outputs):
        array = np.array(tensor.detach().to("cpu").double().numpy()).view(Stored)
        array.dtype_name = str(tensor.dtype).removeprefix("torch.")
        found.append(array)
    return found
