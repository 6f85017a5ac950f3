"""Steps of random graphs: sums and products of two variables, chunks, and operators that pick or spread channels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from tests import random_graph_linear as linears
from tests.random_graph_builder import Builder, Misfit, Value


def _integers(b: Builder, values: object) -> str:
    return b.constant(np.asarray(values, np.int64))


def _partner(b: Builder, x: Value) -> Value:
    """A value of the same shape: an older one, or a branch of its own."""
    fits = [v for v in b.values if v.dtype == x.dtype and v.shape == x.shape]
    return fits[int(b.rng.integers(len(fits)))]


def two_variables(b: Builder, x: Value) -> Value:
    """Add, Sub, Mul or Div of two values that fit, one of them perhaps broadcast."""
    other = _partner(b, x)
    if b.chance(0.3):
        other = linears.linear(b, b.values[int(b.rng.integers(len(b.values)))])
        if other.shape != x.shape or other.dtype != x.dtype:
            raise Misfit("another shape")
    elif b.chance(0.15) and x.rank > 1:
        axis = b.between(0, x.rank - 1)
        shape = [1 if a == axis else n for a, n in enumerate(x.shape)]
        other = _sliced(b, other, {a: (0, n) for a, n in enumerate(shape)})
    pair = [x, other] if b.chance(0.5) else [other, x]
    match b.pick("Add", "Add", "Sub", "Mul", "Div"):
        case "Div":
            positive = b.add("Add", [b.add("Abs", [pair[1]]), b.constant(np.array(1, x.dtype))])
            return b.add("Div", [pair[0], b.add("Sigmoid", [positive])])
        case kind:
            return b.add(kind, pair)


def gate(b: Builder, x: Value) -> Value:
    """Times a gate: of itself or another value, of its shape or pooled to a number for each channel."""
    other = x if b.chance(0.4) else _partner(b, x)
    if x.rank > 2 and b.chance(0.6):
        other = b.add("GlobalAveragePool", [other])
    pair: list[Value | str] = [x, b.add("Sigmoid", [other])]
    return b.add("Mul", pair if b.chance(0.5) else pair[::-1])


#: For each axis: where to start, where to end.
Bounds: TypeAlias = Mapping[int, tuple[int, int]]


def _sliced(b: Builder, x: Value, bounds: Bounds, steps: list[int] | None = None) -> Value:
    axes, starts, ends = list(bounds), [s for s, _ in bounds.values()], [e for _, e in bounds.values()]
    if b.opset < 10:
        if steps is not None:
            raise Misfit("no steps yet")
        return b.add("Slice", [x], axes=axes, starts=starts, ends=ends)
    written = [a - x.rank for a in axes] if b.chance(0.2) else axes
    rest = [] if steps is None else [_integers(b, steps)]
    return b.add("Slice", [x, _integers(b, starts), _integers(b, ends), _integers(b, written), *rest])


def slice_(b: Builder, x: Value) -> Value:
    """Some entries along one axis or two, mostly the channels; backwards and with steps."""
    if x.rank < 2:
        raise Misfit("one axis")
    axes = [1] if b.chance(0.6) else sorted({b.between(0, x.rank - 1), b.between(1, x.rank - 1)})
    if b.chance(0.3) and b.opset >= 10:
        steps = [b.pick(1, 2, -1, -2) for _ in axes]
        ends = [(0, 99) if s > 0 else (b.pick(-1, 99), -99) for s in steps]
        return _sliced(b, x, dict(zip(axes, ends, strict=True)), steps)
    starts = [b.pick(0, n // 2, -((n + 1) // 2)) for n in (x.shape[a] for a in axes)]
    ends = [b.pick(99, 2**31 - 1, max(x.shape[a] - b.between(0, 1), 1)) for a in axes]
    return _sliced(b, x, dict(zip(axes, zip(starts, ends, strict=True), strict=True)))


def chunk(b: Builder, x: Value) -> Value:
    """Split into two or three parts, or two Slices of one value; all parts may be read."""
    axis = 1 if b.chance(0.85) else b.between(0, x.rank - 1) if x.rank else 0
    if x.rank < 2 or x.shape[axis] < 2:
        raise Misfit("nothing to split")
    size = x.shape[axis]
    cut = size // 2 if b.chance(0.6) else b.between(1, size - 1)
    if b.chance(0.4):
        first = _sliced(b, x, {axis: (0, cut)})
        second = _sliced(b, x, {axis: (cut, size)})
        return b.pick(first, second)
    return b.add_all("Split", *_split(b, x, axis, [cut, size - cut]))[b.between(0, 1)]


def _split(b: Builder, x: Value, axis: int, parts: list[int]) -> tuple[list[Value | str], int, dict[str, object]]:
    written = axis - x.rank if b.opset >= 11 and b.chance(0.2) else axis
    if b.opset < 13:
        return [x], 2, {"axis": written, "split": parts}
    if parts[0] == -(-x.shape[axis] // 2) and (parts[0] == parts[1] or b.opset >= 18) and b.chance(0.5):
        return [x], 2, {"axis": written, **({"num_outputs": 2} if b.opset >= 18 else {})}
    return [x, _integers(b, parts)], 2, {"axis": written}


def gather(b: Builder, x: Value) -> Value:
    """Channels in another order, some left out, some twice, counted from the end; or one row."""
    if x.rank < 2:
        raise Misfit("one axis")
    axis = 1 if b.chance(0.8) else b.between(0, x.rank - 1)
    size = x.shape[axis]
    if b.chance(0.1):
        return b.add("Gather", [x, _integers(b, b.between(0, size - 1))], axis=axis)
    indices = [int(i) for i in b.rng.permutation(size)[: b.between(1, size)]]
    if b.chance(0.2):
        indices.append(indices[0])
    if b.opset >= 11 and b.chance(0.3):
        indices = [i - size for i in indices]
    return b.add("Gather", [x, _integers(b, indices)], axis=axis)


def blocks(b: Builder, x: Value) -> Value:
    """DepthToSpace where there are channels for it, else SpaceToDepth."""
    if x.rank != 4:
        raise Misfit("no image")
    if x.shape[1] % 4 == 0 and b.chance(0.7):
        mode = {"mode": b.pick("DCR", "CRD")} if b.opset >= 11 and b.chance(0.8) else {}
        return b.add("DepthToSpace", [x], blocksize=2, **mode)
    if x.shape[2] % 2 or x.shape[3] % 2:
        raise Misfit("no blocks")
    return b.add("SpaceToDepth", [x], blocksize=2)
