"""Folding never changes the function, is idempotent, and says truly what it changed: on random graphs of all views."""

from __future__ import annotations

import numpy as np
from fold_graph import Net
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_nets import nets, written

from bnfold.changes import Fold
from bnfold.decision import Folded, Kept, Reduced
from bnfold.folding import FoldPlan, plan
from bnfold.views import BatchNorm

#: Relative to the largest element, and to 1 where all elements are smaller.
EXACT = 1e-9

MANY = settings(
    max_examples=250, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def differ(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape != b.shape or bool(
        np.abs(a - b).max(initial=0.0) > EXACT * max(1.0, float(np.abs(a).max(initial=0.0)))
    )


@MANY
@given(nets(), st.booleans())
def test_the_function_never_changes_and_only_the_named_values_change_their_meaning(net: Net, reduces: bool) -> None:
    made = plan(net, reduces=reduces)
    before, after = net.evaluate(), net.evaluate(made.bench)
    assert not [v for v in net.seen_by_caller if differ(before[v], after[v])]
    changed = {v for op in net.operators if op.index not in made.bench.removed for v in op.outputs if v}
    named = {v for fold in made.bench.folds for v in fold.values}
    assert {v for v in changed if differ(before[v], after[v])} <= named


@MANY
@given(nets(), st.booleans())
def test_folding_again_folds_nothing_and_the_written_model_is_the_planned_one(net: Net, reduces: bool) -> None:
    made = plan(net, reduces=reduces)
    model = written(net, made.bench)
    planned, values = net.evaluate(made.bench), model.evaluate()
    assert not [v for v in net.seen_by_caller if differ(planned[v], values[made.bench.root(v)])]
    again = plan(model, reduces=reduces)
    assert again.bench.folds == []
    assert [d.subject.name for d in again.decisions] == [d.subject.name for d in made.decisions if isinstance(d, Kept)]


@MANY
@given(nets(), st.booleans())
def test_regions_are_apart_hold_every_change_and_mean_the_same_at_their_borders(net: Net, reduces: bool) -> None:
    made = plan(net, reduces=reduces)
    before, after = net.evaluate(), net.evaluate(made.bench)
    inside = [index for region in made.regions for index in region.operators]
    assert len(inside) == len(set(inside))
    bench = made.bench
    drops = [fold.source for fold in bench.folds if isinstance(fold, Fold) and fold.is_drop]
    inside += [op.index for source in drops for op in source.operators]
    assert {*bench.removed, *bench.reduced, *bench.absorbed, *bench.constants, *bench.affines, *bench.clamps} <= set(
        inside
    )
    for region in made.regions:
        assert not [v for v in (*region.inputs, *region.outputs) if differ(before[v], after[v])]
    dropped = [subject.name for source in drops for subject in source.subjects]
    told = {name for r in made.regions for name in r.batchnorms}
    assert sorted(
        [*(name for r in made.regions for name in r.batchnorms), *(n for n in dropped if n not in told)]
    ) == sorted(d.subject.name for d in made.decisions if isinstance(d, Folded | Reduced))


@MANY
@given(nets())
def test_every_batchnorm_has_one_decision_in_topological_order_and_always_the_same(net: Net) -> None:
    made = plan(net)
    about = [d.subject.name for d in made.decisions if d.subject.is_batchnorm]
    assert about == ordered(net, about)
    assert sorted(about) == sorted(op.name for op in net.operators if isinstance(op.view, BatchNorm))
    assert shown(plan(net)) == shown(made)


def ordered(net: Net, names: list[str]) -> list[str]:
    """`names`, if each comes before all that depend on it."""
    places = {name: i for i, name in enumerate(names)}
    above: dict[str, set[str]] = {}
    for op in net.operators:
        above[op.name] = {op.name}.union(*(above[p.name] for v in op.inputs if (p := net.producer(v)) is not None))
    late = [n for n in names for a in above[n] & places.keys() if places[a] > places[n]]
    return names if not late else []


def shown(made: FoldPlan) -> list[str]:
    return [str(decision) for decision in made.decisions]
