"""Operators that pick or spread channels: `y_j = x_p(j)`, so `s_j*y_j + t_j` is `s_j*x_p(j) + t_j`.

Where a direction joins channels (pull through a Gather with repeats, push through DepthToSpace) their entries must be
equal. Channels that nobody asks about keep the identity.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from bnfold.affine import ChannelAffine
from bnfold.decision import Reason, Refusal
from bnfold.graph import Operator, PlacedAffine, Step
from bnfold.window_views import Select, Spread


def pull_select(operator: Operator, view: Select, wanted: PlacedAffine, output: int) -> Step | Refusal:
    """The wanted entries at the picked places of the input, the identity elsewhere."""
    if set(wanted.axes) & view.opaque:
        return Refusal(Reason.AXIS_NOT_PROVEN, operator.name, "it is not known which channels are picked")
    outputs = len(operator.outputs)
    if outputs > 1 and not set(wanted.axes) & set(view.picks):
        return Refusal(Reason.VALUE_HAS_OTHER_READERS, operator.name, "its other outputs would change as well")
    for axis in [a for a in wanted.axes if a in view.picks]:
        scattered = _scatter(wanted, axis, np.array(view.picks[axis][output], np.intp), view.sizes[axis])
        if scattered is None:
            return Refusal(Reason.READERS_DISAGREE, operator.name, "one channel is picked for two that differ")
        wanted = scattered
    return Step({0: wanted})


def push_select(operator: Operator, view: Select, seen: PlacedAffine) -> Step | Refusal:
    """The picked entries, for each output."""
    if set(seen.axes) & view.opaque:
        return Refusal(Reason.AXIS_NOT_PROVEN, operator.name, "it is not known which channels are picked")
    return Step({i: _picked(view, seen, i) for i, value in enumerate(operator.outputs) if value is not None})


def pull_spread(operator: Operator, view: Spread, wanted: PlacedAffine) -> Step | Refusal:
    """Every input channel takes the entry of the output channel that it goes to."""
    if view.axis not in wanted.axes or not set(wanted.axes) <= {0, view.axis}:
        return _elsewhere(operator, wanted)
    return Step({0: _taken(wanted, view.axis, np.array(view.places, np.intp))})


def push_spread(operator: Operator, view: Spread, seen: PlacedAffine) -> Step | Refusal:
    """Channels that go to one output channel must have equal entries."""
    if view.axis not in seen.axes or not set(seen.axes) <= {0, view.axis}:
        return _elsewhere(operator, seen)
    joined = _scatter(seen, view.axis, np.array(view.places, np.intp), max(view.places) + 1)
    if joined is None:
        return Refusal(Reason.READERS_DISAGREE, operator.name, "channels that are joined carry different affines")
    return Step({0: joined})


def _elsewhere(operator: Operator, placed: PlacedAffine) -> Step | Refusal:
    """On the batch axis, or everywhere the same; the other axes are stretched."""
    if set(placed.axes) <= {0}:
        return Step({0: placed})
    return Refusal(Reason.OPERATOR_MIXES_CHANNELS, operator.name)


def _picked(view: Select, seen: PlacedAffine, output: int) -> PlacedAffine:
    for axis in [a for a in seen.axes if a in view.picks]:
        seen = _taken(seen, axis, np.array(view.picks[axis][output], np.intp))
    return seen


def _taken(placed: PlacedAffine, axis: int, indices: npt.NDArray[np.intp]) -> PlacedAffine:
    """The entries at `indices` of one axis."""
    place = placed.axes.index(axis)
    scale, shift = (a.reshape(placed.sizes).take(indices, place) for a in (placed.affine.scale, placed.affine.shift))
    return PlacedAffine(ChannelAffine(scale.ravel(), shift.ravel()), placed.axes, scale.shape)


def _scatter(placed: PlacedAffine, axis: int, indices: npt.NDArray[np.intp], size: int) -> PlacedAffine | None:
    """Entry j of one axis at index `indices[j]` of another, identity where none goes; None if two that meet differ."""
    place = placed.axes.index(axis)
    sizes = (*placed.sizes[:place], size, *placed.sizes[place + 1 :])
    arrays = []
    for values, rest in ((placed.affine.scale, 1.0), (placed.affine.shift, 0.0)):
        moved = np.moveaxis(values.reshape(placed.sizes), place, 0)
        target = np.full((size, *moved.shape[1:]), rest)
        target[indices] = moved
        if not np.array_equal(target[indices], moved):
            return None
        arrays.append(np.moveaxis(target, 0, place).ravel())
    return PlacedAffine(ChannelAffine(*arrays), placed.axes, sizes)
