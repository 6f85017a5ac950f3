"""Steps of random graphs: linear operators, BatchNorms, and arithmetic with constants."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.random_graph_builder import Array, Builder, Misfit, Value


def _weight(b: Builder, x: Value, *shape: int, fan_in: int) -> str:
    """Numbers that keep the size of the values, a channel of zeros now and then."""
    array = b.numbers(*shape, dtype=np.dtype(np.float64)) / np.sqrt(max(fan_in, 1))
    if b.chance(0.1):
        array[0] = 0
    return b.constant(array.astype(x.dtype), f"weight{fan_in}")


def _vector(b: Builder, x: Value, *shape: int) -> str:
    return b.constant(b.numbers(*shape, dtype=x.dtype), "vector")


def _geometry(b: Builder, rank: int) -> dict[str, Any]:
    """Kernel, strides and dilations of a window over `rank` axes, some left out."""
    found: dict[str, Any] = {"kernel_shape": [b.between(1, 3) for _ in range(rank)]}
    if b.chance(0.4):
        found["strides"] = [b.between(1, 2) for _ in range(rank)]
    if b.chance(0.2):
        found["dilations"] = [b.between(1, 2) for _ in range(rank)]
    return found


def _some_pads(b: Builder, rank: int, most: int = 2) -> dict[str, Any]:
    """No pads, equal ones, or different ones."""
    way = b.between(0, 2)
    if way == 0:
        return {}
    return {"pads": [1] * 2 * rank if way == 1 else [b.between(0, most) for _ in range(2 * rank)]}


def _spatial(x: Value) -> int:
    if not 3 <= x.rank <= 5:
        raise Misfit("no image")
    return x.rank - 2


def demand_windows(x: Value, attributes: dict[str, Any]) -> None:
    """Raises Misfit unless a window fits; onnx's own shape inference rounds a negative count towards zero."""
    ones = [1] * (x.rank - 2)
    pads = attributes.get("pads", [0] * 2 * len(ones))
    padded = [n + pads[i] + pads[i + len(ones)] for i, n in enumerate(x.shape[2:])]
    windows = zip(padded, attributes["kernel_shape"], attributes.get("dilations", ones), strict=True)
    if any((k - 1) * d + 1 > n for n, k, d in windows):
        raise Misfit("the window is larger than the image")


def conv(b: Builder, x: Value) -> Value:
    rank, channels = _spatial(x), x.shape[1]
    groups = b.pick(1, 1, channels, *(g for g in (2, 3) if channels % g == 0))
    outputs = groups * b.between(1, max(1, 5 // groups))
    attributes = _geometry(b, rank)
    if b.chance(0.3):
        attributes["auto_pad"] = b.pick("SAME_UPPER", "SAME_LOWER", "VALID")
        if attributes["auto_pad"] != "VALID":
            attributes.pop("dilations", None)  # onnxruntime refuses it
    else:
        attributes |= _some_pads(b, rank)
    demand_windows(x, attributes)
    kernel = attributes["kernel_shape"]
    if b.chance(0.5):
        del attributes["kernel_shape"]  # it may be left out
    weight = _weight(b, x, outputs, channels // groups, *kernel, fan_in=channels // groups * int(np.prod(kernel)))
    if groups > 1 or b.chance(0.3):
        attributes["group"] = groups
    return b.add("Conv", [x, weight, *_bias(b, x, outputs)], **attributes)


def _bias(b: Builder, x: Value, outputs: int) -> list[str]:
    """One, none, or one left out by an empty name."""
    way = b.rng.random()
    return [] if way < 0.2 else [""] if way < 0.4 else [_vector(b, x, outputs)]


def conv_transpose(b: Builder, x: Value) -> Value:
    rank, channels = _spatial(x), x.shape[1]
    groups = b.pick(1, 1, channels, *(g for g in (2, 3) if channels % g == 0))
    outputs = b.between(1, max(1, 5 // groups))
    attributes = _geometry(b, rank)
    kernel = attributes["kernel_shape"]
    strides, dilations = (attributes.get(k, [1] * rank) for k in ("strides", "dilations"))
    spans = [(k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    attributes |= _transposed_pads(b, x, spans, strides)
    extra = [b.between(0, max(s, d) - 1) for s, d in zip(strides, dilations, strict=True)]
    if any(extra) and "output_shape" not in attributes and "auto_pad" not in attributes:
        attributes["output_padding"] = extra
    weight = _weight(b, x, channels, outputs, *kernel, fan_in=channels // groups)
    if groups > 1:
        attributes["group"] = groups
    return b.add("ConvTranspose", [x, weight, *_bias(b, x, outputs * groups)], **attributes)


def _transposed_pads(b: Builder, x: Value, spans: list[int], strides: list[int]) -> dict[str, Any]:
    full = [s * (n - 1) + span + 1 for s, n, span in zip(strides, x.shape[2:], spans, strict=True)]
    match b.between(0, 5):
        case 0:
            # onnx infers two axes only where an output is smaller than its input
            return {"output_shape": [max(n, f - b.between(0, 2)) for f, n in zip(full, x.shape[2:], strict=True)]}
        case 1:
            return {"auto_pad": b.pick("SAME_UPPER", "SAME_LOWER", "VALID")}
        case 2:
            return {"pads": [*spans, *spans]}  # every output sees every tap, if the stride is 1
        case 3:
            return {}
    return {"pads": [b.between(0, s) for s in (*spans, *spans)]}


def gemm(b: Builder, x: Value) -> Value:
    if x.rank != 2:
        raise Misfit("no matrix")
    turned, on_the_left = b.chance(0.25), b.chance(0.2)
    inner, other = (x.shape[0], x.shape[1]) if turned != on_the_left else (x.shape[1], x.shape[0])
    new, weight_turned = b.between(1, 6), b.chance(0.5)
    shape = (new, inner) if weight_turned != on_the_left else (inner, new)
    weight = _weight(b, x, *shape, fan_in=inner)
    attributes: dict[str, Any] = {}
    flags = (weight_turned, turned) if on_the_left else (turned, weight_turned)
    for name, flag in zip(("transA", "transB"), flags, strict=True):
        if flag:
            attributes[name] = 1
    for name in ("alpha", "beta"):
        if b.chance(0.3):
            attributes[name] = b.pick(0.5, -1.5, 0.1)
    m, n = (new, other) if on_the_left else (other, new)
    c = [_vector(b, x, *b.pick((), (1,), (n,), (n,), (n,), (1, n), (m, 1), (m, n)))]
    c = [] if b.opset >= 11 and b.chance(0.3) else c
    return b.add("Gemm", [weight, x, *c] if on_the_left else [x, weight, *c], **attributes)


def matmul(b: Builder, x: Value) -> Value:
    if not 2 <= x.rank <= 4:
        raise Misfit("no matrix")
    on_the_left, new = b.chance(0.25), b.between(1, 6)
    inner = x.shape[-2] if on_the_left else x.shape[-1]
    batch = b.pick((), (), (), (), x.shape[:-2], (1,) * (x.rank - 2), x.shape[1:-2], (2, *x.shape[:-2])[:2])
    if b.chance(0.05) and not on_the_left:
        return b.add("MatMul", [x, _weight(b, x, inner, fan_in=inner)])
    weight = _weight(b, x, *batch, *((new, inner) if on_the_left else (inner, new)), fan_in=inner)
    y = b.add("MatMul", [weight, x] if on_the_left else [x, weight])
    if b.chance(0.5):
        return y
    sizes = [1] * y.rank
    axis = b.pick(-2 if on_the_left else -1, -2 if on_the_left else -1, -1, -2, 0)
    sizes[axis] = y.shape[axis]
    bias = _vector(b, x, *(sizes[axis:] if b.chance(0.7) else sizes))
    return b.add("Add", [y, bias] if b.chance(0.7) else [bias, y])


def linear(b: Builder, x: Value) -> Value:
    """The linear operator that fits."""
    if x.rank > 2 and b.chance(0.85):
        return (conv_transpose if b.chance(0.25) else conv)(b, x)
    return gemm(b, x) if x.rank == 2 and b.chance(0.6) else matmul(b, x)


def batch_norm(b: Builder, x: Value) -> Value:
    if x.rank < 2:
        raise Misfit("no channels")
    channels = x.shape[1]
    gamma, beta, mean, var = _statistics(b, channels)
    kinds = ("gamma", "vector", "mean", "variance")
    arrays = zip(kinds, (gamma, beta, mean, var), strict=True)
    names = [b.constant(a.astype(x.dtype), kind if b.chance(0.8) else "") for kind, a in arrays]
    attributes: dict[str, Any] = {}
    if b.chance(0.7):
        attributes["epsilon"] = b.pick(1e-5, 1e-3, 0.0, 0.1)
    if b.opset >= 14 and b.chance(0.3):
        attributes["training_mode"] = 0
    if b.chance(0.2):
        attributes["momentum"] = 0.9
    return b.add("BatchNormalization", [x, *names], **attributes)


def _statistics(b: Builder, channels: int) -> tuple[Array, Array, Array, Array]:
    wide = np.dtype(np.float64)
    gamma, beta, mean = (b.numbers(channels, dtype=wide) for _ in range(3))
    var = b.rng.uniform(0.2, 2.0, channels)
    way = b.rng.random()
    if way < 0.3:
        gamma = np.abs(gamma) + 0.1
    elif way < 0.4:
        gamma = gamma * (b.rng.random(channels) < 0.6)
    elif way < 0.43:
        gamma = gamma * 0
    if b.chance(0.15):
        beta = mean * gamma / np.sqrt(var)  # no shift, but for rounding
    elif b.chance(0.15):
        beta, mean = beta * 0, mean * 0
    if b.chance(0.12):
        mean = mean * 100
    return gamma, beta, mean, var


def arithmetic(b: Builder, x: Value) -> Value:
    """Add, Sub, Mul or Div with a constant."""
    return _with_constant(b, x, b.pick("Add", "Sub", "Mul", "Div"), _constant_shape(b, x))


def disguised_batch_norm(b: Builder, x: Value) -> Value:
    """Sub, Mul and Add of one number per channel, as Keras exports write it; the channels first or last."""
    axis = x.rank - 1 if b.chance(0.4) else 1
    if x.rank < 2:
        raise Misfit("no channels")
    shape = (x.shape[axis], *(1,) * (x.rank - 1 - axis))
    for op_type in b.pick(("Sub", "Mul", "Add"), ("Mul", "Add"), ("Sub", "Div"), ("Div",), ("Mul", "Sub")):
        x = _with_constant(b, x, op_type, shape)
    return x


def _constant_shape(b: Builder, x: Value) -> tuple[int, ...]:
    """A scalar, one axis, the spatial axes, the whole shape, or (rarely) more than the value has."""
    sizes, way = [1] * x.rank, b.rng.random()
    if way < 0.15 or not x.rank:
        return (1,) if b.pick(0, 1) else ()
    if way < 0.25:
        return x.shape
    if way < 0.35 and x.rank > 2:
        return (1, *x.shape[2:])
    if way < 0.38:
        return (2, *(n if b.chance(0.5) else 1 for n in x.shape))
    axis = 1 if x.rank > 1 and b.chance(0.7) else b.between(0, x.rank - 1)
    sizes[axis] = x.shape[axis]
    return tuple(sizes[axis:] if b.chance(0.6) else sizes)


def _with_constant(b: Builder, x: Value, op_type: str, shape: tuple[int, ...]) -> Value:
    values = b.numbers(*shape, dtype=np.dtype(np.float64))
    if op_type == "Div":
        values = np.sign(values) * (np.abs(values) + 0.3)
    elif op_type == "Mul" and b.chance(0.4):
        values = np.abs(values) + 0.1
    elif op_type == "Mul" and b.chance(0.1):
        values = values * 0
    constant = b.constant(np.asarray(values).astype(x.dtype), f"operand of {op_type}")
    first = b.chance(0.3) and op_type != "Div"
    return b.add(op_type, [constant, x] if first else [x, constant])
