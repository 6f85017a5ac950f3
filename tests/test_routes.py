"""The way of one affine: who passes it, who takes it, and whose meaning changes; and what a bench makes of it."""

from __future__ import annotations

import numpy as np
import pytest
from fold_graph import FLOAT32, Net, affine, draw

from bnfold.affine import ChannelAffine
from bnfold.bench import Bench
from bnfold.decision import Folded, Kept, Reason, Refusal
from bnfold.folding import plan
from bnfold.graph import AbsorbOutput, Operator, SetConstant
from bnfold.pulling import pull
from bnfold.regions import Region
from bnfold.routes import Route, push
from bnfold.sources import Source, compose, runs
from bnfold.views import Arithmetic, Barrier, BatchNorm, Transpose
from bnfold.window_views import Average, Maximum

POSITIVE, SIGNED = affine(3, 1, shift=False), affine(3, 2, positive=False)


def image() -> Net:
    return Net(x=draw(2, 3, 6, 6))


def weights(seed: int = 0) -> np.ndarray:
    return draw(3, 3, 3, 3, seed=seed)


def sources(net: Net, bench: Bench) -> list[Source]:
    return [source for run in runs(net, lambda _name: True) for source in compose(run, bench)]


def names(operators: list[Operator]) -> list[str]:
    return [op.name for op in operators]


def test_a_pull_notes_every_operator_edit_and_value_on_its_way() -> None:
    net = image()
    value = net.arithmetic(Arithmetic.ADD, net.conv("x", weights(), name="conv"), draw(4, 4), name="add")
    net.bn(net.reduce(value, Maximum((2,)), name="max"), affine(3), name="bn")
    bench = Bench(net)
    route = pull(bench, sources(net, bench)[0])
    assert isinstance(route, Route)
    assert (route.direction, names(route.through), names(route.into)) == ("pull", ["max", "add"], ["conv"])
    assert [type(edit) for edit in route.edits] == [SetConstant, AbsorbOutput]
    assert route.values == {"conv.out", "add.out", "max.out"}


def test_a_push_notes_every_operator_and_value_on_its_way_and_not_its_own_output() -> None:
    net = image()
    value = net.homogeneous(net.bn("x", POSITIVE, name="bn"), name="relu")
    net.conv(net.reduce(value, Average((2,)), name="mean"), draw(3, 3, 1, 3), name="conv")
    bench = Bench(net)
    route = push(bench, sources(net, bench)[0])
    assert isinstance(route, Route)
    assert (route.direction, names(route.through), names(route.into)) == ("push", ["relu", "mean"], ["conv"])
    assert route.values == {"relu.out", "mean.out"}


def test_a_search_changes_nothing() -> None:
    net = image()
    value = net.arithmetic(Arithmetic.ADD, net.bn("x", SIGNED), draw(6, 6))
    net.conv(value, weights())
    bench = Bench(net)
    (source,) = sources(net, bench)
    assert isinstance(pull(bench, source), Refusal)
    assert isinstance(push(bench, source), Route)
    assert (bench.absorbed, bench.constants, bench.affines, bench.removed, bench.folds) == ({}, {}, {}, {}, [])


def test_a_pull_waits_until_every_reader_has_asked() -> None:
    """The long branch asks for the stem's output after the short one."""
    net = image()
    stem = net.conv("x", weights(), name="stem")
    long = net.homogeneous(net.transpose(net.transpose(stem, 0, 1, 3, 2), 0, 1, 3, 2))
    net.bn(net.concat(2, stem, long), POSITIVE)
    bench = Bench(net)
    route = pull(bench, sources(net, bench)[0])
    assert isinstance(route, Route)
    assert names(route.into) == ["stem"]


def test_a_push_waits_until_every_input_is_seen() -> None:
    net = image()
    stem = net.bn("x", POSITIVE)
    long = net.homogeneous(net.transpose(net.transpose(stem, 0, 1, 3, 2), 0, 1, 3, 2))
    net.conv(net.concat(2, stem, long), weights(), name="conv")
    bench = Bench(net)
    route = push(bench, sources(net, bench)[0])
    assert isinstance(route, Route)
    assert names(route.into) == ["conv"]


def test_a_pull_through_a_second_output_refuses() -> None:
    net = image()
    net.add(Transpose((0, 1, 2, 3)), "x", run=lambda _op, _held, xs: (xs[0], 2 * xs[0]), name="two")
    net.bn("two.1", SIGNED)
    bench = Bench(net)
    refusal = pull(bench, sources(net, bench)[0])
    assert isinstance(refusal, Refusal)
    assert (refusal.reason, refusal.where) == (Reason.OPERATOR_IS_NOT_LINEAR, "two")


def test_a_refusal_names_the_value_and_who_reads_it() -> None:
    net = image()
    stem = net.conv("x", weights(), name="stem")
    net.bn(stem, SIGNED)
    for i in range(3):
        net.barrier(stem, name=f"reader{i}")
    bench = Bench(net)
    refusal = pull(bench, sources(net, bench)[0])
    assert refusal == Refusal(Reason.VALUE_HAS_OTHER_READERS, "stem.out", "read by reader0 and 2 more")


def folded() -> tuple[Net, Bench]:
    """stem -> first -> relu -> second, all taken out of the way."""
    net = image()
    value = net.bn(net.conv("x", weights(), name="stem"), SIGNED, name="first")
    net.output(net.bn(net.homogeneous(value, name="relu"), POSITIVE, name="second"))
    return net, plan(net).bench


def test_a_bench_sees_through_what_it_has_removed() -> None:
    net, bench = folded()
    assert bench.removed == {1: "pull", 3: "pull"}
    assert bench.root("first.out") == "stem.out"
    assert bench.root("second.out") == "relu.out"
    producer = bench.producer("first.out")
    assert producer is not None
    assert producer.name == "stem"
    assert [(use.operator.name, use.position) for use in bench.uses("stem.out")] == [("relu", 0)]
    assert bench.visible("relu.out") == net.visible("second.out")
    assert bench.visible("stem.out") is None
    assert list(bench.removed_below("stem.out")) == [1]


def test_what_is_absorbed_later_is_applied_later() -> None:
    net, bench = folded()
    params = bench.linear_params(net.operators[0])
    expected = net.linear_params(net.operators[0]).absorb_output(SIGNED.then(POSITIVE))
    np.testing.assert_allclose(params.weight, expected.weight, rtol=1e-14)
    np.testing.assert_allclose(params.bias, expected.bias, rtol=1e-14)


def test_folds_that_share_an_operator_are_one_region() -> None:
    net, bench = folded()
    assert plan(net).regions == (Region((0, 1, 2, 3), ("x",), ("second.out",), ("first", "second")),)
    assert len(bench.folds) == 2


def test_folds_that_share_nothing_are_regions_of_their_own() -> None:
    net = image()
    first = net.bn(net.conv("x", weights(), name="a"), SIGNED, name="first")
    second = net.bn(net.conv(net.barrier(first, name="wall"), weights(), name="b"), SIGNED, name="second")
    net.output(second)
    assert plan(net).regions == (
        Region((0, 1), ("x",), ("first.out",), ("first",)),
        Region((3, 4), ("wall.out",), ("second.out",), ("second",)),
    )


def test_a_fold_that_meets_two_regions_joins_them() -> None:
    net = Net(x=draw(2, 3, 6, 6), y=draw(2, 3, 6, 6, seed=1))
    branches = [net.bn(net.conv(v, weights(), name=f"conv_{v}"), SIGNED, name=f"bn_{v}") for v in "xy"]
    net.output(net.bn(net.concat(1, *branches), affine(6), name="last"))
    (region,) = plan(net).regions
    assert (region.operators, set(region.batchnorms)) == (tuple(range(6)), {"bn_x", "bn_y", "last"})
    assert set(region.inputs) == {"x", "y"}


def test_a_run_ends_where_a_value_is_seen_or_read_twice_or_unwanted() -> None:
    net = image()
    value = net.output(net.bn("x", SIGNED, name="a"))
    value = net.bn(net.bn(value, SIGNED, name="b"), SIGNED, name="c")
    net.barrier(value)
    value = net.bn(net.bn(value, SIGNED, name="d"), SIGNED, name="no")
    net.bn(value, SIGNED, name="e")
    found = [[op.name for op in run] for run in runs(net, lambda name: name != "no")]
    assert found == [["a"], ["b", "c"], ["d"], ["e"]]


def test_a_source_tells_what_its_run_computes_and_estimates() -> None:
    net = image()
    value = net.bn("x", SIGNED, offset=2.0, before=3.0, after=4.0, name="a")
    value = net.arithmetic(Arithmetic.MULTIPLY, value, 2.0)
    net.bn(value, POSITIVE, offset=1.0, before=5.0, after=6.0, name="b")
    (source,) = sources(net, Bench(net))
    doubled = ChannelAffine(np.full(3, 2.0), np.zeros(3))
    assert source.placed.affine.equals(SIGNED.then(doubled).then(POSITIVE))
    assert (source.offset, source.before, source.after) == (2.0, None, None)
    assert (source.input, source.output) == ("x", "b.out")
    assert [s.name for s in source.subjects] == ["a", "b"]


@pytest.mark.parametrize("axis", [1, 2])
def test_estimates_are_those_of_the_first_and_the_last_batchnorm_and_of_one_axis(axis: int) -> None:
    net = image()
    value = net.bn("x", SIGNED, before=3.0, after=4.0)
    net.bn(value, affine((0, 3, 6)[axis]), axis=axis, before=5.0, after=6.0)
    found = [(s.before, s.after) for s in sources(net, Bench(net))]
    assert found == ([(3.0, 6.0)] if axis == 1 else [(3.0, 4.0), (5.0, 6.0)])


def test_a_batchnorm_that_stays_stores_gamma_and_beta_for_its_unchanged_statistics() -> None:
    mean, deviation = np.array([1.0, -2]), np.array([0.5, 4])
    view = BatchNorm(affine(2), 1, FLOAT32, mean, deviation, 0.0, 1.0, 1.0)
    wanted, x = affine(2, 5, positive=False), draw(7, 2)
    gamma, beta = view.stored(wanted)
    np.testing.assert_allclose(gamma * (x - mean) / deviation + beta, wanted.apply(x), rtol=1e-12, atol=1e-12)


def test_decisions_name_every_operator_that_took_part() -> None:
    net = Net(x=draw(2, 3, 6, 6), y=draw(2, 3, 6, 6, seed=1))
    branches = [net.homogeneous(net.conv(v, weights(), name=f"conv_{v}"), name=f"relu_{v}") for v in "xy"]
    net.output(net.bn(net.concat(1, *branches, name="cat"), affine(6, shift=False), name="bn"))
    (decision,) = plan(net).decisions
    assert isinstance(decision, Folded)
    assert set(decision.into) == {"conv_x", "conv_y"}
    assert decision.through[0] == "cat"
    assert set(decision.through[1:]) == {"relu_x", "relu_y"}


def test_equal_refusals_of_both_ways_are_told_once() -> None:
    net, refusal = image(), Refusal(Reason.WEIGHTS_NOT_CONSTANT, "walls")
    for value in ("x", "batchnorm1.out"):
        net.add(Barrier(refusal), value, run=lambda _op, _held, xs: xs[0], name=f"after_{value}")
        if value == "x":
            net.bn("after_x.out", SIGNED)
    (kept,) = plan(net).decisions
    assert isinstance(kept, Kept)
    assert kept.refusals == (refusal,)
    assert kept.remedy == "try --simplify, which evaluates what is constant"
