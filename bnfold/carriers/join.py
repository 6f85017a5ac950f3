"""Concat: along its axis each input takes its slice of (s, t); along any other axis all take the same."""

from __future__ import annotations

from itertools import accumulate

import numpy as np

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.decision import Reason, Refusal
from bnfold.graph import Operator, PlacedAffine, Step
from bnfold.views import Concat


def pull_concat(operator: Operator, view: Concat, wanted: PlacedAffine) -> Step | Refusal:
    """Slices along the axis; the whole affine to every input elsewhere."""
    if view.axis not in wanted.axes:
        return Step(dict.fromkeys(range(len(operator.inputs)), wanted))
    sizes = _sizes(operator, view)
    if sizes is None:
        return Refusal(Reason.AXIS_NOT_PROVEN, operator.name, "the length of an input along the axis is unknown")
    place = wanted.axes.index(view.axis)
    if sum(sizes) != wanted.sizes[place]:
        return Refusal(Reason.AXIS_NOT_PROVEN, operator.name, "the lengths of the inputs do not add up")
    cuts = list(accumulate(sizes))[:-1]
    scales, shifts = (
        np.split(a.reshape(wanted.sizes), cuts, place) for a in (wanted.affine.scale, wanted.affine.shift)
    )
    return Step({i: _replaced(wanted, place, *pair) for i, pair in enumerate(zip(scales, shifts, strict=True))})


def push_concat(operator: Operator, view: Concat, seen: dict[int, PlacedAffine]) -> Step | Refusal:
    """Along the axis the inputs without an affine keep the identity; elsewhere all must carry the same."""
    first = next(iter(seen.values()))
    if all(view.axis not in p.axes for p in seen.values()):
        same = len(seen) == len(operator.inputs) and all(p.equals(first) for p in seen.values())
        return Step({0: first}) if same else Refusal(Reason.READERS_DISAGREE, operator.name)
    sizes = _sizes(operator, view)
    if sizes is None:
        return Refusal(Reason.AXIS_NOT_PROVEN, operator.name, "the length of an input along the axis is unknown")
    parts = [_on_axis(seen.get(i), view.axis, size) for i, size in enumerate(sizes)]
    known = [p for p in parts if p is not None]
    if len(known) < len(parts):
        return Refusal(Reason.AXIS_NOT_PROVEN, operator.name, "the affine lives on several axes")
    return Step({0: PlacedAffine.on_axis(ChannelAffine.concat(known), view.axis)})


def _sizes(operator: Operator, view: Concat) -> list[int] | None:
    dims = [None if shape is None else shape[view.axis] for shape in operator.input_shapes]
    sizes = [d for d in dims if isinstance(d, int)]
    return sizes if len(sizes) == len(dims) else None


def _replaced(placed: PlacedAffine, place: int, scale: Float64Array, shift: Float64Array) -> PlacedAffine:
    sizes = (*placed.sizes[:place], scale.shape[place], *placed.sizes[place + 1 :])
    return PlacedAffine(ChannelAffine(scale.ravel(), shift.ravel()), placed.axes, sizes)


def _on_axis(placed: PlacedAffine | None, axis: int, size: int) -> ChannelAffine | None:
    return ChannelAffine.identity(size) if placed is None else placed.spread(axis, size)
