"""Operators of a `Net` that join two variables or pick channels; each by its definition in NumPy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from fold_graph import Array, Net

from bnfold.graph import Operator, Value
from bnfold.views import Negate, Product, Sum
from bnfold.window_views import Select, Spread, Total


def add_sum(net: Net, x: Value, z: Value, sign: int = 1, name: str = "") -> Value:
    """Add, or Sub for a sign of -1."""
    return net.add(Sum(sign), x, z, run=lambda _op, _held, xs: xs[0] + sign * xs[1], name=name)


def add_product(net: Net, x: Value, z: Value, *, divides: bool = False, name: str = "") -> Value:
    """Mul, or Div."""
    view = Product((0,)) if divides else Product()
    return net.add(view, x, z, run=lambda _op, _held, xs: xs[0] / xs[1] if divides else xs[0] * xs[1], name=name)


def add_negate(net: Net, x: Value) -> Value:
    """Neg."""
    return net.add(Negate(), x, run=lambda _op, _held, xs: -xs[0])


def add_total(net: Net, x: Value, axes: tuple[int, ...], *, keeps: bool = True, known: bool = True) -> Value:
    """ReduceSum; without `known` the number of elements is not told."""
    count = int(np.prod([net.samples[x].shape[a] for a in axes]))
    view = Total(axes, keeps, count if known else None)
    return net.add(view, x, run=lambda _op, _held, xs: xs[0].sum(axes, keepdims=keeps))


def add_select(net: Net, x: Value, axis: int, *parts: Sequence[int], known: bool = True, name: str = "") -> list[Value]:
    """Output j is entries `parts[j]` along `axis`; all outputs."""
    picks = {axis: tuple(tuple(p) for p in parts)} if known else {}
    sizes = {axis: net.samples[x].shape[axis]} if known else {}
    view = Select(picks, frozenset(() if known else (axis,)), sizes)
    net.add(view, x, run=lambda _op, _held, xs: tuple(xs[0].take(p, axis) for p in parts), name=name)
    return [value for value in net.operators[-1].outputs if value is not None]


def add_depth_to_space(net: Net, x: Value, block: int = 2, *, rows: bool = False) -> Value:
    """DepthToSpace, mode DCR, or CRD with `rows`."""
    n, c, h, w = net.samples[x].shape
    out = c // block**2
    split = (n, out, block, block, h, w) if rows else (n, block, block, out, h, w)
    order = (0, 1, 4, 2, 5, 3) if rows else (0, 3, 4, 1, 5, 2)
    places = np.arange(c) // block**2 if rows else np.arange(c) % out

    def run(_op: Operator, _held: Any, xs: Sequence[Array]) -> Array:
        blocks = xs[0].reshape(-1, *split[1:]).transpose(order)
        return blocks.reshape(-1, out, h * block, w * block)

    return net.add(Spread(1, tuple(int(p) for p in places)), x, run=run)


def add_space_to_depth(net: Net, x: Value, block: int = 2) -> Value:
    """SpaceToDepth."""
    _, c, h, w = net.samples[x].shape

    def run(_op: Operator, _held: Any, xs: Sequence[Array]) -> Array:
        blocks = xs[0].reshape(-1, c, h // block, block, w // block, block)
        return blocks.transpose(0, 3, 5, 1, 2, 4).reshape(-1, c * block**2, h // block, w // block)

    return net.add(Select({1: (tuple(range(c)) * block**2,)}, frozenset((2, 3)), {1: c}), x, run=run)
