"""A step of random graphs: parallel linear branches of one value under a random tree of sums."""

from __future__ import annotations

from tests import random_graph_linear as linears
from tests.random_graph_builder import Builder, Misfit, Value


def branches(b: Builder, x: Value) -> Value:
    """Two to four branches of one value, most of which fit one frame: k x k, 1 x 1, depthwise, BatchNorm, the value."""
    if not 3 <= x.rank <= 5:
        raise Misfit("no image")
    parts = [_branch(b, x) for _ in range(b.between(2, 4))]
    while len(parts) > 1:
        first, second = (parts.pop(int(b.rng.integers(len(parts)))) for _ in range(2))
        if first.shape != second.shape:
            raise Misfit("another shape")
        parts.append(b.add(b.pick("Add", "Add", "Add", "Sub"), [first, second]))
    return parts[0]


def _branch(b: Builder, x: Value) -> Value:
    match b.pick("conv", "conv", "conv", "norm", "same", "other"):
        case "conv":
            made = _conv(b, x)
            return linears.batch_norm(b, made) if b.chance(0.5) else made
        case "norm":
            return linears.batch_norm(b, x)
        case "other":
            return b.add("Relu", [_conv(b, x)])
    return x


def _conv(b: Builder, x: Value) -> Value:
    """A convolution that keeps the size: kernel 1 or 3, padded by hand or by auto_pad, on any axis."""
    axes, channels = x.rank - 2, x.shape[1]
    kernel = [b.pick(1, 3) for _ in range(axes)]
    dilation = b.pick(1, 1, 2)
    half = [dilation * (k - 1) // 2 for k in kernel]
    groups = b.pick(1, 1, channels, *(g for g in (2, 3) if channels % g == 0))
    attributes = {"group": groups, "dilations": [dilation] * axes, "pads": half + half}
    if dilation == 1 and b.chance(0.2):
        attributes |= {"auto_pad": b.pick("SAME_UPPER", "SAME_LOWER")}
        del attributes["pads"], attributes["dilations"]
    linears.demand_windows(x, {"kernel_shape": kernel, "pads": half + half, "dilations": [dilation] * axes})
    weight = b.constant(b.numbers(channels, channels // groups, *kernel, dtype=x.dtype) / max(len(kernel), 1), "weight")
    bias = [b.constant(b.numbers(channels, dtype=x.dtype), "bias")] if b.chance(0.5) else []
    return b.add("Conv", [x, weight, *bias], **attributes)
