"""Concat: slices along its axis, the same affine on every input along any other."""

from __future__ import annotations

import numpy as np
from carrier_laws import assert_pulls, assert_pushes, assert_refuses, on, pull, push
from fold_graph import Net, affine, draw

from bnfold.affine import ChannelAffine
from bnfold.decision import Reason
from bnfold.graph import PlacedAffine, Step

A, B = affine(2, 1, positive=False), affine(3, 2)


def joined(axis: int = 1, *, unknown: bool = False) -> Net:
    net = Net(x=draw(2, 2, 3), y=draw(2, 3, 3, seed=1)) if axis == 1 else Net(x=draw(2, 3, 3), y=draw(2, 3, 2, seed=1))
    if unknown:
        net.shapes["y"] = (2, None, 3)
    net.concat(axis, "x", "y")
    return net


def test_along_its_axis_every_input_takes_its_slice() -> None:
    step = assert_pulls(joined(), on(1, ChannelAffine.concat([A, B])))
    assert step.placed[0].affine.equals(A)
    assert step.placed[1].affine.equals(B)


def test_along_its_axis_an_input_without_an_affine_keeps_the_identity() -> None:
    assert_pushes(joined(), on(1, A), on(1, B))
    assert assert_pushes(joined(), None, on(1, B)).placed[0].affine.take(slice(0, 2)).is_identity
    assert assert_pushes(joined(), on(1, A), None).placed[0].affine.take(slice(2, 5)).is_identity


def test_along_its_axis_unknown_lengths_refuse() -> None:
    assert_refuses(pull(joined(unknown=True), on(1, affine(5))), Reason.AXIS_NOT_PROVEN)
    assert_refuses(push(joined(unknown=True), on(1, A), on(1, B)), Reason.AXIS_NOT_PROVEN)
    whole = joined()
    whole.operators[-1] = whole.operators[-1].__class__(**{**vars(whole.operators[-1]), "input_shapes": (None, None)})
    assert_refuses(pull(whole, on(1, affine(5))), Reason.AXIS_NOT_PROVEN)


def test_lengths_that_do_not_add_up_refuse() -> None:
    assert_refuses(pull(joined(), on(1, affine(4))), Reason.AXIS_NOT_PROVEN)
    assert_refuses(push(joined(), on(1, affine(4)), None), Reason.AXIS_NOT_PROVEN)


def test_along_another_axis_all_inputs_take_the_same() -> None:
    step = assert_pulls(joined(axis=2), on(1, B))
    assert all(placed.affine.equals(B) for placed in step.placed.values())
    assert_pushes(joined(axis=2), on(1, B), on(1, affine(3, 2)))


def test_along_another_axis_inputs_that_disagree_or_carry_nothing_refuse() -> None:
    assert_refuses(push(joined(axis=2), on(1, B), on(1, affine(3, 5))), Reason.READERS_DISAGREE)
    assert_refuses(push(joined(axis=2), on(1, B), None), Reason.READERS_DISAGREE)
    assert_refuses(push(joined(axis=2), None, on(1, B)), Reason.READERS_DISAGREE)


def test_an_affine_on_another_axis_does_not_meet_one_along_the_axis() -> None:
    assert_refuses(push(joined(), on(1, A), on(2, affine(3))), Reason.AXIS_NOT_PROVEN)


def test_an_affine_that_is_the_same_everywhere_fits_its_slice() -> None:
    everywhere = PlacedAffine(ChannelAffine([2.0], [1.0]), (), ())
    assert_pulls(joined(), everywhere)
    step = assert_pushes(joined(), everywhere, on(1, B))
    np.testing.assert_array_equal(step.placed[0].affine.scale[:2], [2.0, 2.0])


def test_a_value_that_is_joined_to_itself_is_two_uses() -> None:
    net = Net(x=draw(2, 3, 3))
    net.concat(1, "x", "x")
    step = pull(net, on(1, ChannelAffine.concat([B, B])))
    assert isinstance(step, Step)
    assert set(step.placed) == {0, 1}
    assert_pulls(net, on(1, affine(6)))  # two different slices: the route, not the carrier, finds that they disagree


def test_an_affine_on_two_axes_is_cut_along_one_of_them() -> None:
    net = Net(x=draw(2, 2, 3), y=draw(2, 3, 3, seed=1))
    net.concat(1, "x", "y")
    step = assert_pulls(net, PlacedAffine(affine(15), (1, 2), (5, 3)))
    assert (step.placed[0].sizes, step.placed[1].sizes) == ((2, 3), (3, 3))
    assert_pushes(joined(axis=2), on(1, B), on(1, B))
