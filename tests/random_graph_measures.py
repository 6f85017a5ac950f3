"""Steps of random graphs that read the shape or the size of one value and use it on another."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from onnx import NodeProto, helper

from tests.random_graph_builder import Builder, Misfit, Value

Step: TypeAlias = Callable[[Builder, Value, Value], Value]


def measured(b: Builder, x: Value) -> Value:
    """Divided by a size, or given the shape, the extent or the cut of another value, of which only the shape counts."""
    if not x.rank:
        raise Misfit("a scalar")
    step = b.pick(_divided, _reshaped, _reshaped, _expanded, _resized, _resized, _cropped)
    fits = [v for v in b.values if v.rank == x.rank and (step is _divided or _alike(step, v, x))]
    return step(b, x, fits[int(b.rng.integers(len(fits)))])


def _alike(step: Step, v: Value, x: Value) -> bool:
    return v.shape == x.shape if step in (_reshaped, _expanded) else v.shape[2:] != x.shape[2:] or v is x


def _hidden(b: Builder, op_type: str, inputs: list[str], **attributes: object) -> str:
    """A node whose integers only the next one reads; the walk does not go on from them."""
    node: NodeProto = helper.make_node(op_type, inputs, [b.name("n")], **attributes)
    b.nodes.append(node)
    return node.output[0]


def _shape(b: Builder, other: Value) -> str:
    return _hidden(b, "Shape", [other.name])


def _divided(b: Builder, x: Value, other: Value) -> Value:
    if b.chance(0.5):
        count = _hidden(b, "Size", [other.name])
    else:
        count = _hidden(b, "ReduceProd", [_shape(b, other)], keepdims=0)
    written = helper.np_dtype_to_tensor_dtype(x.dtype)
    return b.add("Div", [x, _hidden(b, "Cast", [count], to=written)], shape=x.shape)


def _reshaped(b: Builder, x: Value, other: Value) -> Value:
    """Flat, and as the other again: what `view_as` and a window's way back write."""
    if int(np.prod(other.shape)) != int(np.prod(x.shape)):
        raise Misfit("another number of elements")
    flat = b.add("Flatten", [x], axis=1) if b.chance(0.5) else x
    return b.add("Reshape", [flat, _shape(b, other)], shape=other.shape)


def _expanded(b: Builder, x: Value, other: Value) -> Value:
    """A mean over space, as large as the other again."""
    if x.rank < 3 or other.shape[:2] != x.shape[:2] or other.rank != x.rank:
        raise Misfit("no image of the same channels")
    mean = b.add("GlobalAveragePool", [x])
    return b.add("Expand", [mean, _shape(b, other)], shape=other.shape)


def _resized(b: Builder, x: Value, other: Value) -> Value:
    """As large as the other, the way feature pyramids write it: own channels, the other's space."""
    if b.opset < 11 or x.rank != 4 or other.rank != 4:
        raise Misfit("no images")
    sizes = _shape(b, other) if x.shape[:2] == other.shape[:2] and b.chance(0.4) else _own_channels(b, x, other)
    none = [""] if b.opset >= 13 else [b.constant(np.zeros(0, np.float32))]
    mode = b.pick({"mode": "nearest"}, {"mode": "linear"})
    return b.add("Resize", [x, *none, *none, sizes], shape=x.shape[:2] + other.shape[2:], **mode)


def _own_channels(b: Builder, x: Value, other: Value) -> str:
    mine = _hidden(b, "Slice", [_shape(b, x), _integers(b, [0]), _integers(b, [2])])
    space = _hidden(b, "Slice", [_shape(b, other), _integers(b, [2]), _integers(b, [4])])
    return _hidden(b, "Concat", [mine, space], axis=0)


def _cropped(b: Builder, x: Value, other: Value) -> Value:
    """Cut to the other's space, as a U-Net crops what it skips to."""
    if b.opset < 10 or x.rank != other.rank or x.rank < 3:
        raise Misfit("no images")
    ends = _hidden(b, "Slice", [_shape(b, other), _integers(b, [2]), _integers(b, [x.rank])])
    axes = list(range(2, x.rank))
    left = tuple(min(pair) for pair in zip(x.shape[2:], other.shape[2:], strict=True))
    inputs = [x, _integers(b, [0] * len(axes)), ends, _integers(b, axes)]
    return b.add("Slice", inputs, shape=x.shape[:2] + left)


def _integers(b: Builder, values: list[int]) -> str:
    return b.constant(np.asarray(values, np.int64))
