"""Readers of Slice, Split, Gather, DepthToSpace and SpaceToDepth: which input channel each output channel is."""

from __future__ import annotations

from itertools import accumulate

import numpy as np
import onnx_ir as ir

from bnfold.decision import Reason
from bnfold.frontends.onnx_context import Context, barrier, input_at, int_attr, ints_attr, is_present, str_attr
from bnfold.graph import Dim
from bnfold.views import View
from bnfold.window_views import Select, Spread


def read_slice(node: ir.Node, context: Context) -> View:
    """Slice with constant bounds on the axes that matter; bounds as attributes before version 10."""
    shape = context.shapes.shape(node.inputs[0])
    starts, ends, axes, steps = (_bounds(node, name, i, context) for i, name in enumerate(_BOUNDS, start=1))
    if shape is None or (input_at(node, 3) is not None and axes is None):
        return barrier(node, Reason.AXIS_NOT_PROVEN, "unknown rank or axes")
    count = len(starts or ends or axes or ())
    listed = range(count) if axes is None else [a % len(shape) for a in axes]
    if starts is None or ends is None or (input_at(node, 4) is not None and steps is None):
        return Select({}, frozenset(listed) if axes is not None else frozenset(range(len(shape))), {})
    picks: dict[int, tuple[tuple[int, ...], ...]] = {}
    for axis, start, end, step in zip(listed, starts, ends, steps or (1,) * count, strict=True):
        size = shape[axis]
        if isinstance(size, int):
            picks[axis] = (_sliced(start, end, step, size),)
    return _select(picks, frozenset(listed) - set(picks), shape)


_BOUNDS = ("starts", "ends", "axes", "steps")


def _bounds(node: ir.Node, name: str, position: int, context: Context) -> tuple[int, ...] | None:
    attribute = ints_attr(node, name)
    array = context.constants.array(input_at(node, position))
    return attribute if array is None else tuple(int(v) for v in array.ravel())


def _sliced(start: int, end: int, step: int, size: int) -> tuple[int, ...]:
    """The indices, by ONNX's rule: Python's, but a start before the first is the first where the step is negative."""
    low, high = (0, size) if step > 0 else (-1, size - 1)
    first = min(max(start + size * (start < 0), 0), high)
    last = min(max(end + size * (end < 0), low), high)
    return tuple(range(first, last, step))


def read_split(node: ir.Node, context: Context) -> View:
    """Split into parts of known lengths."""
    shape, value = context.shapes.shape(node.inputs[0]), input_at(node, 1)
    if shape is None:
        return barrier(node, Reason.AXIS_NOT_PROVEN, "unknown rank")
    axis = int_attr(node, "axis", 0) % len(shape)
    array, size = context.constants.array(value), shape[axis]
    sizes = ints_attr(node, "split") if array is None else tuple(int(v) for v in array.ravel())
    if sizes is None and value is None and isinstance(size, int):
        part = -(-size // len(node.outputs))
        sizes = tuple(min(part, size - i * part) for i in range(len(node.outputs)))
    if sizes is None or not isinstance(size, int) or sum(sizes) != size or min(sizes) < 0:
        return Select({}, frozenset((axis,)), {})
    ends = list(accumulate(sizes))
    return _select({axis: tuple(tuple(range(e - s, e)) for s, e in zip(sizes, ends, strict=True))}, frozenset(), shape)


def read_gather(node: ir.Node, context: Context) -> View:
    """Gather with a vector of constant indices."""
    shape, indices = context.shapes.shape(node.inputs[0]), context.constants.array(input_at(node, 1))
    if shape is None or indices is None or indices.ndim != 1:
        return barrier(node, Reason.AXIS_NOT_PROVEN, "the indices are no constant vector, or the rank is unknown")
    axis = int_attr(node, "axis", 0) % len(shape)
    size = shape[axis]
    if not isinstance(size, int) or not ((indices >= -size) & (indices < size)).all():
        return Select({}, frozenset((axis,)), {})
    return _select({axis: (tuple(int(i) % size for i in indices),)}, frozenset(), shape)


def _select(picks: dict[int, tuple[tuple[int, ...], ...]], opaque: frozenset[int], shape: tuple[Dim, ...]) -> Select:
    return Select(picks, opaque, {axis: size for axis in picks if isinstance(size := shape[axis], int)})


def read_space_to_depth(node: ir.Node, context: Context) -> View:
    """Output channel `k*C + c` is input channel c, for every place k in a block."""
    channels = _channels(node, context)
    if channels is None:
        return barrier(node, Reason.AXIS_NOT_PROVEN, "the number of channels is unknown")
    block = int_attr(node, "blocksize", 1)
    picks = tuple(int(c) for c in np.tile(np.arange(channels), block * block))
    return Select({1: (picks,)}, frozenset((2, 3)), {1: channels})


def read_depth_to_space(node: ir.Node, context: Context) -> View:
    """DCR: input channel `k*C + c` goes to output channel c; CRD: `c*block^2 + k`."""
    channels, block = _channels(node, context), int_attr(node, "blocksize", 1)
    if channels is None or channels % (block * block):
        return barrier(node, Reason.AXIS_NOT_PROVEN, "the number of channels is unknown")
    index = np.arange(channels)
    inner = str_attr(node, "mode", "DCR") == "CRD"
    places = index // (block * block) if inner else index % (channels // (block * block))
    return Spread(1, tuple(int(c) for c in places))


def _channels(node: ir.Node, context: Context) -> int | None:
    shape = context.shapes.shape(node.inputs[0])
    size = None if shape is None or len(shape) != 4 else shape[1]
    return size if isinstance(size, int) and all(is_present(v) for v in node.outputs) else None
