"""Readers of pooling, reductions, upsampling and padding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.decision import Reason
from bnfold.frontends.torch_context import (
    Context,
    arguments,
    barrier,
    base_name,
    dtype_of,
    integers,
    is_tensor,
    scalar,
)
from bnfold.frontends.torch_reading import Reading
from bnfold.views import Barrier
from bnfold.window_views import Average, Maximum, Pad, Resample, Total

if TYPE_CHECKING:
    from torch.fx import Node


def _spatial(node: Node, rank: int) -> tuple[int, ...]:
    """The last one, two or three axes, as the operator's name says."""
    count = int(base_name(node).rstrip("_")[-2])
    return tuple(range(rank - count, rank))


def read_average(node: Node, context: Context) -> Reading | Barrier:
    """avg_pool: a mean over windows; with a divisor of one's own nothing but the scale passes."""
    found = arguments(node)
    axes = _spatial(node, context.rank(found["self"]))
    pads = integers(found["padding"], len(axes))
    padded = found["count_include_pad"] and (pads is None or any(pads))
    counts = bool(padded or found.get("divisor_override") is not None)
    return Reading(Average(axes, counts_padding=counts), (found["self"],))


def read_adaptive_average(node: Node, context: Context) -> Reading:
    """adaptive_avg_pool to any size: every output is the mean of some inputs."""
    data = arguments(node)["self"]
    return Reading(Average(_spatial(node, context.rank(data))), (data,))


def read_maximum(node: Node, context: Context) -> Reading | Barrier:
    """max_pool, also where it gives the indices, and adaptive_max_pool."""
    found = arguments(node)
    name = base_name(node).removesuffix("_with_indices")
    data = found["self"]
    count = int(name[-2])
    rank = context.rank(data)
    axes = tuple(range(rank - count, rank))
    pads, dilations = (integers(found.get(key, other), count) for key, other in (("padding", 0), ("dilation", 1)))
    skips = pads is None or dilations is None or (any(d > 1 for d in dilations) and any(pads))
    return Reading(Maximum(axes, window_in_padding=skips, indices_read=_indices_read(node)), (data,))


def _indices_read(node: Node) -> bool:
    return not is_tensor(node) and any(user.args[1] != 0 for user in node.users)


def read_reduce(node: Node, context: Context) -> Reading | Barrier:
    """mean, sum and amax over axes that are numbers."""
    found, data = arguments(node), arguments(node)["self"]
    rank = context.rank(data)
    listed = found.get("dim")
    listed = list(range(rank)) if listed is None or listed == [] else listed
    listed = listed if isinstance(listed, list | tuple) else [listed]
    if dtype_of(data) is None or dtype_of(data) != dtype_of(node) or not all(isinstance(a, int) for a in listed):
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "not of floating-point numbers, or of another type")
    axes, keeps = tuple(sorted({axis % rank for axis in listed})), bool(found.get("keepdim", False))
    if not rank:
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "a number")
    kind = base_name(node).removeprefix("aten.")
    if kind == "sum":
        sizes = [context.shapes[data][axis] for axis in axes]
        known = [size for size in sizes if isinstance(size, int)]
        return Reading(Total(axes, keeps, math.prod(known) if len(known) == len(sizes) else None), (data,))
    return Reading(Average(axes, keeps) if kind == "mean" else Maximum(axes, keeps), (data,))


def read_upsample(node: Node, context: Context) -> Reading | Barrier:
    """Upsample by nearest, linear, bilinear, bicubic and trilinear interpolation: weights that add up to 1."""
    data = next(value for name, value in arguments(node).items() if name in ("self", "input"))
    if context.rank(data) < 3:
        return barrier(node, Reason.AXIS_NOT_PROVEN, "no batch axis")
    return Reading(Resample(frozenset((0, 1))), (data,))


def read_pad(node: Node, context: Context) -> Reading | Barrier:
    """Pad with numbers, by a constant, by reflection, replication or circularly."""
    found, dtype = arguments(node), dtype_of(node)
    kind = base_name(node).removeprefix("aten.")
    data, listed = found["self"], found.get("pad", found.get("padding"))
    rank = context.rank(data)
    pads = _pads(listed, rank)
    mode = found.get("mode", "constant") if kind == "pad" else kind
    if pads is None or dtype is None:
        return barrier(node, Reason.AXIS_NOT_PROVEN, "the pads are not constant")
    if mode not in ("constant", "constant_pad_nd"):
        return Reading(Pad(*pads, None, dtype), (data,))
    value = found.get("value")
    number = np.zeros(()) if value is None else scalar(value)
    if number is None:
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "the padding is not constant")
    return Reading(Pad(*pads, float(number), dtype), (data,), number)


def _pads(listed: Any, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Begin and end pads of every axis; torch lists pairs, the last axis first."""
    if not isinstance(listed, list | tuple) or len(listed) > 2 * rank or len(listed) % 2:
        return None
    if not all(isinstance(entry, int) for entry in listed):
        return None
    begins, ends = [0] * rank, [0] * rank
    for i in range(len(listed) // 2):
        begins[rank - 1 - i], ends[rank - 1 - i] = listed[2 * i], listed[2 * i + 1]
    return tuple(begins), tuple(ends)
