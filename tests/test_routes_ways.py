"""Pulls that may go several ways, and values of which only some channels change."""

from __future__ import annotations

import numpy as np
import pytest
from fold_graph import Net, affine, draw
from fold_graph_pairs import add_depth_to_space, add_product, add_select, add_space_to_depth, add_sum
from test_folding_random import differ

from bnfold import pulling
from bnfold.agreeing import Wish, agreed
from bnfold.bench import Bench
from bnfold.decision import Folded, Kept, Reason
from bnfold.folding import FoldPlan, plan
from bnfold.graph import PlacedAffine, Value
from bnfold.pulling import MAX_STEPS

SIGNED, POSITIVE = affine(4, 2, positive=False), affine(4, 3)
PURE = affine(4, 4, positive=False, shift=False)


def net_of(**more: np.ndarray) -> Net:
    return Net(x=draw(2, 4, 6, 6), **more)


def conv(net: Net, value: Value = "x", outputs: int = 4, **more: str) -> Value:
    inputs = net.samples[value].shape[1]
    return net.conv(value, draw(outputs, inputs, 1, 1, seed=len(net.operators)), **more)


def checked(net: Net) -> FoldPlan:
    """The plan, after every promise was held against the numbers: the same function, true names, exact regions."""
    made = plan(net)
    before, after = net.evaluate(), net.evaluate(made.bench)
    kept = {v for op in net.operators if op.index not in made.bench.removed for v in op.outputs if v}
    named = {v for fold in made.bench.folds for v in fold.values}
    assert {v for v in kept if differ(before[v], after[v])} <= named
    for region in made.regions:
        assert not [v for v in (*region.inputs, *region.outputs) if differ(before[v], after[v])]
    assert not [v for v in net.seen_by_caller if differ(before[v], after[v])]
    return made


def into(made: FoldPlan) -> list[set[str]]:
    assert all(isinstance(d, Folded) for d in made.decisions), [str(d) for d in made.decisions]
    return [set(d.into) for d in made.decisions if isinstance(d, Folded)]


def refusal(made: FoldPlan) -> Reason:
    (decision,) = made.decisions
    assert isinstance(decision, Kept), decision
    return decision.refusals[0].reason


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_shift_that_one_operand_refuses_goes_to_the_other(first: bool, sign: int) -> None:
    net = net_of()
    a, b = net.homogeneous(conv(net, name="a")), conv(net, name="b")
    net.output(net.bn(add_sum(net, a, b, sign) if first else add_sum(net, b, a, sign), POSITIVE))
    assert into(checked(net)) == [{"a", "b"}]


def test_a_shift_that_both_operands_refuse_keeps_the_batchnorm_and_gives_the_first_reason() -> None:
    net = net_of()
    a, b = net.homogeneous(conv(net)), net.barrier(conv(net))
    net.output(net.bn(add_sum(net, a, b), POSITIVE))
    assert refusal(checked(net)) is Reason.OPERATOR_IS_NOT_LINEAR  # b takes not even the scale
    net = net_of()
    a, b = net.homogeneous(conv(net)), net.homogeneous(conv(net), 0.1)
    net.output(net.bn(add_sum(net, a, b), POSITIVE))
    assert refusal(checked(net)) is Reason.SHIFT_MEETS_ACTIVATION


@pytest.mark.parametrize("leaf", range(4))
def test_nested_sums_find_the_leaf_that_takes_the_shift(leaf: int) -> None:
    net = net_of()
    leaves = [conv(net, name=f"c{i}") for i in range(4)]
    leaves = [v if i == leaf else net.homogeneous(v) for i, v in enumerate(leaves)]
    left, right = add_sum(net, *leaves[:2]), add_sum(net, *leaves[2:], sign=-1)
    net.output(net.bn(add_sum(net, left, right, sign=-1), POSITIVE))
    assert into(checked(net)) == [{"c0", "c1", "c2", "c3"}]


def test_a_way_that_fails_leaves_nothing_behind() -> None:
    """The first way goes through a Reshape and a transpose before it is refused; the second names neither."""
    net = net_of()
    a = net.transpose(net.transpose(net.barrier(conv(net)), 0, 1, 3, 2, name="t1"), 0, 1, 3, 2, name="t2")
    b = conv(net, name="b")
    unscaled = affine(4, 3)
    shift = type(unscaled)(np.ones(4), unscaled.shift)
    net.output(net.bn(add_sum(net, a, b, name="sum"), shift))
    made = checked(net)
    assert into(made) == [{"b"}]
    (fold,) = made.bench.folds
    assert [op.name for op in fold.through] == ["sum"]
    assert fold.values == {"sum.out", "b.out"}


def test_a_shared_shortcut_refuses_the_scale() -> None:
    net = net_of()
    stem = net.homogeneous(conv(net))
    net.output(net.barrier(stem))
    net.output(net.bn(add_sum(net, net.homogeneous(conv(net, stem)), stem), POSITIVE.scale_only))
    assert refusal(checked(net)) is Reason.VALUE_HAS_OTHER_READERS


def test_a_shift_alone_passes_by_a_shared_shortcut() -> None:
    net = net_of()
    stem = net.homogeneous(conv(net))
    net.output(net.barrier(stem))
    shift = type(POSITIVE)(np.ones(4), POSITIVE.shift)
    net.output(net.bn(add_sum(net, stem, conv(net, stem, name="branch")), shift))
    assert into(checked(net)) == [{"branch"}]


def test_a_product_tries_its_second_factor() -> None:
    for order in (False, True):
        net = net_of()
        a, b = net.barrier(conv(net)), conv(net, name="b")
        net.output(net.bn(add_product(net, b, a) if order else add_product(net, a, b), PURE))
        assert into(checked(net)) == [{"b"}]


def test_a_square_and_a_gate_of_itself_keep_the_batchnorm() -> None:
    net = net_of()
    a = conv(net)
    net.output(net.bn(add_product(net, a, a), PURE))
    assert refusal(checked(net)) is Reason.VALUE_HAS_OTHER_READERS
    net = net_of()
    a = conv(net)
    net.output(net.bn(add_product(net, a, net.barrier(a)), PURE))
    assert refusal(checked(net)) is Reason.VALUE_HAS_OTHER_READERS


def test_a_value_that_is_added_to_itself_takes_a_scale_and_no_shift() -> None:
    for given, expected in ((PURE, None), (SIGNED, Reason.READERS_DISAGREE)):
        net = net_of()
        a = conv(net, name="a")
        net.output(net.bn(add_sum(net, a, a), given))
        made = checked(net)
        assert into(made) == [{"a"}] if expected is None else refusal(made) is expected


def test_more_ways_than_are_tried_are_told_as_such() -> None:
    net = net_of()
    a = conv(net)
    leaves = [net.homogeneous(a) for _ in range(50)]
    total = leaves[0]
    for leaf in leaves[1:]:
        total = add_sum(net, total, leaf)
    net.output(net.bn(total, POSITIVE))
    assert refusal(plan(net)) is Reason.TOO_MANY_WAYS


def test_a_search_of_exactly_the_allowed_length_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    net = net_of()
    net.output(net.bn(net.homogeneous(net.transpose(conv(net), 0, 1, 3, 2)), affine(4, shift=False)))
    monkeypatch.setattr(pulling, "MAX_STEPS", 4)  # three values, and one look at what is left
    assert [type(d) for d in plan(net).decisions] == [Folded]
    monkeypatch.setattr(pulling, "MAX_STEPS", 3)
    assert refusal(plan(net)) is Reason.TOO_MANY_WAYS
    assert MAX_STEPS > 100


def test_channels_that_another_reader_does_not_pick_may_change() -> None:
    net = net_of()
    stem = conv(net, outputs=8, name="stem")
    (p,), (q,) = (add_select(net, stem, 1, part, name=f"part{part[0]}") for part in (range(4), range(4, 8)))
    net.output(net.barrier(q))
    net.output(net.bn(p, SIGNED))
    made = checked(net)
    assert into(made) == [{"stem"}]
    (fold,) = made.bench.folds
    assert [op.name for op in fold.beside] == ["part4"]
    assert made.regions[0].outputs == ("part4.out", "batchnorm4.out")


def test_a_reader_of_one_channel_that_changes_or_of_all_refuses() -> None:
    for part in ((3, 4, 5), tuple(range(8))):
        net = net_of()
        stem = conv(net, outputs=8)
        (p,), (q,) = add_select(net, stem, 1, range(4)), add_select(net, stem, 1, part)
        net.output(net.barrier(q))
        net.output(net.bn(p, SIGNED))
        assert refusal(checked(net)) is Reason.VALUE_HAS_OTHER_READERS


def test_a_reader_of_unknown_channels_or_of_other_rows_refuses() -> None:
    for axis, known in ((1, False), (2, True)):
        net = net_of()
        stem = conv(net, outputs=8)
        (p,), (q,) = add_select(net, stem, 1, range(4)), add_select(net, stem, axis, (4, 5), known=known)
        net.output(net.barrier(q))
        net.output(net.bn(p, SIGNED))
        assert refusal(checked(net)) is Reason.VALUE_HAS_OTHER_READERS


def test_a_channel_whose_affine_is_the_identity_may_be_read_by_others() -> None:
    net = net_of()
    stem = conv(net)
    (q,) = add_select(net, stem, 1, (1, 3))
    net.output(net.barrier(q))
    net.output(net.bn(stem, type(SIGNED)([2.0, 1, -3, 1], [1.0, 0, 2, 0])))
    assert [type(d) for d in checked(net).decisions] == [Folded]


def test_every_part_of_a_split_takes_its_own_batchnorm() -> None:
    net = net_of()
    stem = conv(net, outputs=8, name="stem")
    parts = add_select(net, stem, 1, range(4), range(4, 8))
    for part, given in zip(parts, (SIGNED, POSITIVE), strict=True):
        net.output(net.bn(part, given))
    made = checked(net)
    assert into(made) == [{"stem"}, {"stem"}]
    assert len(made.regions) == 1


def test_one_part_of_a_split_changes_and_the_other_stays() -> None:
    for which in (0, 1):
        net = net_of()
        parts = add_select(net, conv(net, outputs=8, name="stem"), 1, range(4), range(4, 8))
        net.output(net.barrier(parts[1 - which]))
        net.output(net.bn(parts[which], SIGNED))
        made = checked(net)
        assert into(made) == [{"stem"}]
        assert made.bench.folds[0].values == {"stem.out", parts[which]}


def test_a_batchnorm_before_a_split_is_pushed_into_the_readers_of_every_part() -> None:
    net = net_of()
    parts = add_select(net, net.bn("x", SIGNED), 1, (0, 1, 2), (3,))
    for i, part in enumerate(parts):
        net.output(conv(net, part, name=f"c{i}"))
    assert into(checked(net)) == [{"c0", "c1"}]


def test_a_channel_shuffle_between_convolution_and_batchnorm_folds() -> None:
    net = net_of()
    halves = net.reshape(conv(net, name="stem"), 2, 2, 2, 6, 6)
    net.output(net.bn(net.reshape(net.transpose(halves, 0, 2, 1, 3, 4), 2, 4, 6, 6), SIGNED))
    assert into(checked(net)) == [{"stem"}]


def test_blocks_of_pixels_pass_and_change_their_channels() -> None:
    net = net_of()
    net.output(net.bn(add_depth_to_space(net, conv(net, outputs=16, name="up"), rows=True), SIGNED, name="first"))
    down = add_space_to_depth(net, net.bn("x", SIGNED, name="second"))
    net.output(conv(net, down, name="down"))
    assert into(checked(net)) == [{"up"}, {"down"}]


def test_a_part_that_an_earlier_fold_left_alone_takes_a_later_one() -> None:
    """Two parts of one value, one of which is joined with the whole of another."""
    net = net_of()
    stem = conv(net, outputs=8, name="stem")
    (p,), (q,) = add_select(net, stem, 1, range(4)), add_select(net, stem, 1, range(4, 8))
    first = net.bn(p, SIGNED, name="first")
    net.output(net.bn(net.concat(1, first, q), affine(8, 9), name="last"))
    made = checked(net)
    assert isinstance(made.decisions[0], Folded)


def test_two_halves_of_one_value_that_are_joined_again_take_their_own_channels() -> None:
    net = net_of()
    parts = add_select(net, conv(net, name="stem"), 1, (0, 1), (2, 3))
    net.output(net.bn(net.concat(1, parts[1], parts[0]), SIGNED))
    assert into(checked(net)) == [{"stem"}]


def test_halves_that_two_operators_pick_are_joined_too_and_one_that_overlaps_is_not() -> None:
    for second, folded in (((2, 3), True), ((1, 2, 3), False)):
        net = net_of()
        stem = conv(net, name="stem")
        first, last = add_select(net, stem, 1, (0, 1))[0], add_select(net, stem, 1, second)[0]
        size = 2 + len(second)
        net.output(net.bn(net.concat(1, first, last), affine(size, 6, positive=False)))
        assert isinstance(checked(net).decisions[0], Folded) is folded


def test_a_push_ends_at_a_part_on_which_the_affine_is_the_identity() -> None:
    for second, folded in (([1.0, 1], True), ([1.0, 3], False)):
        net = net_of()
        value = net.bn("x", type(SIGNED)([2.0, -3, *second], [1.0, 2, 0, 0]))
        first, last = add_select(net, value, 1, (0, 1), (2, 3))
        net.output(conv(net, first))
        net.output(net.barrier(last))
        assert isinstance(checked(net).decisions[0], Folded) is folded


def test_a_half_may_ask_for_channels_only_that_the_whole_asks_for_too() -> None:
    for whole, folded in (([2.0, -3, 5, 1], True), ([1.0, 1, 5, 1], False)):
        net = net_of()
        stem = conv(net, name="stem")
        (half,) = add_select(net, stem, 1, (0, 1))
        net.output(net.bn(net.concat(1, half, stem), type(SIGNED)([2.0, -3, *whole], np.zeros(6))))
        assert isinstance(checked(net).decisions[0], Folded) is folded


def test_readers_of_different_axes_agree_on_nothing() -> None:
    net = net_of()
    stem = conv(net)
    add_select(net, stem, 1, (0, 1))
    add_select(net, stem, 2, (0, 1))
    rows = type(SIGNED)([2.0, 3, 1, 1, 1, 1], np.zeros(6))
    channels = type(SIGNED)([2.0, 3, 1, 1], np.zeros(4))
    wishes = [Wish(PlacedAffine.on_axis(channels, 1), 1, 0), Wish(PlacedAffine.on_axis(rows, 2), 2, 0)]
    assert agreed(Bench(net), wishes) is None
    assert agreed(Bench(net), wishes[:1]) is wishes[0].placed
