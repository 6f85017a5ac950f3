"""Writes the new bounds of a clamp: Clip for one number a side, `Min(Max(x, low), high)` for one each channel."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from bnfold.affine import Float64Array
from bnfold.frontends.onnx_editor import Editor, Replacement
from bnfold.frontends.onnx_read_clamp import BOUNDS_ARE_INPUTS, Stored
from bnfold.graph import Bounds


def write_bounds(node: ir.Node, version: int, stored: Stored, bounds: Bounds, editor: Editor) -> None:
    """Give `node`, of operator set `version`, the `bounds`; in place where its operator can hold them.

    Where Clip holds its bounds as float32 attributes, those of another dtype are left to Max and Min.
    """
    if bounds.equals(stored.bounds):
        return
    steps = [(kind, side) for kind, side in _sides(bounds) if side is not None]
    alone = len(steps) == 1 and node.op_type == steps[0][0] and len(node.inputs) == 2
    as_clip = not bounds.varies and (version >= BOUNDS_ARE_INPUTS or stored.dtype.name == "float32")
    if alone:
        editor.set_constant(node, 1 - stored.data, steps[0][1], stored.dtype)
    elif not as_clip:
        chain = [Replacement(kind, kind.lower(), {"bound": side}) for kind, side in steps]
        editor.replace(node, chain, stored.dtype, position=stored.data)
    elif node.op_type == "Clip":
        _rewrite_clip(node, version, stored, bounds, editor)
    elif version < BOUNDS_ARE_INPUTS:
        clip = Replacement("Clip", "clip", {}, _attributes(bounds))
        editor.replace(node, [clip], stored.dtype, position=stored.data)
    else:
        low, high = (side for _, side in _sides(bounds))
        sides = {"low": low} if high is None else {"low": low, "high": high}
        editor.replace(node, [Replacement("Clip", "clip", sides)], stored.dtype, position=stored.data)


def _sides(bounds: Bounds) -> list[tuple[str, Float64Array | None]]:
    """Max with the low bound and Min with the high one; None where there is none."""
    pairs = (("Max", bounds.low), ("Min", bounds.high))
    return [(kind, _trimmed(side) if np.isfinite(side).any() else None) for kind, side in pairs]


def _trimmed(side: Float64Array) -> Float64Array:
    """Without leading axes of length 1, which broadcasting adds by itself."""
    while side.ndim > 1 and side.shape[0] == 1:
        side = side[0]
    return side


def _attributes(bounds: Bounds) -> list[ir.Attr]:
    pairs = (("min", bounds.low), ("max", bounds.high))
    return [ir.AttrFloat32(name, float(np.float32(side))) for name, side in pairs if np.isfinite(side)]


def _rewrite_clip(node: ir.Node, version: int, stored: Stored, bounds: Bounds, editor: Editor) -> None:
    if version < BOUNDS_ARE_INPUTS:
        for name in ("min", "max"):
            node.attributes.pop(name, None)
        node.attributes.update({attribute.name: attribute for attribute in _attributes(bounds)})
        return
    for position, side in ((1, bounds.low), (2, bounds.high)):
        if np.isfinite(side):
            editor.set_constant(node, position, side, stored.dtype)
        else:
            editor.leave_out(node, position)
