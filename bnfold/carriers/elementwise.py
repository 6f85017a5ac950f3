"""Arithmetic with a constant c of any shape, widening Cast, and a BatchNorm that stays.

`s*(x + c) + t = s*x + (s*c + t)`: the constant is a leaf that absorbs what it is asked for. `s*(x*c) + t` has
`x -> s*x`, and with c_k != 0 per channel `x -> s*x + t/c`.
"""

from __future__ import annotations

import numpy as np

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.decision import Reason, Refusal
from bnfold.graph import Operator, Pending, PlacedAffine, SetAffine, SetConstant, Step
from bnfold.rounding import widens
from bnfold.views import Arithmetic, BatchNorm, Cast, ConstantOperand


def pull_constant(operator: Operator, view: ConstantOperand, wanted: PlacedAffine, pending: Pending) -> Step | Refusal:
    """Scale to the value and to the constant, shift to the constant; a product passes the scale alone."""
    scale, shift = wanted.arrays(view.rank)
    c = pending.constant(operator)
    scaled = Step({0: wanted.with_affine(wanted.affine.scale_only)})
    match view.arithmetic:
        case Arithmetic.ADD | Arithmetic.SUBTRACT_FROM:
            return Step(scaled.placed, (SetConstant(operator, scale * c + shift),))
        case Arithmetic.SUBTRACT:
            return Step(scaled.placed, (SetConstant(operator, scale * c - shift),))
        case Arithmetic.MULTIPLY | Arithmetic.DIVIDE:
            return scaled if wanted.affine.is_pure_scale else Refusal(Reason.SHIFT_MEETS_PRODUCT, operator.name)


def push_constant(operator: Operator, view: ConstantOperand, seen: PlacedAffine, pending: Pending) -> Step | Refusal:
    """`(s*x + t) + c = s*(x + c/s) + t` and `(s*x + t)*c = s*(x*c) + t*c`, the latter with c per channel or t = 0."""
    c = pending.constant(operator)
    match view.arithmetic:
        case Arithmetic.MULTIPLY | Arithmetic.DIVIDE:
            return _push_product(operator, view, seen, c)
        case Arithmetic.ADD | Arithmetic.SUBTRACT:
            return _push_sum(operator, view, seen, c, seen.affine)
        case Arithmetic.SUBTRACT_FROM:
            return _push_sum(operator, view, seen, c, ChannelAffine(seen.affine.scale, -seen.affine.shift))


def _push_sum(
    operator: Operator, view: ConstantOperand, seen: PlacedAffine, c: Float64Array, after: ChannelAffine
) -> Step | Refusal:
    out = Step({0: seen.with_affine(after)})
    if (seen.affine.scale == 1).all():
        return out
    if not seen.affine.scale.all():
        return Refusal(Reason.SCALE_IS_ZERO, operator.name)
    return Step(out.placed, (SetConstant(operator, c / seen.arrays(view.rank)[0]),))


def _push_product(operator: Operator, view: ConstantOperand, seen: PlacedAffine, c: Float64Array) -> Step | Refusal:
    if seen.affine.is_pure_scale:
        return Step({0: seen})
    factor = place_constant(c, view.rank)
    if factor is None or factor[0] not in ((), seen.axes):
        return Refusal(Reason.SHIFT_MEETS_PRODUCT, operator.name)
    values = factor[1]
    with np.errstate(all="ignore"):
        shift = seen.affine.shift * values if view.arithmetic is Arithmetic.MULTIPLY else seen.affine.shift / values
    return Step({0: seen.with_affine(ChannelAffine(seen.affine.scale, shift))})


def place_constant(c: Float64Array, rank: int) -> tuple[tuple[int, ...], Float64Array] | None:
    """The one axis along which `c` may vary, and its values there; no axis for a scalar, None for several axes."""
    axes = tuple(axis + rank - c.ndim for axis, size in enumerate(c.shape) if size > 1)
    return (axes, c.ravel()) if len(axes) <= 1 else None


def constant_affine(view: ConstantOperand, c: Float64Array) -> PlacedAffine | None:
    """What `x op c` computes, as an affine; None where c varies along several axes, or where it divides by zero."""
    place = place_constant(c, view.rank)
    if place is None:
        return None
    axes, values = place
    one, zero = np.ones_like(values), np.zeros_like(values)
    with np.errstate(all="ignore"):
        scale, shift = {
            Arithmetic.ADD: (one, values),
            Arithmetic.SUBTRACT: (one, -values),
            Arithmetic.SUBTRACT_FROM: (-one, values),
            Arithmetic.MULTIPLY: (values, zero),
            Arithmetic.DIVIDE: (1 / values, zero),
        }[view.arithmetic]
    return PlacedAffine(ChannelAffine(scale, shift), axes, (values.size,) if axes else ())


def pull_negate(wanted: PlacedAffine) -> Step:
    """`s*(-x) + t = -(s*x - t)`."""
    return Step({0: wanted.with_affine(ChannelAffine(wanted.affine.scale, -wanted.affine.shift))})


def push_negate(seen: PlacedAffine) -> Step:
    """`-(s*x + t) = s*(-x) - t`."""
    return pull_negate(seen)


def pull_cast(operator: Operator, view: Cast, wanted: PlacedAffine) -> Step | Refusal:
    """Through a widening Cast; whether the folded activations fit the narrow type is the engine's question."""
    return _widening(operator, view) or Step({0: wanted})


def push_cast(operator: Operator, view: Cast, seen: PlacedAffine) -> Step | Refusal:
    """Through a widening Cast."""
    return _widening(operator, view) or Step({0: seen})


def _widening(operator: Operator, view: Cast) -> Refusal | None:
    if widens(view.source, view.target):
        return None
    return Refusal(Reason.CAST_NARROWS, operator.name, f"{view.source} to {view.target}")


def pull_batchnorm(operator: Operator, view: BatchNorm, wanted: PlacedAffine, pending: Pending) -> Step | Refusal:
    """A BatchNorm that stays computes the wanted affine after its own."""
    after = wanted.spread(view.axis, view.affine.channels)
    if after is None:
        return Refusal(Reason.OPERATOR_MIXES_CHANNELS, operator.name)
    return Step(edits=(SetAffine(operator, pending.affine(operator).then(after)),))


def push_batchnorm(operator: Operator, view: BatchNorm, seen: PlacedAffine, pending: Pending) -> Step | Refusal:
    """A BatchNorm computes the affine before its own."""
    before = seen.spread(view.axis, view.affine.channels)
    if before is None:
        return Refusal(Reason.OPERATOR_MIXES_CHANNELS, operator.name)
    return Step(edits=(SetAffine(operator, before.then(pending.affine(operator))),))
