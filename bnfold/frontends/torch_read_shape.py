"""Readers of operators that only move elements, pick them, join values or convert their type."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from bnfold.decision import Reason
from bnfold.frontends.torch_context import Context, arguments, barrier, base_name, dtype_of, is_tensor
from bnfold.frontends.torch_reading import Reading
from bnfold.views import Barrier, Cast, Concat, Reshape, Same, Transpose
from bnfold.window_views import Select, Spread

if TYPE_CHECKING:
    from torch.fx import Node


def _data(node: Node) -> Node:
    found = arguments(node)
    data: Node = next(found[name] for name in ("self", "input", "tensor") if name in found)
    return data


def read_same(node: Node, _context: Context) -> Reading:
    """clone, contiguous, alias, detach."""
    return Reading(Same(), (_data(node),))


def read_dropout(node: Node, _context: Context) -> Reading | Barrier:
    """Dropout that is off."""
    if arguments(node)["train"] is not False:
        return barrier(node, Reason.OPERATOR_IS_NOT_LINEAR, "it is in training mode")
    return Reading(Same(), (_data(node),))


def read_cast(node: Node, _context: Context) -> Reading | Barrier:
    """to, type_as: a conversion between floating-point types, or none."""
    data = _data(node)
    source, target = dtype_of(data), dtype_of(node)
    if source is None or target is None:
        return barrier(node, Reason.CAST_NARROWS, "not between floating-point types")
    return Reading(Same() if source == target else Cast(source, target), (data,))


def read_transpose(node: Node, context: Context) -> Reading | Barrier:
    """permute, transpose, t."""
    found, data = arguments(node), _data(node)
    rank = context.rank(data)
    perm = list(range(rank))
    if "dims" in found:
        perm = [axis % rank for axis in found["dims"]]
    elif "dim0" in found:
        one, two = found["dim0"] % rank, found["dim1"] % rank
        perm[one], perm[two] = two, one
    else:
        perm.reverse()
    return Reading(Transpose(tuple(perm)), (data,))


def read_reshape(node: Node, _context: Context) -> Reading:
    """view, reshape, flatten, squeeze and the like: the shapes say what they do; of `other` nothing else is read."""
    return Reading(Reshape(), (_data(node),))


def read_concat(node: Node, context: Context) -> Reading | Barrier:
    """Cat."""
    found = arguments(node)
    values, rank = tuple(found["tensors"]), context.rank(node)
    alike = all(context.rank(v) == rank and dtype_of(v) == dtype_of(node) for v in values)
    if not alike or any(v in context.constants for v in values):
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "not variables of one rank and type")
    return Reading(Concat(found["dim"] % rank), values)


def read_slice(node: Node, context: Context) -> Reading | Barrier:
    """Slice with numbers as bounds."""
    found, data = arguments(node), _data(node)
    axis = found["dim"] % context.rank(data)
    size = context.shapes[data][axis]
    bounds = [found["start"], found["end"], found["step"]]
    if not isinstance(size, int) or not all(b is None or isinstance(b, int) for b in bounds):
        return Reading(Select({}, frozenset((axis,)), {}), (data,))
    return _picking(data, axis, size, (tuple(range(*slice(*bounds).indices(size))),))


def read_parts(node: Node, context: Context) -> Reading | Barrier:
    """chunk, split, split_with_sizes."""
    found, data = arguments(node), _data(node)
    axis = found["dim"] % context.rank(data)
    size = context.shapes[data][axis]
    shapes = [getattr(part, "shape", None) for part in node.meta["val"]]
    sizes = [shape[axis] for shape in shapes if shape is not None]
    known = [int(s) for s in sizes if isinstance(s, int)]
    if not isinstance(size, int) or len(known) < len(shapes) or sum(known) != size:
        return Reading(Select({}, frozenset((axis,)), {}), (data,))
    ends = list(accumulate(known))
    return _picking(data, axis, size, tuple(tuple(range(e - s, e)) for s, e in zip(known, ends, strict=True)))


def read_index_select(node: Node, context: Context) -> Reading | Barrier:
    """index_select with constant indices."""
    found, data = arguments(node), _data(node)
    axis = found["dim"] % context.rank(data)
    size = context.shapes[data][axis]
    if found["index"] not in context.constants or not isinstance(size, int):
        return barrier(node, Reason.AXIS_NOT_PROVEN, "the indices are not constant")
    indices = tuple(int(i) for i in context.constants.tensor(found["index"]).reshape(-1).tolist())
    return _picking(data, axis, size, (indices,))


def _picking(data: Node, axis: int, size: int, picks: tuple[tuple[int, ...], ...]) -> Reading:
    return Reading(Select({axis: picks}, frozenset(), {axis: size}), (data,))


def read_shuffle(node: Node, context: Context) -> Reading | Barrier:
    """pixel_shuffle, pixel_unshuffle and channel_shuffle of images in a batch."""
    found, data, kind = arguments(node), _data(node), base_name(node).removeprefix("aten.")
    shape = context.shapes[data]
    channels = shape[1] if len(shape) == 4 else None
    if not isinstance(channels, int) or not is_tensor(node):
        return barrier(node, Reason.AXIS_NOT_PROVEN, "the number of channels is unknown")
    if kind == "channel_shuffle":
        order = np.arange(channels).reshape(found["groups"], -1).T.ravel()
        return _picking(data, 1, channels, (tuple(int(i) for i in order),))
    if kind == "pixel_shuffle":
        places = np.arange(channels) // found["upscale_factor"] ** 2
        return Reading(Spread(1, tuple(int(i) for i in places)), (data,))
    picks = np.arange(channels).repeat(found["downscale_factor"] ** 2)
    return Reading(Select({1: (tuple(int(i) for i in picks),)}, frozenset((2, 3)), {1: channels}), (data,))
