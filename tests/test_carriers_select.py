"""What picks or spreads channels: entries follow their channel, and channels that are joined must have equal ones."""

from __future__ import annotations

import numpy as np
import pytest
from carrier_laws import EXACT, assert_pulls, assert_pushes, assert_refuses, on, pull, push
from fold_graph import Net, affine, apply_placed, draw
from fold_graph_pairs import add_depth_to_space, add_select, add_space_to_depth

from bnfold import carriers
from bnfold.affine import ChannelAffine
from bnfold.bench import Bench
from bnfold.decision import Reason, Refusal
from bnfold.graph import PlacedAffine, Step

SIGNED = affine(6, positive=False)
EVERYWHERE = PlacedAffine(ChannelAffine([2.0], [-1.0]), (), ())


def picked(*parts: tuple[int, ...], axis: int = 1, known: bool = True) -> Net:
    net = Net(x=draw(2, 6, 4, 4))
    add_select(net, "x", axis, *parts, known=known)
    return net


def deep(channels: int = 8, *, rows: bool = False) -> Net:
    net = Net(x=draw(2, channels, 3, 2))
    add_depth_to_space(net, "x", rows=rows)
    return net


def shallow() -> Net:
    net = Net(x=draw(2, 3, 4, 6))
    add_space_to_depth(net, "x")
    return net


def pull_at(net: Net, output: int, wanted: PlacedAffine) -> Step | Refusal:
    answer = carriers.pull(net.operators[-1], wanted, Bench(net), output)
    assert not isinstance(answer, tuple)
    return answer


@pytest.mark.parametrize("part", [(1, 2, 3), (5, 3, 1), (0, 2, 4), (4,), (2, 2, 5), (0, 1, 2, 3, 4, 5)])
def test_every_picked_channel_hands_on_its_entry(part: tuple[int, ...]) -> None:
    step = assert_pushes(picked(part), on(1, SIGNED))
    np.testing.assert_array_equal(step.placed[0].affine.scale, SIGNED.scale[list(part)])


@pytest.mark.parametrize("part", [(1, 2, 3), (5, 3, 1), (0, 2, 4), (4,), (0, 1, 2, 3, 4, 5)])
def test_channels_that_nobody_picks_are_asked_for_nothing(part: tuple[int, ...]) -> None:
    step = assert_pulls(picked(part), on(1, affine(len(part), 4, positive=False)))
    others = [c for c in range(6) if c not in part]
    assert step.placed[0].sizes == (6,)
    np.testing.assert_array_equal(step.placed[0].affine.scale[others], 1)
    np.testing.assert_array_equal(step.placed[0].affine.shift[others], 0)


def test_a_channel_that_is_picked_twice_is_asked_for_one_affine() -> None:
    equal, different = ChannelAffine([2.0, 3, 2], [1.0, 0, 1]), ChannelAffine([2.0, 3, 2], [1.0, 0, 2])
    assert_pulls(picked((4, 0, 4)), on(1, equal))
    assert_refuses(pull(picked((4, 0, 4)), on(1, different)), Reason.READERS_DISAGREE)
    assert_refuses(pull(picked((4, 0, 4)), on(1, affine(3))), Reason.READERS_DISAGREE)


@pytest.mark.parametrize("output", [0, 1, 2])
def test_each_part_of_a_split_asks_for_its_own_channels(output: int) -> None:
    net = picked((0,), (1, 2, 3), (4, 5))
    size = (1, 3, 2)[output]
    wanted = on(1, affine(size, 4, positive=False))
    step = pull_at(net, output, wanted)
    assert isinstance(step, Step)
    (x,), op = [net.samples["x"]], net.operators[-1]
    before, after = (net.run(op, net, [v]) for v in (x, apply_placed(step.placed[0], x)))
    for i, (old, new) in enumerate(zip(before, after, strict=True)):
        expected = apply_placed(wanted, old) if i == output else old
        assert np.abs(new - expected).max() <= EXACT * np.abs(expected).max()


def test_a_split_hands_every_part_its_entries() -> None:
    net = picked((0,), (1, 2, 3), (4, 5))
    step = push(net, on(1, SIGNED))
    assert isinstance(step, Step)
    x, op = net.samples["x"], net.operators[-1]
    before, after = net.run(op, net, [x]), net.run(op, net, [apply_placed(on(1, SIGNED), x)])
    for i in range(3):
        expected = apply_placed(step.placed[i], before[i])
        assert np.abs(after[i] - expected).max() <= EXACT * np.abs(expected).max()


def test_a_split_along_another_axis_changes_all_its_parts_or_none() -> None:
    net = picked((0, 1), (2, 3), axis=2)
    for placed in (on(1, SIGNED), EVERYWHERE):
        refusal = pull_at(net, 0, placed)
        assert isinstance(refusal, Refusal)
        assert refusal.reason is Reason.VALUE_HAS_OTHER_READERS
        step = push(net, placed)
        assert isinstance(step, Step)
        assert all(step.placed[i].equals(placed) for i in range(2))


def test_a_slice_along_another_axis_passes_everything() -> None:
    for axis in (0, 2, 3):
        assert_pulls(picked((1,), axis=axis), on(1, SIGNED))
        assert_pushes(picked((1, 0), axis=axis), on(1, SIGNED))
    assert_pulls(picked((3, 1)), EVERYWHERE)
    assert_pushes(picked((3, 1)), EVERYWHERE)


def test_an_affine_on_two_axes_is_picked_along_one() -> None:
    both = PlacedAffine(affine(24, positive=False), (1, 2), (6, 4))
    assert assert_pushes(picked((5, 0, 2)), both).placed[0].sizes == (3, 4)
    assert assert_pushes(picked((3, 1), axis=2), both).placed[0].sizes == (6, 2)
    step = assert_pulls(picked((5, 0)), PlacedAffine(affine(8, positive=False), (1, 2), (2, 4)))
    assert step.placed[0].sizes == (6, 4)
    assert_pulls(picked((3, 1), axis=2), PlacedAffine(affine(12), (1, 2), (6, 2)))


def test_channels_that_are_picked_by_unknown_bounds_take_and_pass_nothing() -> None:
    net = picked((1, 2, 3), known=False)
    assert_refuses(pull(net, on(1, affine(3))), Reason.AXIS_NOT_PROVEN)
    assert_refuses(push(net, on(1, SIGNED)), Reason.AXIS_NOT_PROVEN)
    assert_pulls(net, EVERYWHERE)
    assert_pushes(picked((1, 2), axis=2, known=False), on(1, SIGNED))
    assert_pulls(picked((1, 2), axis=2, known=False), on(1, SIGNED))


@pytest.mark.parametrize("rows", [False, True])
def test_depth_to_space_asks_every_channel_for_the_entry_of_where_it_goes(rows: bool) -> None:
    step = assert_pulls(deep(rows=rows), on(1, affine(2, 3, positive=False)))
    assert step.placed[0].sizes == (8,)
    assert_pulls(deep(4, rows=rows), on(1, affine(1)))


@pytest.mark.parametrize("rows", [False, True])
def test_depth_to_space_joins_channels_that_carry_the_same(rows: bool) -> None:
    entries = affine(2, 3, positive=False)
    right, wrong = (entries.take([c // 4 if by_rows else c % 2 for c in range(8)]) for by_rows in (rows, not rows))
    assert assert_pushes(deep(rows=rows), on(1, right)).placed[0].affine.equals(entries)
    assert_refuses(push(deep(rows=rows), on(1, wrong)), Reason.READERS_DISAGREE)
    assert_refuses(push(deep(rows=rows), on(1, affine(8))), Reason.READERS_DISAGREE)


def test_depth_to_space_stretches_the_other_axes() -> None:
    for axis, inside, outside in ((2, 3, 6), (3, 2, 4)):
        assert_refuses(push(deep(), on(axis, affine(inside))), Reason.OPERATOR_MIXES_CHANNELS)
        assert_refuses(pull(deep(), on(axis, affine(outside))), Reason.OPERATOR_MIXES_CHANNELS)
    assert_pulls(deep(), on(0, affine(2)))
    assert_pushes(deep(), on(0, affine(2)))
    assert_pulls(deep(), EVERYWHERE)
    assert_pushes(deep(), EVERYWHERE)


def test_depth_to_space_does_not_pass_two_axes_of_which_one_is_stretched() -> None:
    assert_refuses(push(deep(), PlacedAffine(affine(24), (1, 2), (8, 3))), Reason.OPERATOR_MIXES_CHANNELS)
    assert_refuses(pull(deep(), PlacedAffine(affine(12), (1, 2), (2, 6))), Reason.OPERATOR_MIXES_CHANNELS)
    assert_pulls(deep(), PlacedAffine(affine(4), (0, 1), (2, 2)))


def test_space_to_depth_repeats_entries_and_joins_equal_ones() -> None:
    entries = affine(3, 3, positive=False)
    tiled = entries.take([c % 3 for c in range(12)])
    assert assert_pushes(shallow(), on(1, entries)).placed[0].affine.equals(tiled)
    assert assert_pulls(shallow(), on(1, tiled)).placed[0].affine.equals(entries)
    assert_refuses(pull(shallow(), on(1, affine(12))), Reason.READERS_DISAGREE)
    assert_refuses(push(shallow(), on(2, affine(4))), Reason.AXIS_NOT_PROVEN)
    assert_refuses(pull(shallow(), on(3, affine(3))), Reason.AXIS_NOT_PROVEN)
    assert_pulls(shallow(), on(0, affine(2)))
    assert_pushes(shallow(), EVERYWHERE)
