"""Splits an affine that cannot move whole: `f(s*x + t) = c*f((s/c)*x + t/c)` for the operators f that let c pass.

With c = s nothing but an Add of t/s is left (s != 0), and c moves into the next linear operators, exactly even with
zero padding. Before a positively homogeneous activation c must be positive, c = |s|. The rest is offered to the
producers first; where they cannot take it, an Add stays in the BatchNorm's place, if the caller wants that: it is no
faster (onnxruntime 1.31 on a CPU: 1.02 to 1.6 times the BatchNorm), but a graph without BatchNorms.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import numpy as np

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.bench import Bench
from bnfold.changes import Fold
from bnfold.decision import Refusal
from bnfold.graph import Edit, PlacedAffine
from bnfold.limits import FLOAT16_SHARE, objection
from bnfold.pulling import pull
from bnfold.rounding import largest
from bnfold.routes import Route, push
from bnfold.sources import Source
from bnfold.views import BatchNorm

Search: TypeAlias = Callable[[Bench, Source], Route | Refusal]


def split(bench: Bench, source: Source, *, may_leave_add: bool) -> tuple[Fold, list[Edit]] | None:
    """The first legal split of `source`, and its edits; None if there is none."""
    if len(source.operators) > 1 or not isinstance(source.operators[0].view, BatchNorm):
        return None
    for factor in _factors(source.placed.affine):
        onward = _taken(bench, source, ChannelAffine(factor, np.zeros_like(factor)), push)
        if onward is None:
            continue
        rest = ChannelAffine(source.placed.affine.scale / factor, source.placed.affine.shift / factor)
        if not _fits(source, rest):
            continue
        back = _taken(bench, source, rest, partial(pull, undoes=True))
        if back is not None and not _meet(back, onward):
            return _fold(source, onward, back, None), [*back.edits, *onward.edits]
        if may_leave_add and _may_stay(source, rest):
            return _fold(source, onward, Route("pull"), source.placed.with_affine(rest)), onward.edits
    return None


def _factors(affine: ChannelAffine) -> Iterator[Float64Array]:
    """First s, where that is never zero; then |s|, or 1 where s = 0."""
    if affine.scale.all():
        yield affine.scale
    if not affine.is_positive:
        yield np.where(affine.scale == 0, 1.0, np.abs(affine.scale))


def _taken(bench: Bench, source: Source, affine: ChannelAffine, search: Search) -> Route | None:
    """The route of a part of the affine, if there is one and nothing speaks against it."""
    part = replace(source, placed=source.placed.with_affine(affine))
    route = search(bench, part)
    if isinstance(route, Refusal) or objection(bench, part, route) is not None:
        return None
    return route


def _meet(back: Route, onward: Route) -> bool:
    """Whether a reader that undoes what goes back is on the way onward too."""
    beside = {op.index for op in back.beside}
    return bool(back.undone) and any(op.index in beside for op in (*onward.into, *onward.through))


def _may_stay(source: Source, rest: ChannelAffine) -> bool:
    """Whether an Add can stand in for the BatchNorm: a pure shift, on a value of known rank."""
    return bool((rest.scale == 1).all()) and source.operators[0].input_shapes[0] is not None


def _fits(source: Source, rest: ChannelAffine) -> bool:
    """Whether `rest`, whose scales are 1, 0 and -1, keeps the activations in the range of their (known) dtype."""
    operator = source.operators[0]
    if operator.dtype is None:
        return False
    top = float(np.abs(rest.shift).max()) + (source.before or 0.0)
    share = FLOAT16_SHARE if operator.dtype.name == "float16" else 1.0
    return top <= share * largest(operator.dtype)


def _fold(source: Source, onward: Route, back: Route, left: PlacedAffine | None) -> Fold:
    into, through, beside = (
        tuple(operators)
        for operators in (back.into + onward.into, back.through + onward.through, back.beside + onward.beside)
    )
    values = back.values | onward.values | ({source.output} if left is not None else set())
    return Fold(source, "push", into, through, frozenset(values), beside, left)
