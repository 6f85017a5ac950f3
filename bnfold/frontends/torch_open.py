"""Parameters of a forward pass that example inputs leave open: numbers, flags, objects, and what is not given.

A capture takes their values for constants; the module itself can be called with others.
"""

from __future__ import annotations

import dis
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from bnfold.frontends.torch_arguments import Arguments


def open_parameters(module: nn.Module, inputs: Arguments) -> tuple[str, ...]:
    """Names of the parameters that hold anything but tensors, and that the code of the forward pass reads."""
    try:
        bound = inspect.signature(module.forward).bind(*inputs.args, **inputs.kwargs)
    except (TypeError, ValueError):  # code of C, or a call that fails by itself
        return ()
    bound.apply_defaults()
    read = _read(module.forward)
    return tuple(
        name for name, value in bound.arguments.items() if not _is_of_tensors(value) and (read is None or name in read)
    )


def other_values(names: tuple[str, ...]) -> str:
    """What may happen, as a clause about a module."""
    return f"it may be called with other values of {', '.join(names)}"


def _is_of_tensors(value: object) -> bool:
    import torch  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    leaves = _pytree.tree_leaves(value)
    return bool(leaves) and all(isinstance(leaf, torch.Tensor) for leaf in leaves)


def _read(forward: Any) -> frozenset[str] | None:
    """The names that the function reads; None where its own code is not at hand (a decorator's stands before it)."""
    code = getattr(forward, "__code__", None)
    if code is None or hasattr(forward, "__wrapped__"):
        return None
    found: set[str] = set(code.co_cellvars)  # what an inner function reads
    for step in dis.get_instructions(code):
        if "LOAD_" in step.opname:  # two of them may be one step
            found.update(step.argval if isinstance(step.argval, tuple) else (step.argval,))
    return None if "locals" in found else frozenset(name for name in found if isinstance(name, str))
