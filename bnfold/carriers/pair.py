"""Sums and products of two variables: `s*(x + z) + t = (s*x + t) + s*z`, `s*(x*z) = (s*x)*z`.

A scale goes to both operands of a sum and a shift to one of them, whichever can take it. A product passes the scale to
one factor. An operand that is broadcast along the affine's axis cannot carry it.
"""

from __future__ import annotations

from bnfold.affine import ChannelAffine
from bnfold.decision import Reason, Refusal
from bnfold.graph import Answer, Operator, PlacedAffine, Shape, Step
from bnfold.views import Product, Sum


def pull_sum(operator: Operator, view: Sum, wanted: PlacedAffine) -> Answer:
    """Scale to both, shift to either (negated for a subtrahend)."""
    ways = tuple(step for taker in (0, 1) if (step := _shift_to(taker, operator, view, wanted)) is not None)
    if not ways:
        return Refusal(Reason.AXIS_NOT_PROVEN, operator.name, "an operand may be broadcast along the channels")
    return ways[0] if wanted.affine.is_pure_scale else ways


def _shift_to(taker: int, operator: Operator, view: Sum, wanted: PlacedAffine) -> Step | None:
    """The operand `taker` takes scale and shift, the other one the scale, unless that is 1 everywhere."""
    sign = view.sign if taker == 1 else 1
    whole = ChannelAffine(wanted.affine.scale, sign * wanted.affine.shift)
    placed = {taker: _on_operand(operator, taker, wanted.with_affine(whole))}
    if not (wanted.affine.scale == 1).all():
        placed[1 - taker] = _on_operand(operator, 1 - taker, wanted.with_affine(wanted.affine.scale_only))
    known = {position: p for position, p in placed.items() if p is not None}
    return Step(known) if len(known) == len(placed) else None


def push_sum(operator: Operator, view: Sum, seen: dict[int, PlacedAffine]) -> Step | Refusal:
    """The shift of either operand, and a scale that both carry."""
    outside = {i: _on_output(operator, i, placed) for i, placed in seen.items()}
    known = {i: placed for i, placed in outside.items() if placed is not None}
    if len(known) < len(seen):
        return Refusal(Reason.AXIS_NOT_PROVEN, operator.name, "an operand may be broadcast along the channels")
    first = next(iter(known.values()))
    same = all(p.axes == first.axes and (p.affine.scale == first.affine.scale).all() for p in known.values())
    if not same or (len(known) < 2 and not (first.affine.scale == 1).all()):
        return Refusal(Reason.SCALE_IS_ON_ONE_OPERAND, operator.name)
    shift = sum((view.sign if i else 1) * p.affine.shift for i, p in known.items())
    return Step({0: first.with_affine(ChannelAffine(first.affine.scale, first.affine.shift * 0 + shift))})


def pull_product(operator: Operator, view: Product, wanted: PlacedAffine) -> Answer:
    """A pure scale to one factor."""
    if not wanted.affine.is_pure_scale:
        return Refusal(Reason.SHIFT_MEETS_PRODUCT, operator.name)
    ways = [Step({i: placed}) for i in view.factors if (placed := _on_operand(operator, i, wanted)) is not None]
    if not ways:
        return Refusal(Reason.AXIS_NOT_PROVEN, operator.name, "the factors may be broadcast along the channels")
    return tuple(ways)


def push_product(operator: Operator, view: Product, seen: dict[int, PlacedAffine]) -> Step | Refusal:
    """Pure scales multiply."""
    if not all(placed.affine.is_pure_scale for placed in seen.values()):
        return Refusal(Reason.SHIFT_MEETS_PRODUCT, operator.name)
    if not set(seen) <= set(view.factors):
        return Refusal(Reason.OPERATOR_IS_NOT_LINEAR, operator.name, "division by the value")
    outside = [_on_output(operator, i, placed) for i, placed in seen.items()]
    first = outside[0]
    if first is None or any(p is None or p.axes != first.axes or p.sizes != first.sizes for p in outside):
        return Refusal(Reason.AXIS_NOT_PROVEN, operator.name, "the factors carry scales on different axes")
    total = first.affine
    for placed in outside[1:]:
        assert placed is not None
        total = total.then(placed.affine)
    return Step({0: first.with_affine(total)})


def _on_operand(operator: Operator, position: int, placed: PlacedAffine) -> PlacedAffine | None:
    """`placed` on the output, seen on an operand that has all its axes in full length; else None."""
    if not placed.axes:
        return placed
    shape, rank = operator.input_shapes[position], _rank(operator)
    if shape is None or rank is None:
        return None
    axes = tuple(axis - (rank - len(shape)) for axis in placed.axes)
    if min(axes) < 0 or any(shape[axis] != size for axis, size in zip(axes, placed.sizes, strict=True)):
        return None
    return PlacedAffine(placed.affine, axes, placed.sizes)


def _on_output(operator: Operator, position: int, placed: PlacedAffine) -> PlacedAffine | None:
    """`placed` on an operand, seen on the output, whose axes are counted from the end.

    None where the rank is unknown, or an axis of length 1 may be longer in the output.
    """
    if not placed.axes:
        return placed
    shape, rank, made = operator.input_shapes[position], _rank(operator), operator.output_shapes[0]
    if shape is None or rank is None:
        return None
    axes = tuple(axis + rank - len(shape) for axis in placed.axes)
    if any(size == 1 and (made is None or made[axis] != 1) for axis, size in zip(axes, placed.sizes, strict=True)):
        return None
    return PlacedAffine(placed.affine, axes, placed.sizes)


def _rank(operator: Operator) -> int | None:
    ranks = [_known_rank(shape) for shape in operator.input_shapes]
    return None if None in ranks else max(r for r in ranks if r is not None)


def _known_rank(shape: Shape | None) -> int | None:
    return None if shape is None else len(shape)
