"""Bytes of the values of a captured graph for inputs of given sizes: `prod(shape) * itemsize`, symbols replaced."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.frontends.torch_tensors import to_array

if TYPE_CHECKING:
    from torch.fx import Node

#: What every symbol stands for.
Bindings = Mapping[Any, int]


def bindings(inputs: Iterable[Node], sizes: Mapping[str, tuple[int, ...]]) -> Bindings:
    """The symbols among the shapes of the inputs, as inputs of `sizes` have them."""
    found: dict[Any, int] = {}
    for node in inputs:
        shape = getattr(node.meta.get("val"), "shape", ())
        for symbolic, size in zip(shape, sizes.get(node.name, ()), strict=False):
            expression = _expression(symbolic)
            if getattr(expression, "is_Symbol", False):
                found[expression] = size
    return found


def bytes_of(node: Node, known: Bindings) -> int | None:
    """Bytes of the array of a value, 0 for a number, None where they are not known: lists, data-dependent sizes."""
    import torch  # noqa: PLC0415

    value = node.meta.get("val")
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool | int | float):
        return 0
    if not isinstance(value, torch.Tensor):
        return None
    empty = to_array(torch.empty(0, dtype=value.dtype)) if value.layout is torch.strided else None
    sizes = [_number(size, known) for size in value.shape]
    if not isinstance(empty, np.ndarray) or None in sizes:
        return None
    return math.prod(size for size in sizes if size is not None) * empty.itemsize


def _number(size: Any, known: Bindings) -> int | None:
    if isinstance(size, int):
        return size
    found = _expression(size).subs(known)
    return int(found) if found.is_Integer else None


def _expression(size: Any) -> Any:
    """The expression of a symbolic size."""
    return size.node.expr if hasattr(size, "node") else None
