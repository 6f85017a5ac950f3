"""The BatchNorms that a plan leaves, rewritten as the constant operators that the caller asks for.

`y = s*x + t` of every source that could not be folded, with the constants multiplied out in float64. The caller wants
no BatchNorm, so what it costs is not asked.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from bnfold.bench import Bench
from bnfold.changes import Fold
from bnfold.decision import Decision, Kept, Reason, Reduced, Refusal, Subject
from bnfold.folding import FoldPlan, still_there
from bnfold.leftover_forms import Form, Leftover, leftover
from bnfold.regions import regions
from bnfold.sources import Source, compose, runs
from bnfold.views import Barrier, BatchNorm


@np.errstate(all="ignore")  # what leaves the range of float64 is refused as OVERFLOWS_DTYPE
def leave(plan: FoldPlan, form: Form) -> FoldPlan:
    """`plan`, with its kept BatchNorms in `form`.

    Not those that the caller wants to keep, and none that is no affine, or whose rank or range does not allow it: they
    stay BatchNorms, with the reason.
    """
    if form == "keep":
        return plan
    found = [(source, _leave(source, plan.bench, form)) for source in _stuck(plan.bench)]
    decisions = _decided(plan, found)
    leftovers = tuple(outcome for _, outcome in found if isinstance(outcome, Leftover))
    changes = [*plan.bench.folds, *(_change(left.source) for left in leftovers)]
    return replace(plan, decisions=decisions, regions=regions(plan.bench, changes), leftovers=leftovers)


def _change(source: Source) -> Fold:
    """What the local test must know: the operators, and the values that may be gone."""
    values = frozenset(value for op in source.operators for value in op.outputs if value is not None)
    return Fold(source, "pull", (), (), values)


def _leave(source: Source, bench: Bench, form: Form) -> Leftover | Refusal | None:
    """What takes the source's place; None where its own refusals say all."""
    if not source.placed.affine.is_finite:
        return None
    return leftover(source, form, is_stored=source.operators[0].index not in bench.affines)


def _stuck(bench: Bench) -> Iterator[Source]:
    """The sources with a BatchNorm that are still there, as the engine last saw them."""
    for run in runs(bench.graph, bench.wanted):
        for part in still_there(run, bench):
            for source in compose(part, bench):
                if any(isinstance(op.view, BatchNorm) for op in source.operators):
                    yield source


def _decided(plan: FoldPlan, found: list[tuple[Source, Leftover | Refusal | None]]) -> tuple[Decision, ...]:
    """The plan's decisions; names may repeat, but what is kept and what was found are both in topological order."""
    outcomes: defaultdict[Subject, deque[Leftover | Refusal | None]] = defaultdict(deque)
    for source, outcome in found:
        for subject in source.subjects:
            outcomes[subject].append(outcome)
    barriers = {id(op.view.refusal) for op in plan.bench.graph.operators if isinstance(op.view, Barrier)}
    decisions: list[Decision] = []
    for decision in plan.decisions:
        is_open = isinstance(decision, Kept) and not _stays(decision, barriers) and outcomes[decision.subject]
        decisions.append(_revised(decision, outcomes[decision.subject].popleft()) if is_open else decision)
    return tuple(decisions)


def _stays(decision: Decision, barriers: set[int]) -> bool:
    """Whether it is no affine, or the caller wants to keep it: the one reason is its own, at no other place."""
    assert isinstance(decision, Kept)
    first = decision.refusals[0]
    is_own = id(first) in barriers or (first.reason is Reason.EXCLUDED_BY_CALLER and not first.where)
    return is_own and len(decision.refusals) == 1


def _revised(decision: Decision, outcome: Leftover | Refusal | None) -> Decision:
    """A refusal comes third, after that of the pull and that of the push."""
    assert isinstance(decision, Kept)
    ways = decision.refusals if len(decision.refusals) > 1 else decision.refusals * 2
    match outcome:
        case Leftover(kind=kind):
            return Reduced(decision.subject, None, (), (), kind, decision.refusals)
        case Refusal():
            return Kept(decision.subject, (*ways, outcome))
    return decision
