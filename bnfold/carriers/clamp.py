"""Clip, Relu, and Max and Min with constants: `s*clip(x, a, b) + t = clip(s*x + t, s*a + t, s*b + t)` for s > 0.

For s < 0 the bounds change places. Pushed, `clip(s*x + t, a, b) = s*clip(x, (a - t)/s, (b - t)/s) + t`; a channel with
s = 0 is constant, so that its bounds may be anything. No bound stays no bound.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.decision import Reason, Refusal
from bnfold.graph import Bounds, Operator, Pending, PlacedAffine, SetBounds, Step
from bnfold.views import Clamp


def pull_clamp(operator: Operator, view: Clamp, wanted: PlacedAffine, pending: Pending) -> Step | Refusal:
    """The affine is asked of the input, and each bound becomes what the affine makes of it."""
    old = pending.bounds(operator)
    arrays = _arrays(operator, view, old, wanted)
    if isinstance(arrays, Refusal):
        return arrays
    scale, shift = arrays
    new = _moved(operator, old, scale, lambda bound: scale * bound + shift)
    return _step(operator, view, pending, new, wanted)


def push_clamp(operator: Operator, view: Clamp, seen: PlacedAffine, pending: Pending) -> Step | Refusal:
    """The affine is seen after it, and each bound becomes what the affine makes the old one of."""
    old = pending.bounds(operator)
    arrays = _arrays(operator, view, old, seen)
    if isinstance(arrays, Refusal):
        return arrays
    scale, shift = arrays
    dead = seen.affine.scale == 0
    after = _after(old, seen, dead)
    if after is None:
        return Refusal(Reason.SCALE_IS_ZERO, operator.name)
    if dead.all():
        return Step({0: after})
    new = _moved(operator, old, scale, lambda bound: (bound - shift) / scale)
    return _step(operator, view, pending, _revived(new, seen, dead), after)


def _arrays(
    operator: Operator, view: Clamp, bounds: Bounds, placed: PlacedAffine
) -> tuple[Float64Array, Float64Array] | Refusal:
    """Scale and shift in the value's shape; where its rank is unknown, of a scale that moves no bound."""
    if view.rank is not None:
        return placed.arrays(view.rank)
    fixed = all(side.ndim == 0 and side in (0, np.inf, -np.inf) for side in (bounds.low, bounds.high))
    if fixed and placed.affine.is_pure_scale and placed.affine.is_positive:
        return np.ones(()), np.zeros(())
    return Refusal(Reason.AXIS_NOT_PROVEN, operator.name, "unknown rank")


def _moved(
    operator: Operator, old: Bounds, scale: Float64Array, move: Callable[[Float64Array], Float64Array]
) -> Bounds | Refusal:
    """Both bounds moved, and swapped where the scale is negative; entries of a zero scale mean nothing."""
    with np.errstate(all="ignore"):
        low, high = (
            np.where(np.isinf(bound), np.where(scale < 0, -bound, bound), move(bound)) for bound in (old.low, old.high)
        )
    for bound, moved in ((old.low, low), (old.high, high)):
        if not (np.isfinite(moved) | np.isinf(bound) | (scale == 0)).all():
            return Refusal(Reason.OVERFLOWS_DTYPE, operator.name, "a bound")
    low, high = np.where(scale < 0, high, low), np.where(scale < 0, low, high)
    meaningless = ~(low <= high)
    return Bounds(np.where(meaningless, -np.inf, low), np.where(meaningless, np.inf, high))


def _after(old: Bounds, seen: PlacedAffine, dead: npt.NDArray[np.bool_]) -> PlacedAffine | None:
    """What is seen after the clamp: a dead channel is the clamped shift; None where that is not one number."""
    if not dead.any():
        return seen
    flat = [_along(side, seen) for side in (old.low, old.high)]
    if flat[0] is None or flat[1] is None:
        return None
    shift = np.where(dead, np.clip(seen.affine.shift, flat[0], flat[1]), seen.affine.shift)
    return seen.with_affine(ChannelAffine(seen.affine.scale, shift))


def _along(side: Float64Array, placed: PlacedAffine) -> Float64Array | None:
    """The bound for each entry of the affine; None where it varies along other axes."""
    if any(size > 1 and axis not in placed.axes for axis, size in enumerate(side.shape)):
        return None
    kept = side.reshape([side.shape[axis] for axis in placed.axes]) if side.ndim else side
    return np.broadcast_to(kept, placed.sizes).ravel()


def _revived(new: Bounds | Refusal, seen: PlacedAffine, dead: npt.NDArray[np.bool_]) -> Bounds | Refusal:
    """Dead channels get the bounds of the first one that lives, so that they cost nothing."""
    if isinstance(new, Refusal) or not dead.any():
        return new
    rank = max(new.low.ndim, new.high.ndim)
    if not rank:
        return new
    where = seen.with_affine(ChannelAffine(dead.astype(np.float64), np.zeros(dead.size))).arrays(rank)[0] > 0
    alive = int(np.flatnonzero(~dead)[0])
    sides = []
    for side in (new.low, new.high):
        flat = _along(side, seen)
        assert flat is not None
        sides.append(np.where(where, flat[alive], side))
    return Bounds(*sides)


def _step(
    operator: Operator, view: Clamp, pending: Pending, new: Bounds | Refusal, placed: PlacedAffine
) -> Step | Refusal:
    """The step with those bounds, if they can be written and may cost what they do."""
    if isinstance(new, Refusal):
        return new
    old = pending.bounds(operator)
    if new.equals(old):
        return Step({0: placed})
    if new.varies and not view.may_vary:
        reason = Reason.OPERATOR_HAS_NO_RULE if placed.affine.is_pure_scale else Reason.SHIFT_MEETS_ACTIVATION
        return Refusal(reason, operator.name, "a bound for each channel needs operator set 8")
    if new.varies and not pending.spends and (not old.varies or new.sides > old.sides):
        return Refusal(Reason.COSTS_MORE, operator.name, "a bound for each channel")
    return Step({0: placed}, (SetBounds(operator, new),))
