"""The engine on whole graphs: what is decided, and that the function never changes."""

from __future__ import annotations

import numpy as np
import pytest
from fold_graph import FLOAT32, Array, Net, affine, draw

from bnfold.affine import ChannelAffine
from bnfold.decision import Folded, Kept, Reason, Refusal, Subject
from bnfold.folding import FoldPlan, plan
from bnfold.views import Arithmetic, Barrier, BatchNorm
from bnfold.window_views import Average, Pad

#: Relative to the largest element of an output.
EXACT = 1e-9

SCALE, SIGNED = affine(3, 1, shift=False), affine(3, 2, positive=False)


def assert_same_function(net: Net, made: FoldPlan) -> None:
    """Every output, before and after, in float64."""
    before, after = net.evaluate(), net.evaluate(made.bench)
    assert net.seen_by_caller
    for value in net.seen_by_caller:
        error = np.abs(after[value] - before[value]).max(initial=0.0)
        assert error <= EXACT * np.abs(before[value]).max(initial=1e-300), (value, error)


def fold(net: Net, *excluded: str) -> FoldPlan:
    """The plan, after its promises were checked: the same function, and nothing left that would fold."""
    made = plan(net, lambda name: name not in excluded)
    assert_same_function(net, made)
    return made


def reasons(made: FoldPlan) -> list[list[Reason]]:
    return [[r.reason for r in d.refusals] if isinstance(d, Kept) else [] for d in made.decisions]


def image(**more: Array) -> Net:
    return Net(x=draw(2, 3, 6, 6), **more)


def weights(seed: int = 0, outputs: int = 3, size: int = 3) -> Array:
    return draw(outputs, 3, size, size, seed=seed)


def test_a_batchnorm_behind_a_conv_is_pulled_into_it() -> None:
    net = image()
    net.output(net.bn(net.conv("x", weights(), pad=1, name="conv"), SIGNED, name="bn"))
    assert fold(net).decisions == (Folded(Subject("bn", "BatchNorm", 3, True), "pull", ("conv",), ()),)


def test_a_batchnorm_before_a_conv_is_pushed_into_it() -> None:
    net = image()
    net.output(net.conv(net.homogeneous(net.bn("x", SCALE, name="bn"), name="relu"), weights(), pad=1, name="conv"))
    assert fold(net).decisions == (Folded(Subject("bn", "BatchNorm", 3, True), "push", ("conv",), ("relu",)),)


def test_batchnorms_in_a_row_are_one_source_and_a_decision_each() -> None:
    net = image()
    value = net.bn(net.conv("x", weights(), name="conv"), SIGNED, name="first")
    net.output(net.bn(value, affine(3, 5), name="second"))
    made = fold(net)
    assert [d.subject.name for d in made.decisions] == ["first", "second"]
    assert len(made.bench.folds) == 1


def test_a_diamond_whose_branches_want_the_same_is_pulled_through_once() -> None:
    net = image()
    stem = net.conv("x", weights(), name="conv")
    joined = net.concat(2, net.homogeneous(stem), net.homogeneous(stem, 0.1))
    net.output(net.bn(joined, SCALE))
    made = fold(net)
    assert [op.name for op in made.bench.folds[0].into] == ["conv"]
    assert len(made.bench.absorbed[0]) == 1


def test_a_diamond_whose_branches_want_different_affines_is_left_alone() -> None:
    net = image()
    stem = net.conv("x", weights())
    joined = net.concat(1, net.homogeneous(stem), net.homogeneous(stem, 0.1))
    net.output(net.bn(joined, affine(6, shift=False)))
    assert reasons(fold(net))[0][0] is Reason.READERS_DISAGREE


def test_a_value_that_is_joined_to_itself_has_no_solution_unless_its_slices_are_equal() -> None:
    for second, expected in ((affine(3, 7), Reason.READERS_DISAGREE), (SIGNED, None)):
        net = image()
        stem = net.conv("x", weights())
        net.output(net.bn(net.concat(1, stem, stem), ChannelAffine.concat([SIGNED, second])))
        assert reasons(fold(net))[0][:1] == ([] if expected is None else [expected])


def test_a_value_that_is_joined_to_itself_is_read_as_it_is_where_one_slice_is_the_identity() -> None:
    net = image()
    stem = net.conv("x", weights())
    net.output(net.bn(net.concat(1, stem, stem), ChannelAffine.concat([ChannelAffine.identity(3), SIGNED])))
    assert reasons(fold(net))[0][0] is Reason.VALUE_HAS_OTHER_READERS


@pytest.mark.parametrize("reader", ["padded conv", "barrier"])
def test_a_value_with_another_reader_is_not_changed(reader: str) -> None:
    net = image()
    stem = net.conv("x", weights())
    net.output(net.barrier(net.bn(stem, SIGNED)))
    net.output(net.conv(stem, weights(2), pad=1) if reader == "padded conv" else net.barrier(stem))
    assert reasons(fold(net)) == [[Reason.VALUE_HAS_OTHER_READERS, Reason.OPERATOR_IS_NOT_LINEAR]]


def test_a_value_whose_other_slice_is_the_identity_is_still_not_changed() -> None:
    net = image()
    stem = net.conv("x", weights())
    joined = ChannelAffine.concat([ChannelAffine.identity(3), SCALE])
    net.output(net.bn(net.concat(1, stem, net.homogeneous(stem)), joined))
    assert reasons(fold(net))[0][0] is Reason.VALUE_HAS_OTHER_READERS


def test_a_branch_that_is_asked_for_the_identity_may_be_anything() -> None:
    net = image(y=draw(2, 3, 6, 6, seed=5))
    joined = net.concat(1, "y", net.conv("x", weights(size=1)))
    net.output(net.bn(joined, ChannelAffine.concat([ChannelAffine.identity(3), SIGNED])))
    assert isinstance(fold(net).decisions[0], Folded)


def test_a_value_that_the_caller_or_a_body_sees_is_not_changed() -> None:
    for see, expected in ((Net.output, Reason.IS_MODEL_OUTPUT), (Net.captured, Reason.CAPTURED_BY_SUBGRAPH)):
        net = image()
        stem = see(net, net.conv("x", weights()))
        middle = see(net, net.bn(stem, SIGNED))
        net.output(net.conv(middle, weights(3)))
        assert reasons(fold(net)) == [[expected] * 2]


def test_a_value_that_is_seen_under_the_name_of_a_folded_batchnorm_is_not_changed() -> None:
    net = image()
    first = net.output(net.bn(net.conv("x", weights()), SIGNED, name="first"))
    net.output(net.bn(net.homogeneous(first), SCALE, name="second"))
    assert reasons(fold(net)) == [[], [Reason.IS_MODEL_OUTPUT] * 2]


def test_a_source_that_nothing_reads_is_kept() -> None:
    net = image(y=draw(2))
    net.bn("x", SIGNED)
    net.output(net.barrier("y"))
    assert reasons(fold(net)) == [[Reason.READS_MODEL_INPUT, Reason.NOTHING_READS_IT]]


def test_a_push_serves_every_reader_or_changes_nothing() -> None:
    for last, folds in (("conv", 1), ("barrier", 0)):
        net = image()
        value = net.bn("x", SIGNED)
        value = net.arithmetic(Arithmetic.ADD, value, draw(3, 6, 6))  # would be edited
        net.output(net.conv(value, weights()))
        net.output(net.conv(net.reshape(value, 2, 3, 6, 6), weights(2)))
        net.output(net.conv(value, weights(3)) if last == "conv" else net.barrier(value))
        bench = fold(net).bench
        assert len(bench.folds) == folds
        touched = bench.absorbed or bench.constants or bench.affines or bench.removed
        assert bool(touched) == bool(folds)
        assert set(bench.absorbed) == ({2, 4, 5} if folds else set())


def test_a_pull_serves_every_branch_or_changes_nothing() -> None:
    net = image(y=draw(2, 3, 6, 6, seed=5))
    joined = net.concat(1, net.conv("x", weights(size=1)), net.homogeneous("y"))
    net.output(net.barrier(net.bn(joined, affine(6, shift=False))))
    bench = fold(net).bench
    assert (bench.absorbed, bench.constants, bench.affines, bench.removed) == ({}, {}, {}, {})


def test_a_run_that_another_constant_cuts_is_composed_as_the_folds_have_left_it() -> None:
    """The first part is pushed into the second, which must not then be taken for what it was."""
    net = image()
    value = net.arithmetic(Arithmetic.ADD, net.bn("x", SIGNED, name="first"), draw(3, 6, 6))
    net.output(net.conv(net.bn(value, affine(3, 3), name="second"), weights()))
    made = fold(net)
    assert [d.subject.name for d in made.decisions if isinstance(d, Folded)] == ["first", "second"]
    assert made.decisions[0].into == ("second",)  # type: ignore[union-attr]


def test_the_constant_at_which_a_run_is_cut_is_taken_as_the_fold_before_it_has_left_it() -> None:
    net = image()
    value = net.bn(net.matmul("x", draw(6, 6), draw(6)), SCALE, name="channels")
    value = net.arithmetic(Arithmetic.ADD, value, draw(6), name="bias")  # becomes one number per channel and column
    value = net.arithmetic(Arithmetic.MULTIPLY, value, draw(6, seed=1), name="columns")
    net.output(net.conv(value, weights()))
    made = fold(net)
    assert [(d.subject.name, d.subject.kind, type(d)) for d in made.decisions] == [
        ("channels", "BatchNorm", Folded),
        ("columns", "ConstantOperand", Folded),
    ]


def test_a_run_on_two_axes_is_two_sources() -> None:
    net = image()
    value = net.bn(net.conv("x", weights(size=1)), SIGNED, name="channels")
    value = net.arithmetic(Arithmetic.ADD, value, draw(6), name="bias")
    value = net.arithmetic(Arithmetic.MULTIPLY, value, draw(6, seed=1), name="columns")
    net.output(value)
    made = fold(net)
    assert [(d.subject.name, d.subject.kind) for d in made.decisions] == [
        ("channels", "BatchNorm"),
        ("bias", "ConstantOperand-ConstantOperand"),
    ]


@pytest.mark.parametrize(
    ("chain", "is_source"),
    [
        ([(Arithmetic.MULTIPLY, 3), (Arithmetic.ADD, 3)], True),
        ([(Arithmetic.SUBTRACT, 3), (Arithmetic.DIVIDE, 3), (Arithmetic.SUBTRACT_FROM, 3)], True),
        ([(Arithmetic.ADD, 3)], False),
        ([(Arithmetic.ADD, 3), (Arithmetic.SUBTRACT, 3)], False),
        ([(Arithmetic.MULTIPLY, 1)], False),
        ([(Arithmetic.MULTIPLY, 1), (Arithmetic.ADD, 3)], False),
    ],
)
def test_a_chain_is_a_batchnorm_in_disguise_where_a_product_varies_over_channels(
    chain: list[tuple[Arithmetic, int]], is_source: bool
) -> None:
    net = image()
    value = net.conv("x", weights())
    for i, (arithmetic, channels) in enumerate(chain):
        value = net.arithmetic(arithmetic, value, 1.5 + np.abs(draw(channels, 1, 1, seed=i)))
    net.output(value)
    made = fold(net)
    assert len(made.decisions) == is_source
    if is_source:
        assert isinstance(made.decisions[0], Folded)
        assert not made.decisions[0].subject.is_batchnorm
        assert len(made.bench.removed) == len(chain)


def test_a_chain_that_branches_inside_is_two_sources() -> None:
    net = image()
    inner = net.arithmetic(Arithmetic.MULTIPLY, net.conv("x", weights()), draw(3, 1, 1))
    net.output(net.barrier(inner))
    net.output(net.arithmetic(Arithmetic.MULTIPLY, inner, draw(3, 1, 1, seed=2)))
    assert [d.__class__ for d in fold(net).decisions] == [Folded, Kept]


def test_what_the_caller_excludes_is_kept_and_breaks_a_run() -> None:
    net = image()
    value = net.bn(net.bn(net.conv("x", weights()), SIGNED, name="first"), affine(3, 5), name="second")
    net.output(net.bn(value, affine(3, 6), name="third"))
    made = fold(net, "second")
    assert reasons(made) == [[], [Reason.EXCLUDED_BY_CALLER], [Reason.EXCLUDED_BY_CALLER, Reason.IS_MODEL_OUTPUT]]


@pytest.mark.parametrize(("parameter", "value"), [(0, np.inf), (0, np.nan), (1, np.inf), (1, np.nan)])
def test_statistics_that_are_not_finite_are_kept_and_take_nothing(parameter: int, value: float) -> None:
    numbers = [np.ones(3), np.zeros(3)]
    numbers[parameter][1] = value
    net = image()
    with np.errstate(all="ignore"):
        net.output(net.bn(net.homogeneous(net.bn(net.conv("x", weights()), ChannelAffine(*numbers))), SCALE))
    made = plan(net)
    assert reasons(made)[0] == [Reason.STATISTICS_NOT_FINITE]
    assert "channel 1, 1 of 3" in str(made.decisions[0].refusals[0])  # type: ignore[union-attr]
    assert isinstance(made.decisions[1], Kept)
    assert not made.bench.folds


def test_a_batchnorm_that_is_a_barrier_and_one_out_of_reach_are_decided_too() -> None:
    net = image()
    refusal = Refusal(Reason.NORMALISES_BY_BATCH_STATISTICS, "training")
    view = Barrier(refusal, is_batchnorm=True, channels=3)
    value = net.add(view, net.bn(net.conv("x", weights()), SIGNED), run=lambda _op, _held, xs: xs[0], name="training")
    net.output(net.bn(value, SIGNED, name="last"))
    net.unreachable = (Kept(Subject("inner", "BatchNormalization", 3, True), (Refusal(Reason.INSIDE_FUNCTION),)),)
    made = fold(net)
    assert [d.subject.name for d in made.decisions] == ["batchnorm1", "training", "last", "inner"]
    assert reasons(made)[1:] == [[refusal.reason], [refusal.reason, Reason.IS_MODEL_OUTPUT], [Reason.INSIDE_FUNCTION]]


def test_a_fold_that_only_a_later_fold_makes_possible_is_not_missed() -> None:
    """Two new Adds would cost too much; the BatchNorm behind gives one MatMul its Add anyway."""
    net = Net(x=draw(4, 3))
    value = net.bn("x", SIGNED, name="early")
    net.output(net.matmul(value, draw(3, 5, seed=1)))
    net.output(net.bn(net.matmul(value, draw(3, 5)), affine(5), name="late"))
    made = fold(net)
    assert [(d.subject.name, type(d)) for d in made.decisions] == [("early", Folded), ("late", Folded)]


def test_padding_with_a_changed_constant_and_an_average_are_passed_on_one_route() -> None:
    net = image()
    value = net.pad(net.conv("x", weights()), Pad((0, 0, 1, 1), (0, 0, 1, 1), 1.0, FLOAT32))
    net.output(net.bn(net.pool(value, Average((2, 3))), ChannelAffine([2.0, 3, -1], [1.0, 0, 4])))
    assert [op.name for op in fold(net).bench.folds[0].through] == ["average2", "pad1"]


@pytest.mark.parametrize("kept", [0, 1])
def test_a_batchnorm_that_the_caller_keeps_takes_in_no_other(kept: int) -> None:
    net = image()
    first = net.bn("x", SIGNED)
    net.output(net.bn(net.reduce(first, Average((2, 3))), SIGNED))
    names = [op.name for op in net.operators if isinstance(op.view, BatchNorm)]
    made = fold(net, names[kept])
    assert not made.bench.folds
    assert reasons(made)[kept] == [Reason.EXCLUDED_BY_CALLER]
    assert Reason.EXCLUDED_BY_CALLER in reasons(made)[1 - kept]
    assert len(fold(net).bench.folds) == 1
