"""For which sizes of inputs a capture holds, as sentences for reports and as numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bnfold.frontends.torch_arguments import Arguments
from bnfold.frontends.torch_capture import Captured, fixed, grown, shape_of

if TYPE_CHECKING:
    from torch import nn

#: Sizes of 0 and 1 torch.export never takes for others.
_SMALLEST = 2


def fixed_sizes(module: nn.Module, captured: Captured) -> tuple[str, ...]:
    """Sizes of inputs that the capture holds to be fixed, though the module takes others; one sentence each."""
    varied = grown(module, captured.inputs, fixed=fixed(captured.program))
    nodes = {node.name: node for node in captured.nodes}
    names = [n for n in captured.program.graph_signature.user_inputs if isinstance(n, str) and shape_of(nodes[n])]
    leaves = [_leaves(values) for values in (captured.inputs, varied)]
    return tuple(
        f"captured for axis {axis} of {name} of length {old.shape[axis]} only"
        for name, old, new in zip(names, *leaves, strict=False)
        for axis in range(old.ndim)
        if old.shape[axis] != new.shape[axis]
    )


def _leaves(inputs: Arguments) -> list[Any]:
    import torch  # noqa: PLC0415
    from torch.utils import _pytree  # noqa: PLC0415

    return [leaf for leaf in _pytree.tree_leaves(inputs) if isinstance(leaf, torch.Tensor) and leaf.ndim]


def limits(captured: Captured) -> tuple[str, ...]:
    """Sizes of inputs for which alone the capture holds, because the forward pass asks for them; one sentence each."""
    return tuple(
        f"captured for axis {axis} of {name} from {lower}{'' if upper is None else f' to {upper}'}"
        for name, axis, lower, upper in ranges(captured)
    )


def ranges(captured: Captured) -> Iterator[tuple[str, int, int, int | None]]:
    """The input, the axis, and the least and largest size (None: any) for which alone the capture holds."""
    known = {str(symbol): (str(span.lower), str(span.upper)) for symbol, span in
             captured.program.range_constraints.items()}  # fmt: skip
    names = captured.program.graph_signature.user_inputs
    for node in (node for node in captured.nodes if node.name in names):
        for axis, size in enumerate(shape_of(node) or ()):
            lower, upper = known.get(str(size), ("0", "int_oo"))
            if not isinstance(size, int) and (int(lower) > _SMALLEST or upper != "int_oo"):
                yield node.name, axis, int(lower), None if upper == "int_oo" else int(upper)
