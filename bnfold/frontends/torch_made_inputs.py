"""Example inputs of a module from shapes by name: standard normal numbers, seeded, in the dtype of its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bnfold.errors import UsageError
from bnfold.frontends.torch_arguments import Arguments

if TYPE_CHECKING:
    from torch import Tensor, nn

#: The default of a parameter that has none.
MISSING = object()

_WRITE = "write it like --shape {}=1x3x224x224, with the sizes that the model takes"


def made_inputs(module: nn.Module, shapes: Mapping[str, tuple[int, ...]], where: str) -> Arguments:
    """What the forward pass of `module` takes, in its order.

    Args:
        module: The module.
        shapes: Shapes by the names of the parameters of `forward`.
        where: The file, for messages.

    Returns:
        Tensors of the dtype of the module's first floating-point parameter (float32 without one).

    Raises:
        UsageError: An input has no shape, or a shape no input.
    """
    defaults = parameters_of(module)
    names = list(defaults)
    for name in shapes:
        if name not in defaults:
            known = ", ".join(names) or "none"
            raise UsageError(f"forward has no input {name!r}", where=where, remedy=f"its inputs are {known}")
    for name, default in defaults.items():
        if name not in shapes and (default is MISSING or (not shapes and name == names[-1])):
            raise UsageError(f"the shape of input {name!r} is not known", where=where, remedy=_WRITE.format(name))
    if not names:
        raise UsageError("its forward pass takes no named inputs", where=where, remedy="export it to .pt2 or ONNX")
    keyword = keyword_only(module)
    made = {name: _made(module, shape) for name, shape in shapes.items()}
    last = max((names.index(name) for name in shapes if name not in keyword), default=-1)
    args = tuple(made.get(name, defaults[name]) for name in names[: last + 1])
    return Arguments(args, {name: made[name] for name in names if name in made and name in keyword})


def _made(module: nn.Module, shape: tuple[int, ...]) -> Tensor:
    import torch  # noqa: PLC0415

    like = next((p for p in module.parameters() if p.is_floating_point()), torch.empty(0))
    generator = torch.Generator().manual_seed(0)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(like.device, like.dtype)


def parameters_of(module: nn.Module) -> dict[str, Any]:
    """The parameters of `forward` in their order, with their defaults or `MISSING`; not `*args` and `**kwargs`."""
    schema = getattr(module.forward, "schema", None)  # of TorchScript
    if schema is not None:
        found = schema.arguments[1:]
        return {entry.name: entry.default_value if entry.has_default_value() else MISSING for entry in found}
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    entries = [entry for entry in inspect.signature(module.forward).parameters.values() if entry.kind not in kinds]
    return {entry.name: MISSING if entry.default is entry.empty else entry.default for entry in entries}


def keyword_only(module: nn.Module) -> frozenset[str]:
    """The parameters of `forward` that are given by name alone."""
    schema = getattr(module.forward, "schema", None)  # of TorchScript
    if schema is not None:
        return frozenset(entry.name for entry in schema.arguments if entry.kwarg_only)
    entries = inspect.signature(module.forward).parameters.values()
    return frozenset(entry.name for entry in entries if entry.kind is entry.KEYWORD_ONLY)
