"""Single nodes of an exported program with other constants, bounds or windows, and chains of new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.affine import Float64Array
from bnfold.embedding import Geometry
from bnfold.frontends.torch_program import ProgramEditor
from bnfold.frontends.torch_program_constants import Numbers
from bnfold.graph import Bounds
from bnfold.leftover_forms import Part

if TYPE_CHECKING:
    from torch.fx import Node

#: The aten operator of a part, and what its constants are called.
_PARTS = {"Sub": ("sub", ("mean",)), "Mul": ("mul", ("scale",)), "Add": ("add", ("shift",)),
          "Conv": ("conv", ("scale", "shift")), "Identity": ("clone", ())}  # fmt: skip


def add_parts(editor: ProgramEditor, parts: tuple[Part, ...], place: tuple[Node, Node], like: Numbers) -> Node:
    """Put a chain of operators on a value; returns the last.

    Args:
        editor: The program.
        parts: The operators.
        place: The value, and the node behind which they stand, with the type and the shape of all of them.
        like: The type of their constants, and what is put before their names.
    """
    data, behind = place
    node = behind
    for part in parts:
        called = zip(_PARTS[part.kind][1], part.constants, strict=False)
        constants = [
            editor.constants.new(Numbers(values, like.dtype, like.stem + name), behind) for name, values in called
        ]
        data = node = editor.insert(_operator(part), (data, *_arguments(part, constants)), node, behind)
    return data


def _operator(part: Part) -> Any:
    import torch  # noqa: PLC0415

    name = _PARTS[part.kind][0]
    if part.kind == "Conv":
        return getattr(torch.ops.aten, f"conv{part.constants[0].ndim - 2}d").default
    packet = getattr(torch.ops.aten, name)
    return packet.default if part.kind == "Identity" else packet.Tensor


def _arguments(part: Part, constants: list[Node]) -> tuple[Any, ...]:
    """What the operator reads besides the data; of a Conv stride, padding, dilation and groups too."""
    if part.kind != "Conv":
        return tuple(constants)
    channels, _, *kernel = part.constants[0].shape
    ones, zeros = [1] * len(kernel), [0] * len(kernel)
    return constants[0], constants[1] if len(constants) > 1 else None, ones, zeros, ones, channels


def set_operand(editor: ProgramEditor, node: Node, name: str, numbers: Numbers) -> None:
    """Give a sum, a difference, a product or a quotient another constant, and no further factor (alpha)."""
    old = editor.argument(node, name)
    others = {other: editor.argument(node, other) for other in ("self", "other")}
    is_number, is_scalar = isinstance(old, int | float), numbers.values.ndim == 0
    packet: Any = node.target.overloadpacket  # type: ignore[union-attr]
    node.target = packet.Scalar if is_number and is_scalar and _is_reversed(packet) else packet.Tensor
    node.args, node.kwargs = (others["self"], others["other"]), {}
    if is_number and is_scalar:
        editor.set_argument(node, name, editor.constants.number(numbers.values, numbers.dtype))
    elif is_number:
        editor.set_argument(node, name, editor.constants.new(numbers, node))
    else:
        editor.set_constant(node, name, numbers)


def _is_reversed(packet: Any) -> bool:
    """`rsub` takes a number by another overload than a tensor."""
    return "rsub" in str(packet)


def set_bounds(editor: ProgramEditor, node: Node, bounds: Bounds, dtype: np.dtype[Any], stem: str) -> None:
    """Make a node `clamp(data, low, high)`, with numbers or, where a bound varies, with tensors."""
    import torch  # noqa: PLC0415

    data = editor.argument(node, "self")
    sides = [side if np.isfinite(side).any() else None for side in (bounds.low, bounds.high)]
    if bounds.varies:
        node.target = torch.ops.aten.clamp.Tensor
        new = [None if side is None else editor.constants.new(Numbers(_trimmed(side), dtype, stem + name), node)
               for side, name in zip(sides, ("low", "high"), strict=True)]  # fmt: skip
        node.args, node.kwargs = (data, *new), {}
    else:
        node.target = torch.ops.aten.clamp.default
        node.args = (data, *(None if side is None else editor.constants.number(side, dtype) for side in sides))
        node.kwargs = {}


def _trimmed(side: Float64Array) -> Float64Array:
    """Without leading axes of length 1, which broadcasting adds by itself."""
    while side.ndim > 1 and side.shape[0] == 1:
        side = side[0]
    return side


def set_geometry(editor: ProgramEditor, node: Node, geometry: Geometry, groups: int) -> None:
    """Give a convolution another window; pads that differ before and behind go to an operator of their own."""
    if not geometry.kernel:
        return  # a matrix product
    packet: Any = node.target.overloadpacket  # type: ignore[union-attr]
    if hasattr(packet, "padding"):  # where padding may be a word
        data, weight, bias = (editor.argument(node, name) for name in ("input", "weight", "bias"))
        node.target, node.args, node.kwargs = packet.default, (data, weight, bias), {}
    pads = geometry.begins
    if geometry.begins != geometry.ends:
        data = editor.argument(node, "input")
        listed = [pad for pair in zip(geometry.begins, geometry.ends, strict=True) for pad in reversed(pair)][::-1]
        editor.set_argument(node, "input", editor.padded(data, listed, node))
        pads = (0,) * len(pads)
    window = {"stride": geometry.strides, "padding": pads, "dilation": geometry.dilations}
    for name, sizes in window.items():
        editor.set_argument(node, name, list(sizes))
    editor.set_argument(node, "groups", groups)
