"""Means and maxima over windows or axes: `mean(s*x + t) = s*mean(x) + t`, `max(s*x + t) = s*max(x) + t` for s > 0.

The affine must not live on an axis that is pooled over. Zeros of the padding that are averaged in would miss the
shift; padding of a maximum is -inf and does no harm.
"""

from __future__ import annotations

from collections.abc import Callable

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.carriers.shape import move_axes
from bnfold.decision import Reason, Refusal
from bnfold.graph import Operator, PlacedAffine, Step
from bnfold.window_views import Average, Maximum, Total


def pull_average(operator: Operator, view: Average, wanted: PlacedAffine) -> Step | Refusal:
    """Scale always, shift unless zeros are averaged in."""
    return _refuse_average(operator, view, wanted) or _back(operator, view, wanted)


def push_average(operator: Operator, view: Average, seen: PlacedAffine) -> Step | Refusal:
    """Scale always, shift unless zeros are averaged in."""
    return _refuse_average(operator, view, seen) or _on(operator, view, seen)


def pull_maximum(operator: Operator, view: Maximum, wanted: PlacedAffine) -> Step | Refusal:
    """With scales that are not negative."""
    return _refuse_maximum(operator, view, wanted, zero=True) or _back(operator, view, wanted)


def push_maximum(operator: Operator, view: Maximum, seen: PlacedAffine) -> Step | Refusal:
    """With positive scales."""
    return _refuse_maximum(operator, view, seen, zero=False) or _on(operator, view, seen)


def pull_total(operator: Operator, view: Total, wanted: PlacedAffine) -> Step | Refusal:
    """`s*sum(x) + t = sum(s*x + t/n)` over n elements."""
    return _counted(operator, view, wanted, lambda shift, count: shift / count, _back)


def push_total(operator: Operator, view: Total, seen: PlacedAffine) -> Step | Refusal:
    """`sum(s*x + t) = s*sum(x) + n*t` over n elements."""
    return _counted(operator, view, seen, lambda shift, count: shift * count, _on)


def _counted(
    operator: Operator,
    view: Total,
    placed: PlacedAffine,
    share: Callable[[Float64Array, int], Float64Array],
    move: Callable[[Operator, Total, PlacedAffine], Step | Refusal],
) -> Step | Refusal:
    if placed.affine.is_pure_scale:
        return move(operator, view, placed)
    if not view.count:
        return Refusal(Reason.AXIS_NOT_PROVEN, operator.name, "it is not known how many elements are summed")
    affine = ChannelAffine(placed.affine.scale, share(placed.affine.shift, view.count))
    return move(operator, view, placed.with_affine(affine))


def _refuse_average(operator: Operator, view: Average, placed: PlacedAffine) -> Refusal | None:
    if view.counts_padding and not placed.affine.is_pure_scale:
        return Refusal(Reason.SHIFT_MEETS_PADDING, operator.name)
    return None


def _refuse_maximum(operator: Operator, view: Maximum, placed: PlacedAffine, *, zero: bool) -> Refusal | None:
    lowest = placed.affine.scale.min()
    if lowest < 0 or (lowest == 0 and not zero):
        return Refusal(Reason.SCALE_IS_NOT_POSITIVE, operator.name)
    if view.indices_read:
        return Refusal(Reason.INDICES_ARE_READ, operator.name)
    if view.window_in_padding and not placed.affine.is_identity:
        return Refusal(Reason.SHIFT_MEETS_PADDING, operator.name)
    return None


def _back(operator: Operator, view: Average | Maximum | Total, wanted: PlacedAffine) -> Step | Refusal:
    """Output axes to input axes: an axis that was dropped comes back."""
    shape = operator.input_shapes[0]
    if view.keeps_axes:
        return _checked(operator, view, wanted, wanted)
    if shape is None:
        return Refusal(Reason.AXIS_NOT_PROVEN, operator.name)
    kept = [axis for axis in range(len(shape)) if axis not in view.axes]
    return Step({0: move_axes(wanted, dict(enumerate(kept)))})


def _on(operator: Operator, view: Average | Maximum | Total, seen: PlacedAffine) -> Step | Refusal:
    """Input axes to output axes: later axes move forward when one is dropped."""
    checked = _checked(operator, view, seen, seen)
    if view.keeps_axes or isinstance(checked, Refusal):
        return checked
    moved = {axis: axis - sum(gone < axis for gone in view.axes) for axis in seen.axes}
    return Step({0: move_axes(seen, moved)})


def _checked(
    operator: Operator, view: Average | Maximum | Total, inside: PlacedAffine, onward: PlacedAffine
) -> Step | Refusal:
    if set(inside.axes) & set(view.axes):
        return Refusal(Reason.OPERATOR_MIXES_CHANNELS, operator.name)
    return Step({0: onward})
