"""The engine: for each source a route is sought, checked and taken, or the reason recorded why there is none.

The plan is plain data. `inspect` prints it and `fold` writes it, so that the two cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeAlias

import numpy as np

from bnfold.bench import Bench
from bnfold.chaining import chain_all
from bnfold.changes import Change, Fold, Merge
from bnfold.decision import Decision, Folded, Kept, Reason, Reduced, Refusal
from bnfold.graph import FoldGraph, Operator
from bnfold.leftover_forms import Leftover
from bnfold.limits import objection
from bnfold.merging import merge_all
from bnfold.pulling import pull
from bnfold.regions import Region, regions
from bnfold.routes import Route, drop, push
from bnfold.sources import Source, compose, runs
from bnfold.splitting import split
from bnfold.views import Barrier


@dataclass(frozen=True, eq=False)
class FoldPlan:
    """What `fold` would do.

    Attributes:
        decisions: One for each BatchNorm (and constant chain that is one in disguise), in topological order.
        bench: The model as the folds would leave it.
        regions: The overlapping folds, for the local test.
        leftovers: What takes the place of BatchNorms that were not folded, where `bnfold.leftovers` was asked for it.
    """

    decisions: tuple[Decision, ...]
    bench: Bench
    regions: tuple[Region, ...]
    leftovers: tuple[Leftover, ...] = ()

    @property
    def merges(self) -> tuple[Merge, ...]:
        """Linear operators that took in others, each once for every time that it did."""
        return tuple(change for change in self.bench.folds if isinstance(change, Merge))


@np.errstate(all="ignore")  # what leaves the range of float64 is refused as OVERFLOWS_DTYPE
def plan(
    graph: FoldGraph,
    wanted: Callable[[str], bool] = lambda _name: True,
    *,
    reduces: bool = False,
    merges: bool = True,
) -> FoldPlan:
    """Decide about every BatchNorm of `graph`; those whose name is not `wanted` are kept.

    Sources are taken in topological order; each is pulled into its producers if that is possible, else pushed. What
    was kept is tried again as long as that helps: a fold may make room for one before it (an Add that is there now).
    Then, if the plan `merges`, linear operators in a row and in parallel become one, and all is tried again.
    Only for what cannot be folded at last, other readers are made to undo the change of a value, and what cannot be
    folded whole is split; if the plan `reduces`, an Add may be left of it.
    """
    bench = Bench(graph, wanted)
    done, kept = _refused(graph, wanted), list[tuple[int, Decision]]()
    last_resort = False
    while True:
        before = len(bench.folds)
        folded, kept = _attempt(bench, last_resort=last_resort, reduces=reduces)
        done += folded
        if len(bench.folds) > before:
            last_resort = False
        elif merges and (chain_all(bench) | merge_all(bench)):
            done += [found for change in bench.folds[before:] for found in _merged(change)]
        elif last_resort:
            break
        else:
            last_resort = True
    ordered = [decision for _, decision in sorted([*done, *kept], key=lambda pair: pair[0])]
    return FoldPlan((*ordered, *graph.unreachable), bench, regions(bench, bench.folds))


_Decided: TypeAlias = list[tuple[int, Decision]]


def _attempt(bench: Bench, *, last_resort: bool, reduces: bool) -> tuple[_Decided, _Decided]:
    """One pass over all sources: what was folded, and what was not."""
    folded, kept = _Decided(), _Decided()
    for run in runs(bench.graph, bench.wanted):
        for source in (source for part in still_there(run, bench) for source in compose(part, bench)):
            outcome = _settle(bench, source, undoes=last_resort)
            if last_resort and isinstance(outcome, tuple):
                outcome = _split(bench, source, outcome, may_leave_add=False)
            if last_resort and isinstance(outcome, tuple):
                outcome = _spend(bench, source, math.inf if reduces else 1.0)
            if last_resort and reduces and isinstance(outcome, tuple):
                outcome = _split(bench, source, outcome, may_leave_add=True)
            found = [(source.operators[0].index, d) for d in _decisions(source, outcome)]
            (folded if isinstance(outcome, Fold) else kept).extend(found)
    return folded, kept


def still_there(run: tuple[Operator, ...], bench: Bench) -> list[tuple[Operator, ...]]:
    """What is still there of `run`; a BatchNorm that became an Add stands between what comes before and after it."""
    parts: list[tuple[Operator, ...]] = [()]
    for operator in run:
        if operator.index in bench.reduced:
            parts.append(())
        elif not bench.is_settled(operator):
            parts[-1] = (*parts[-1], operator)
    return [part for part in parts if part]


def _merged(change: Change) -> _Decided:
    """The decisions about the BatchNorms that went with a merge."""
    assert isinstance(change, Merge)
    into, through = (change.into.name,), tuple(op.name for op, _ in change.sums)
    return [(change.gone[0].index, Folded(subject, "merge", into, through)) for subject in change.subjects]


def _refused(graph: FoldGraph, wanted: Callable[[str], bool]) -> list[tuple[int, Decision]]:
    """BatchNorms that are no affine, and those that the caller wants to keep."""
    found: list[tuple[int, Decision]] = []
    for operator in graph.operators:
        if isinstance(operator.view, Barrier) and operator.view.is_batchnorm:
            subject = operator.view.subject(operator.name, operator.kind)
            found.append((operator.index, Kept(subject, (operator.view.refusal,))))
    excluded = Refusal(Reason.EXCLUDED_BY_CALLER)
    bench = Bench(graph)
    for run in runs(graph, lambda name: not wanted(name)):
        for source in compose(run, bench):
            found += [(source.operators[0].index, Kept(subject, (excluded,))) for subject in source.subjects]
    return found


def _split(
    bench: Bench, source: Source, refusals: tuple[Refusal, ...], *, may_leave_add: bool
) -> Fold | tuple[Refusal, ...]:
    """Split what could not be folded whole for the reasons `refusals`, if that is possible."""
    found = split(bench, source, may_leave_add=may_leave_add) if source.placed.affine.is_finite else None
    if found is None:
        return refusals
    bench.apply(*found)
    return replace(found[0], refusals=refusals)


def _settle(bench: Bench, source: Source, *, undoes: bool) -> Fold | tuple[Refusal, ...]:
    """Take the first of pull and push that is possible, or say why neither is."""
    if not source.placed.affine.is_finite:
        return (Refusal(Reason.STATISTICS_NOT_FINITE, source.operators[0].name, _where_not_finite(source)),)
    refusals: list[Refusal] = []
    for search in _searches(source, undoes):
        route = search(bench, source)
        against = route if isinstance(route, Refusal) else objection(bench, source, route)
        if against is None:
            assert isinstance(route, Route)
            into, through, beside = (tuple(ops) for ops in (route.into, route.through, route.beside))
            fold = Fold(source, route.direction, into, through, frozenset(route.values), beside)
            bench.apply(fold, route.edits)
            return fold
        refusals.append(against)
    return tuple(dict.fromkeys(refusals[:2]))  # the last resort says no more than the pull


def _searches(source: Source, undoes: bool) -> tuple[Callable[[Bench, Source], Route | Refusal], ...]:
    if source.placed.affine.is_identity:
        return (drop,)
    return (pull, push, partial(pull, undoes=True)) if undoes else (pull, push)


def _spend(bench: Bench, source: Source, budget: float) -> Fold | tuple[Refusal, ...]:
    """As `_settle`, with clamps that get dearer by up to `budget` BatchNorms for each one that vanishes."""
    bench.budget = budget
    try:
        return _settle(bench, source, undoes=False)
    finally:
        bench.budget = 0.0


def _where_not_finite(source: Source) -> str:
    affine = source.placed.affine
    bad = np.flatnonzero(~(np.isfinite(affine.scale) & np.isfinite(affine.shift)))
    return f"channel {bad[0]}, {bad.size} of {affine.channels}"


def _decisions(source: Source, outcome: Fold | tuple[Refusal, ...]) -> list[Decision]:
    if isinstance(outcome, tuple):
        return [Kept(subject, outcome) for subject in source.subjects]
    into, through = (tuple(op.name for op in ops) for ops in (outcome.into, outcome.through))
    if outcome.left is not None:
        return [
            Reduced(subject, outcome.direction, into, through, "Add", outcome.refusals) for subject in source.subjects
        ]
    return [Folded(subject, outcome.direction, into, through) for subject in source.subjects]
