"""Positively homogeneous activations: `f(s*x) = s*f(x)` for s > 0, and `|s*x| = |s|*|x|` for the even ones."""

from __future__ import annotations

import numpy as np

from bnfold.affine import ChannelAffine
from bnfold.decision import Reason, Refusal
from bnfold.graph import Operator, PlacedAffine, Step
from bnfold.views import Homogeneous


def pull_homogeneous(operator: Operator, _view: Homogeneous, wanted: PlacedAffine) -> Step | Refusal:
    """A positive scale, no shift."""
    return _refuse_shift(operator, wanted) or _refuse_sign(operator, wanted) or Step({0: wanted})


def push_homogeneous(operator: Operator, view: Homogeneous, seen: PlacedAffine) -> Step | Refusal:
    """A positive scale, no shift; through Abs a scale of any sign, which comes out as its absolute value."""
    if (refusal := _refuse_shift(operator, seen)) is not None:
        return refusal
    if view.is_even:
        absolute = ChannelAffine(np.abs(seen.affine.scale), seen.affine.shift)
        return Step({0: seen.with_affine(absolute)})
    return _refuse_sign(operator, seen) or Step({0: seen})


def _refuse_shift(operator: Operator, placed: PlacedAffine) -> Refusal | None:
    return None if placed.affine.is_pure_scale else Refusal(Reason.SHIFT_MEETS_ACTIVATION, operator.name)


def _refuse_sign(operator: Operator, placed: PlacedAffine) -> Refusal | None:
    return None if placed.affine.is_positive else Refusal(Reason.SCALE_IS_NOT_POSITIVE, operator.name)
