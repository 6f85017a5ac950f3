"""Why an exact route is not taken after all: range, conditioning and cost.

Range: a folded number must fit the stored dtype, and where that is quantised, its scales and integers. Conditioning: a
shift that moves past a linear operator is added after `W*x` instead of before; with `|mean| / sqrt(var + epsilon) > 8`
in a channel the cancellation costs accuracy.
Cost: an added Add costs as much as a BatchNorm (onnxruntime 1.31 on a CPU: 1.02 to 1.6 times).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bnfold.affine import Float64Array
from bnfold.bench import Bench
from bnfold.costs import clamp_cost
from bnfold.decision import Reason, Refusal
from bnfold.graph import AbsorbInput, AbsorbOutput, Bounds, Edit, Operator, SetAffine, SetBounds, SetConstant
from bnfold.requantising import requantised
from bnfold.rounding import largest, smallest_subnormal
from bnfold.routes import Route
from bnfold.sources import Source
from bnfold.views import BatchNorm, Clamp, ConstantOperand, Linear, Product, Sum
from bnfold.window_views import Pad

#: The largest |mean| / sqrt(var + epsilon) with which a shift may be pushed: at 10 a fold is still as accurate as the
#: original, at 100 it is 8 times worse in float32 and 37 times in float16, as the design measured it.
MAX_OFFSET = 8.0

#: The smallest folded weight of a channel, in units of the smallest subnormal: ten bits are left.
MIN_SUBNORMALS = 2.0**10

#: The share of float16's range that estimated activations may use.
FLOAT16_SHARE = 1 / 16


def objection(bench: Bench, source: Source, route: Route) -> Refusal | None:
    """The first condition of range, conditioning or cost that `route` breaks; None if it may be taken."""
    return (
        _conditioning(source, route)
        or _cost(bench, source, route)
        or next((r for edit in route.edits if (r := _range(bench, edit)) is not None), None)
        or _quantised(bench, route)
        or _activations(source, route)
    )


def _conditioning(source: Source, route: Route) -> Refusal | None:
    """A shift that is pushed cancels the mean of what came in; one that a reader undoes, that of what came out too."""
    undone = any(not placed.affine.is_pure_scale for placed in route.undone)
    pushed = route.direction == "push" and not source.placed.affine.is_pure_scale
    offset = max(source.offset, source.offset_after) if undone else source.offset
    if not (undone or pushed) or offset <= MAX_OFFSET:
        return None
    return Refusal(Reason.ILL_CONDITIONED, source.operators[0].name, f"{offset:.3g}, the limit is {MAX_OFFSET:g}")


def _cost(bench: Bench, source: Source, route: Route) -> Refusal | None:
    """A shift at a MatMul without an Add behind it needs one; a clamp with a bound for each channel is dearer."""
    added = sum(isinstance(edit, AbsorbInput | AbsorbOutput) and _adds(bench, edit) for edit in route.edits)
    clamps = [edit for edit in route.edits if isinstance(edit, SetBounds)]
    dearer = sum(clamp_cost(bench, edit) for edit in clamps)
    vanish = len(source.operators)
    if added > vanish:
        return Refusal(Reason.COSTS_MORE, route.into[0].name, f"{added} Adds")
    if added + dearer <= vanish * max(1.0, bench.budget):
        return None
    first = next(edit.operator for edit in clamps if clamp_cost(bench, edit))
    return Refusal(Reason.COSTS_MORE, first.name, f"a {first.kind} with a bound for each channel")


def _adds(bench: Bench, edit: AbsorbInput | AbsorbOutput) -> bool:
    view = edit.operator.view
    if not isinstance(view, Linear) or not view.shift_adds_operator or edit.affine.is_pure_scale:
        return False
    return not bench.linear_params(edit.operator).bias.any()


def _range(bench: Bench, edit: Edit) -> Refusal | None:
    match edit:
        case AbsorbInput(operator=operator) | AbsorbOutput(operator=operator):
            assert isinstance(operator.view, Linear)
            return _params_range(bench, edit, operator.view.dtype)
        case SetConstant(operator=operator, value=value):
            assert isinstance(operator.view, ConstantOperand | Pad)
            return _overflow(operator, operator.view.dtype, value)
        case SetBounds(operator=operator, bounds=bounds):
            assert isinstance(operator.view, Clamp)
            old, new = _finite(bench.bounds(operator)), _finite(bounds)
            before = np.full_like(new, np.abs(old).max(initial=0.0))
            dtype = operator.view.dtype
            return _overflow(operator, dtype, new) or _underflow(operator, dtype, before, np.abs(new))
        case SetAffine(operator=operator, affine=affine):
            assert isinstance(operator.view, BatchNorm)
            gamma, beta = (np.abs(a) for a in operator.view.stored(affine))
            before = np.abs(operator.view.stored(bench.affine(operator))[0])
            dtype = operator.view.dtype
            return _overflow(operator, dtype, gamma, beta) or _underflow(operator, dtype, before, gamma)


def _finite(bounds: Bounds) -> Float64Array:
    return np.concatenate([side[np.isfinite(side)].ravel() for side in (bounds.low, bounds.high)])


def _params_range(bench: Bench, edit: AbsorbInput | AbsorbOutput, dtype: np.dtype[Any]) -> Refusal | None:
    old, new = bench.linear_params(edit.operator), bench.linear_params(edit.operator, (edit,))
    if (refusal := _overflow(edit.operator, dtype, new.weight, new.bias)) is not None:
        return refusal
    at_output = isinstance(edit, AbsorbOutput)
    return _underflow(edit.operator, dtype, *(p.per_output() if at_output else p.per_input() for p in (old, new)))


def _quantised(bench: Bench, route: Route) -> Refusal | None:
    """What quantised weights cannot take; all that the route asks of one operator is asked together."""
    edits = [edit for edit in route.edits if isinstance(edit, AbsorbInput | AbsorbOutput)]
    for operator in {edit.operator.index: edit.operator for edit in edits}.values():
        asked = tuple(edit for edit in edits if edit.operator.index == operator.index)
        if isinstance(found := requantised(bench, operator, asked), Refusal):
            return found
    return None


def _underflow(operator: Operator, dtype: np.dtype[Any], before: Float64Array, after: Float64Array) -> Refusal | None:
    """`before` and `after` are the largest absolute numbers of each channel."""
    lost = (after > 0) & (after < MIN_SUBNORMALS * smallest_subnormal(dtype)) & (after < before)
    if not lost.any():
        return None
    return Refusal(Reason.UNDERFLOWS_DTYPE, operator.name, f"{after[lost].min():.3g} in {dtype.name}")


def _overflow(operator: Operator, dtype: np.dtype[Any], *arrays: Float64Array) -> Refusal | None:
    top = float(np.max([np.abs(a).max(initial=0.0) for a in arrays]))  # NaN if any of them holds one
    if top <= largest(dtype):
        return None
    return Refusal(Reason.OVERFLOWS_DTYPE, operator.name, f"{top:.3g} in {dtype.name}")


def _activations(source: Source, route: Route) -> Refusal | None:
    """In float16 the affine, moved past an operator, changes the size of the activations in between.

    Pulled it makes them what came out of it, pushed what went in. They are harmless where they do not grow, or stay
    well within the range; the estimates are the BatchNorm's own. They tell nothing about the operands of a sum, which
    may cancel, or about a factor, which may be large where the other one is small. A new bound of a clamp is a size
    that they may have.
    """
    narrow = [op for op in (*route.into, *route.through) if op.dtype is not None and op.dtype.name == "float16"]
    if not route.through or not narrow:
        return None
    scale, shift = np.abs(source.placed.affine.scale), np.abs(source.placed.affine.shift)
    pulled = route.direction == "pull"
    bounds = [_finite(edit.bounds) for edit in route.edits if isinstance(edit, SetBounds)]
    top = max((float(np.abs(b).max(initial=0.0)) for b in bounds), default=0.0)
    within = FLOAT16_SHARE * largest(np.dtype(np.float16))
    told = not any(isinstance(op.view, Sum | Product) for op in route.through)
    if not told or source.before is None or source.after is None:
        safe = bool((scale <= 1 if pulled else scale >= 1).all() and (shift <= 1).all()) and top <= within
    else:
        old, new = (source.before, source.after) if pulled else (source.after, source.before)
        new = max(new, top)
        safe = new <= old or new <= within
    return None if safe else Refusal(Reason.ACTIVATIONS_MIGHT_OVERFLOW, narrow[0].name)
