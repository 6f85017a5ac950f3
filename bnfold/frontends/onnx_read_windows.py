"""Readers of pooling, reductions, Resize, Upsample and Pad."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bnfold.decision import Reason
from bnfold.frontends.onnx_context import (
    Context,
    barrier,
    float_attr,
    input_at,
    int_attr,
    ints_attr,
    is_float,
    is_read,
    str_attr,
)
from bnfold.frontends.onnx_windows import window
from bnfold.graph import Shape
from bnfold.views import View
from bnfold.window_views import Average, Maximum, Pad, Resample, Total


def read_pool(node: ir.Node, context: Context) -> View:
    """AveragePool and MaxPool."""
    shape = context.shapes.shape(node.inputs[0])
    kernel = ints_attr(node, "kernel_shape")
    if kernel is None:
        return barrier(node, Reason.AXIS_NOT_PROVEN, "no kernel_shape")
    geometry = window(node, kernel, shape)
    axes = tuple(range(2, 2 + len(kernel)))
    if node.op_type == "AveragePool":
        counts = int_attr(node, "count_include_pad", 0) == 1 and not geometry.is_unpadded
        return Average(axes, counts_padding=counts)
    # Pads are below the kernel size, so that a window without dilation always holds an element.
    skips = any(d > 1 for d in geometry.dilations) and not geometry.is_unpadded
    return Maximum(axes, window_in_padding=skips, indices_read=any(is_read(v) for v in node.outputs[1:]))


def read_global_pool(node: ir.Node, context: Context) -> View:
    """GlobalAveragePool and GlobalMaxPool."""
    rank = context.shapes.rank(node.inputs[0])
    if rank is None:
        return barrier(node, Reason.AXIS_NOT_PROVEN, "unknown rank")
    axes = tuple(range(2, rank))
    return Average(axes) if node.op_type == "GlobalAveragePool" else Maximum(axes)


def read_reduce(node: ir.Node, context: Context) -> View:
    """ReduceMean, ReduceSum and ReduceMax, with the axes as attribute or as constant input."""
    rank = context.shapes.rank(node.inputs[0])
    value = input_at(node, 1)
    given = context.constants.array(value)
    if rank is None or (value is not None and given is None):
        return barrier(node, Reason.AXIS_NOT_PROVEN, "unknown rank or axes")
    listed = ints_attr(node, "axes") if given is None else tuple(int(a) for a in given.ravel())
    if not listed:
        listed = () if int_attr(node, "noop_with_empty_axes", 0) else tuple(range(rank))
    axes, keeps = tuple(sorted({a % rank for a in listed})), int_attr(node, "keepdims", 1) == 1
    if node.op_type == "ReduceSum":
        return Total(axes, keeps, _count(context.shapes.shape(node.inputs[0]), axes))
    return Average(axes, keeps) if node.op_type == "ReduceMean" else Maximum(axes, keeps)


def _count(shape: Shape | None, axes: tuple[int, ...]) -> int | None:
    """How many elements there are along `axes`, where every length is known."""
    sizes = [] if shape is None else [shape[axis] for axis in axes]
    known = [size for size in sizes if isinstance(size, int)]
    return int(np.prod(known)) if known and len(known) == len(axes) else None


def read_resize(node: ir.Node, context: Context) -> View:
    """Resize and Upsample in the modes whose weights add up to 1."""
    shape = context.shapes.shape(node.inputs[0])
    mode = str_attr(node, "mode", "nearest")
    if shape is None or mode not in ("nearest", "linear", "cubic"):
        return barrier(node, Reason.AXIS_NOT_PROVEN, f"mode {mode}" if shape else "unknown rank")
    coordinates = str_attr(node, "coordinate_transformation_mode", "half_pixel")
    if coordinates == "tf_half_pixel_for_nn" and "ceil" in str_attr(node, "nearest_mode", "round_prefer_floor"):
        return barrier(node, Reason.AXIS_NOT_PROVEN, "it moves every element by one, channels too")
    untouched = _scaled_by_one(node, len(shape), context) | _same_length(node, context)
    if coordinates != "tf_crop_and_resize":
        return Resample(frozenset(untouched))
    roi = context.constants.array(input_at(node, 1))
    if roi is None or roi.size != 2 * len(shape):
        return barrier(node, Reason.AXIS_NOT_PROVEN, "the region of interest is not constant")
    whole = {a for a in untouched if roi[a] == 0 and roi[a + len(shape)] == 1}
    inside = bool(((roi >= 0) & (roi <= 1)).all())
    return Resample(frozenset(whole), None if inside else float_attr(node, "extrapolation_value", 0.0))


def _scaled_by_one(node: ir.Node, rank: int, context: Context) -> set[int]:
    """The axes that are not listed, or have a constant scale of 1."""
    listed = ints_attr(node, "axes") or tuple(range(rank))
    axes = [a % rank for a in listed]
    scales = _scales(node, context)
    unlisted = set(range(rank)) - set(axes)
    if scales is None or scales.size != len(axes):
        return unlisted
    return unlisted | {axis for axis, scale in zip(axes, scales, strict=True) if scale == 1}


def _scales(node: ir.Node, context: Context) -> npt.NDArray[Any] | None:
    attribute = node.attributes.get("scales")
    if attribute is not None:
        return np.asarray(attribute.as_floats())
    first = node.op_type == "Upsample" or context.version(node) < 11
    return context.constants.array(input_at(node, 1 if first else 2))


def _same_length(node: ir.Node, context: Context) -> set[int]:
    """The axes whose length is proven equal before and after; enough where `sizes` are given and mean it literally."""
    if input_at(node, 3) is None or str_attr(node, "keep_aspect_ratio_policy", "stretch") != "stretch":
        return set()
    before, after = context.shapes.shape(node.inputs[0]), context.shapes.shape(node.outputs[0])
    if before is None or after is None or len(before) != len(after):
        return set()
    return {i for i, (a, b) in enumerate(zip(before, after, strict=True)) if isinstance(a, int) and a == b}


def read_pad(node: ir.Node, context: Context) -> View:
    """Pad with constant pads and a constant value."""
    rank, dtype = context.shapes.rank(node.inputs[0]), context.shapes.dtype(node.inputs[0])
    pads = _pads(node, rank, context)
    mode = str_attr(node, "mode", "constant")
    if pads is None or rank is None or dtype is None or not is_float(dtype):
        return barrier(node, Reason.AXIS_NOT_PROVEN, "the pads are not constant")
    begins, ends = pads[:rank], pads[rank:]
    if mode in ("reflect", "edge", "wrap"):
        return Pad(begins, ends, None, dtype)
    if dtype.itemsize > 4 and context.version(node) < 11:
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "the constant is a float32 attribute")
    value = input_at(node, 2)
    constant = context.constants.array(value)
    if mode != "constant" or (value is not None and (constant is None or constant.size != 1)):
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "the padding is not constant")
    filled = float_attr(node, "value", 0.0) if constant is None else float(np.asarray(constant, np.float64).item())
    return Pad(begins, ends, filled, dtype)


def _pads(node: ir.Node, rank: int | None, context: Context) -> tuple[int, ...] | None:
    """Begin pads of every axis and then end pads."""
    attribute = ints_attr(node, "pads")
    if attribute is not None:
        return attribute if rank is not None and len(attribute) == 2 * rank else None
    array, axes_value = context.constants.array(input_at(node, 1)), input_at(node, 3)
    axes = context.constants.array(axes_value)
    if array is None or rank is None or (axes_value is not None and axes is None):
        return None
    listed = [a % rank for a in (range(rank) if axes is None else (int(a) for a in axes.ravel()))]
    if array.size != 2 * len(listed):
        return None
    full = [0] * 2 * rank
    for i, axis in enumerate(listed):
        full[axis], full[axis + rank] = int(array[i]), int(array[i + len(listed)])
    return tuple(full)
