"""Steps of random graphs: operators that move, join, pool, resize and pad, activations, and barriers."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests import random_graph_linear as linears
from tests.random_graph_builder import Builder, Misfit, Value
from tests.random_graph_linear import demand_windows


def _integers(b: Builder, values: Any) -> str:
    return b.constant(np.asarray(values, np.int64))


def same(b: Builder, x: Value) -> Value:
    """Identity, Dropout in inference, or Cast to the same type."""
    match b.between(0, 2):
        case 0:
            return b.add("Identity", [x])
        case 1:
            kind = {"float16": 10, "float32": 1, "float64": 11}[x.dtype.name]
            return b.add("Cast", [x], to=kind)
    outputs = 1 + b.chance(0.2)
    if b.opset < 12:
        return b.add("Dropout", [x], outputs, ratio=0.3)
    ratio = b.constant(np.array(0.4, np.float32))
    training = b.constant(np.array(False))
    return b.add("Dropout", b.pick([x], [x, ratio], [x, "", training], [x, ratio, training]), outputs)


def cast(b: Builder, x: Value) -> Value:
    """To a wider or narrower type; what follows is computed in it."""
    target = b.pick(*{"float16": (1, 1), "float32": (10, 11), "float64": (1, 1)}[x.dtype.name])
    return b.add("Cast", [x], to=target)


def transpose(b: Builder, x: Value) -> Value:
    if x.rank < 2:
        raise Misfit("one axis")
    last, first = [0, *range(2, x.rank), 1], [0, x.rank - 1, *range(1, x.rank - 1)]
    perm = b.pick(last, last, first, [int(i) for i in b.rng.permutation(x.rank)])
    return b.add("Transpose", [x]) if b.chance(0.1) else b.add("Transpose", [x], perm=perm)


def reshape(b: Builder, x: Value) -> Value:
    """Splits, merges and moves axes, with 0 and -1 where they may stand."""
    shape = list(x.shape)
    if not shape or len(shape) > 5:
        raise Misfit("nothing to reshape")
    match b.between(0, 4):
        case 0 if len(shape) > 2:
            shape = [*shape[:2], int(np.prod(shape[2:]))]
        case 1 if len(shape) > 1 and len(shape) < 5 and shape[1] % 2 == 0:
            shape = [shape[0], *b.pick((2, shape[1] // 2), (shape[1] // 2, 2)), *shape[2:]]
        case 2 if len(shape) > 2:
            at = b.between(0, len(shape) - 2)
            shape = [*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]]
        case 3:
            shape.insert(b.between(0, len(shape)), 1)
        case _:
            shape = [shape[0], int(np.prod(shape[1:]))]
    return b.add("Reshape", [x, _integers(b, _written(b, x, shape))])


def _written(b: Builder, x: Value, shape: list[int]) -> list[int]:
    known = [0 if i < x.rank and n == x.shape[i] and b.chance(0.5) else n for i, n in enumerate(shape)]
    open_ones = [i for i, n in enumerate(known) if n]
    if open_ones and b.chance(0.5):
        known[b.pick(*open_ones)] = -1
    return known


def flatten(b: Builder, x: Value) -> Value:
    return b.add("Flatten", [x], axis=b.pick(1, 1, 1, 2, 0)) if b.chance(0.8) else b.add("Flatten", [x])


def squeeze(b: Builder, x: Value) -> Value:
    ones = [i for i, n in enumerate(x.shape) if n == 1]
    if not ones or x.rank < 2:
        raise Misfit("no axis of length 1")
    axes = ones if b.chance(0.5) else [b.pick(*ones)]
    return _with_axes(b, "Squeeze", x, axes)


def unsqueeze(b: Builder, x: Value) -> Value:
    if x.rank > 4:
        raise Misfit("too many axes")
    return _with_axes(b, "Unsqueeze", x, [b.between(0, x.rank)])


def _with_axes(b: Builder, op_type: str, x: Value, axes: list[int]) -> Value:
    if b.opset < 13:
        return b.add(op_type, [x], axes=axes)
    return b.add(op_type, [x, _integers(b, axes)])


def shuffle(b: Builder, x: Value) -> Value:
    """Channel shuffle: split the channels in two, swap, merge."""
    if x.rank != 4 or x.shape[1] % 2:
        raise Misfit("no image with an even number of channels")
    n, c, h, w = x.shape
    split = b.add("Reshape", [x, _integers(b, [0 if b.chance(0.5) else n, 2, c // 2, h, w])])
    swapped = b.add("Transpose", [split], perm=[0, 2, 1, 3, 4])
    return b.add("Reshape", [swapped, _integers(b, [b.pick(-1, n), c, h, w])])


def concat(b: Builder, x: Value) -> Value:
    """With values that fit, x itself among them."""
    if not x.rank:
        raise Misfit("a scalar")
    axis = 1 if x.rank > 1 and b.chance(0.7) else b.between(0, x.rank - 1)
    others = [
        v
        for v in b.values
        if v.rank == x.rank and v.dtype == x.dtype and _without(v.shape, axis) == _without(x.shape, axis)
    ]
    chosen = [x, *(others[int(i)] for i in b.rng.integers(0, len(others), b.between(1, 2)))]
    if b.chance(0.15):
        constant = b.constant(b.numbers(*x.shape, dtype=x.dtype), "whole")
        return b.add("Concat", [*chosen, constant], axis=axis)
    written = axis - x.rank if b.opset >= 11 and b.chance(0.2) else axis
    order = b.rng.permutation(len(chosen))
    return b.add("Concat", [chosen[int(i)] for i in order], axis=written)


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def pool(b: Builder, x: Value) -> Value:
    if not 3 <= x.rank <= 5:
        raise Misfit("no image")
    rank, op_type = x.rank - 2, b.pick("AveragePool", "MaxPool")
    kernel = [b.between(1, 3) for _ in range(rank)]
    attributes: dict[str, Any] = {"kernel_shape": kernel}
    if b.chance(0.5):
        attributes["strides"] = [b.between(1, k) for k in kernel]
    if b.chance(0.2):
        attributes["auto_pad"] = b.pick("SAME_UPPER", "SAME_LOWER", "VALID")
    elif b.chance(0.5):
        attributes["pads"] = [b.between(0, k - 1) for k in (*kernel, *kernel)]
    if b.chance(0.2) and b.opset >= 10 and "auto_pad" not in attributes:
        attributes["ceil_mode"] = 1
    if b.chance(0.15) and b.opset >= (10 if op_type == "MaxPool" else 19) and "auto_pad" not in attributes:
        attributes["dilations"] = [b.between(1, 2) for _ in range(rank)]
    if op_type == "AveragePool" and b.chance(0.4):
        attributes["count_include_pad"] = b.between(0, 1)
    demand_windows(x, attributes)
    _demand_starts(x, attributes)
    return b.add(op_type, [x], outputs=1 + (op_type == "MaxPool" and b.chance(0.15)), **attributes)


def _demand_starts(x: Value, attributes: dict[str, Any]) -> None:
    """Raises Misfit where ceil_mode would start a window in the end padding: onnx's shape inference counts it."""
    ones = [1] * (x.rank - 2)
    strides, pads = attributes.get("strides", ones), attributes.get("pads", [0] * 2 * len(ones))
    spans = [(k - 1) * d for k, d in zip(attributes["kernel_shape"], attributes.get("dilations", ones), strict=True)]
    for i, (size, stride, span) in enumerate(zip(x.shape[2:], strides, spans, strict=True)):
        last = -(-(size + pads[i] + pads[i + len(ones)] - span - 1) // stride) * stride
        if attributes.get("ceil_mode") and last >= size + pads[i]:
            raise Misfit("a window in the padding")


def global_pool(b: Builder, x: Value) -> Value:
    if not 3 <= x.rank <= 5:
        raise Misfit("no image")
    if b.chance(0.5):
        return b.add(b.pick("GlobalAveragePool", "GlobalMaxPool"), [x])
    return _reduce(b, x, list(range(2, x.rank)))


def reduce(b: Builder, x: Value) -> Value:
    """Over some axes, the channels perhaps among them."""
    if x.rank < 2:
        raise Misfit("one axis")
    return _reduce(b, x, sorted({b.between(0, x.rank - 1), b.between(1, x.rank - 1)}))


def _reduce(b: Builder, x: Value, axes: list[int]) -> Value:
    written = [a - x.rank for a in axes] if b.opset >= 11 and b.chance(0.3) else axes
    keep: dict[str, Any] = {"keepdims": 0} if len(axes) < x.rank - 1 and b.chance(0.4) else {}
    op_type = b.pick("ReduceMean", "ReduceMean", "ReduceMax", "ReduceSum")
    if b.opset < (13 if op_type == "ReduceSum" else 18):
        return b.add(op_type, [x], axes=written, **keep)
    return b.add(op_type, [x, _integers(b, written)], **keep)


def resize(b: Builder, x: Value) -> Value:
    if not 3 <= x.rank <= 5:
        raise Misfit("no image")
    scales = np.array([1, 1, *(b.pick(1, 2, 1.5, 0.6) for _ in range(x.rank - 2))], np.float32)
    if b.chance(0.05):
        scales[1] = 2
    if b.opset < 11:
        op_type = "Upsample" if b.opset < 10 else "Resize"
        scales = np.maximum(scales, 1) if b.opset < 10 else scales
        return b.add(op_type, [x, b.constant(scales)], mode=b.pick("nearest", "linear"))
    return _modern_resize(b, x, scales)


def _modern_resize(b: Builder, x: Value, scales: Any) -> Value:
    attributes: dict[str, Any] = {"mode": b.pick("nearest", "linear", "cubic")}
    how = b.pick("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "tf_crop_and_resize")
    if b.chance(0.7):
        attributes["coordinate_transformation_mode"] = how
    cropped = attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    roi = b.constant(np.zeros(0, np.float32)) if b.opset < 13 else ""
    if cropped:
        begin, end = b.pick((0.0, 1.0), (0.1, 0.8), (-0.2, 1.3))
        spatial = x.rank - 2
        scales[2:] = [b.pick(2, 1.5, 0.6) for _ in range(spatial)]  # at scale 1 a region has no agreed meaning
        roi = b.constant(np.array([0, 0, *[begin] * spatial, 1, 1, *[end] * spatial], np.float32))
        attributes["extrapolation_value"] = b.pick(0.0, 0.5)
    if attributes["mode"] == "nearest" and b.chance(0.5):
        attributes["nearest_mode"] = b.pick("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
    if b.chance(0.4) and not cropped:
        sizes = [max(1, int(n * s)) for n, s in zip(x.shape, scales, strict=True)]
        empty = b.constant(np.zeros(0, np.float32)) if b.opset < 13 else ""
        return b.add("Resize", [x, roi, empty, _integers(b, sizes)], **attributes)
    if b.opset >= 18 and b.chance(0.4) and not cropped:
        attributes["axes"] = list(range(2, x.rank))
        scales = scales[2:]
        if attributes["mode"] != "nearest" and b.chance(0.3):
            attributes["antialias"] = 1
    return b.add("Resize", [x, roi, b.constant(np.asarray(scales))], **attributes)


def pad(b: Builder, x: Value) -> Value:
    if x.rank < 2:
        raise Misfit("one axis")
    mode = b.pick("constant", "constant", "reflect", "edge", *(["wrap"] if b.opset >= 19 else []))
    pads = np.zeros((2, x.rank), np.int64)
    for axis in range(2, x.rank) if x.rank > 2 and b.chance(0.8) else range(1, x.rank):
        top = 2 if mode in ("constant", "edge") else min(2, x.shape[axis] - 1)
        low = -1 if mode == "constant" and x.shape[axis] > 3 and b.chance(0.15) else 0
        pads[:, axis] = [b.between(low, top), b.between(0, top)]
    value = b.pick(0.0, 0.0, 0.5, -1.0)
    written = {} if mode == "constant" and b.chance(0.5) else {"mode": mode}
    if b.opset < 11:
        return b.add("Pad", [x], pads=[int(p) for p in pads.ravel()], value=value, **written)
    inputs: list[Value | str] = [x, _integers(b, pads.ravel())]
    if b.opset >= 18 and b.chance(0.3):
        axes = [i for i in range(x.rank) if pads[:, i].any()] or [0]
        inputs[1] = _integers(b, pads[:, axes].ravel())
        given = b.constant(np.array(value, x.dtype)) if mode == "constant" else ""
        return b.add("Pad", [*inputs, given, _integers(b, axes)], **written)
    if mode == "constant" and b.chance(0.7):
        inputs.append(b.constant(np.array(value, x.dtype)))
    return b.add("Pad", inputs, **written)


def activation(b: Builder, x: Value) -> Value:
    if not x.rank:
        raise Misfit("a scalar")
    match b.pick("Relu", "Relu", "LeakyRelu", "PRelu", "Abs", "Neg"):
        case "LeakyRelu":
            return b.add("LeakyRelu", [x], alpha=b.pick(0.1, 0.3, -0.5))
        case "PRelu":
            shape = (x.shape[1], *(1,) * (x.rank - 2)) if x.rank > 1 and b.chance(0.7) else (1,)
            return b.add("PRelu", [x, b.constant(b.numbers(*shape, dtype=x.dtype), "slope")])
        case kind:
            return b.add(kind, [x])


def clamp(b: Builder, x: Value) -> Value:
    """Clip, ReLU6, Max or Min, with bounds of one side or two, the same everywhere or one for each channel or place."""
    if not x.rank:
        raise Misfit("a scalar")
    low, high = b.pick((0.0, 6.0), (0.0, 1.0), (-0.5, 0.75), (0.1, None), (None, 0.3), (0.0, None), (None, None))
    if b.chance(0.4):
        return _extremum(b, x)
    if b.opset < 11:
        return b.add("Clip", [x], **{k: v for k, v in (("min", low), ("max", high)) if v is not None})
    bounds = ["" if v is None else b.constant(np.array(v, x.dtype)) for v in (low, high)]
    return b.add("Clip", [x, *(bounds if high is not None else bounds[:1] if low is not None else [])])


def _extremum(b: Builder, x: Value) -> Value:
    """Max or Min with one constant or two, on either side."""
    shapes = [(), (1,), tuple(x.shape[-1:])]
    if x.rank > 1:
        shapes += [(x.shape[1], *(1,) * (x.rank - 2))] * 3 + [tuple(x.shape[1:])]
    constants = [b.constant(b.numbers(*b.pick(*shapes), dtype=x.dtype), "bound") for _ in range(1 + b.chance(0.15))]
    kind = b.pick("Max", "Min")
    return b.add(kind, [*constants, x] if b.chance(0.4) else [x, *constants])


def normed_activation(b: Builder, x: Value) -> Value:
    """BatchNorm, and a Relu or Clip that has to take its shift if it is to be pushed."""
    normed = linears.batch_norm(b, x)
    return b.add("Relu", [normed]) if b.chance(0.6) else clamp(b, normed)


def barrier(b: Builder, x: Value) -> Value:
    """Something that no affine passes."""
    match b.between(0, 3):
        case 0 if x.rank > 1:
            return b.add("Softmax", [x], axis=b.pick(1, x.rank - 1))
        case 1:
            positive = b.add("Add", [b.add("Abs", [x]), b.constant(np.array(1, x.dtype))])
            return b.add("Div", [b.constant(b.numbers(dtype=x.dtype)), positive])
        case 2:
            return b.add("Tanh", [x])
    return b.add("Sigmoid", [x])
