"""Resize and Pad: `sum_i w_i (s*x_i + t) = s*sum_i w_i x_i + t` where the weights w add up to 1.

A constant v that stands in outside the input passes when `s*v + t = v`; Pad's constant may be changed to
`s*v + t` (pull) or `(v - t)/s` (push) when that is one number for all channels.
"""

from __future__ import annotations

import numpy as np

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.decision import Reason, Refusal
from bnfold.graph import Operator, Pending, PlacedAffine, SetConstant, Step
from bnfold.window_views import Pad, Resample


def pull_resample(operator: Operator, view: Resample, wanted: PlacedAffine) -> Step | Refusal:
    """On axes that are provably left alone."""
    return _resample(operator, view, wanted)


def push_resample(operator: Operator, view: Resample, seen: PlacedAffine) -> Step | Refusal:
    """On axes that are provably left alone."""
    return _resample(operator, view, seen)


def _resample(operator: Operator, view: Resample, placed: PlacedAffine) -> Step | Refusal:
    if not set(placed.axes) <= view.untouched:
        return Refusal(Reason.AXIS_NOT_PROVEN, operator.name, "the channel axis may be resized")
    v = view.extrapolation
    if v is not None and not _fixes(placed.affine, v):
        return Refusal(Reason.SHIFT_MEETS_PADDING, operator.name, f"{v} stands in outside the input")
    return Step({0: placed})


def pull_pad(operator: Operator, view: Pad, wanted: PlacedAffine, pending: Pending) -> Step | Refusal:
    """On the channel axis the padded channels must keep v; elsewhere v becomes `s*v + t`."""
    v = _value(operator, view, pending)
    inner = _crop(operator, view, wanted, v)
    if isinstance(inner, Refusal):
        return inner
    if v is None or not _pads_elsewhere(view, wanted):
        return Step({0: inner})
    with np.errstate(all="ignore"):  # all output channels: those padded on the channel axis hold v too
        return _with_value(operator, v, inner, wanted.affine.scale * v + wanted.affine.shift)


def push_pad(operator: Operator, view: Pad, seen: PlacedAffine, pending: Pending) -> Step | Refusal:
    """On the channel axis the padded channels get the identity; elsewhere v becomes `(v - t)/s`."""
    v = _value(operator, view, pending)
    outer = _extend(operator, view, seen, v)
    if isinstance(outer, Refusal):
        return outer
    if v is None or not _pads_elsewhere(view, seen) or _fixes(seen.affine, v):
        return Step({0: outer})
    if not seen.affine.scale.all():
        return Refusal(Reason.SCALE_IS_ZERO, operator.name)
    return _with_value(operator, v, outer, (v - outer.affine.shift) / outer.affine.scale)


def _value(operator: Operator, view: Pad, pending: Pending) -> float | None:
    return None if view.value is None else float(pending.constant(operator))


def _fixes(affine: ChannelAffine, v: float) -> bool:
    """`s*v + t = v` for every channel, exactly."""
    with np.errstate(all="ignore"):
        return bool((affine.scale * v + affine.shift == v).all())


def _padded(view: Pad, axes: tuple[int, ...]) -> list[int]:
    return [axis for axis in axes if view.begins[axis] or view.ends[axis]]


def _pads_elsewhere(view: Pad, placed: PlacedAffine) -> bool:
    others = tuple(axis for axis in range(len(view.begins)) if axis not in placed.axes)
    return bool(_padded(view, others))


def _with_value(operator: Operator, old: float, placed: PlacedAffine, values: Float64Array) -> Step | Refusal:
    """`values` become the padding's constant when they are one finite number."""
    if (values == old).all():
        return Step({0: placed})
    uniform = np.isfinite(values[0]) and bool((values == values[0]).all())
    if not uniform:
        return Refusal(Reason.SHIFT_MEETS_PADDING, operator.name, f"it pads with {old}")
    return Step({0: placed}, (SetConstant(operator, np.float64(values[0]).reshape(())),))


def _crop(operator: Operator, view: Pad, wanted: PlacedAffine, v: float | None) -> PlacedAffine | Refusal:
    """Output channels to input channels."""
    padded = _padded(view, wanted.axes)
    if not padded:
        return wanted
    begin, end = view.begins[padded[0]], view.ends[padded[0]]
    if len(wanted.axes) > 1 or v is None or min(begin, end) < 0:
        return Refusal(Reason.OPERATOR_MIXES_CHANNELS, operator.name)
    inner = slice(begin, wanted.affine.channels - end)
    rim = np.ones(wanted.affine.channels, bool)
    rim[inner] = False
    if not _fixes(wanted.affine.take(np.flatnonzero(rim)), v):
        return Refusal(Reason.SHIFT_MEETS_PADDING, operator.name, "the padded channels would change")
    return PlacedAffine.on_axis(wanted.affine.take(inner), wanted.axes[0])


def _extend(operator: Operator, view: Pad, seen: PlacedAffine, v: float | None) -> PlacedAffine | Refusal:
    """Input channels to output channels."""
    padded = _padded(view, seen.axes)
    if not padded:
        return seen
    begin, end = view.begins[padded[0]], view.ends[padded[0]]
    if len(seen.axes) > 1 or v is None or min(begin, end) < 0:
        return Refusal(Reason.OPERATOR_MIXES_CHANNELS, operator.name)
    parts = [ChannelAffine.identity(begin), seen.affine, ChannelAffine.identity(end)]
    return PlacedAffine.on_axis(ChannelAffine.concat(parts), seen.axes[0])
