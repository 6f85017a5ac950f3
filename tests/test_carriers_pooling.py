"""Means pass any affine unless they average padding in; maxima pass scales that are not negative."""

from __future__ import annotations

import numpy as np
import pytest
from carrier_laws import assert_pulls, assert_pushes, assert_refuses, on, pull, push
from fold_graph import Net, affine, draw
from fold_graph_pairs import add_total

from bnfold.affine import ChannelAffine
from bnfold.decision import Reason
from bnfold.graph import PlacedAffine
from bnfold.window_views import Average, Maximum

SPACE = (2, 3)
SIGNED, POSITIVE = affine(3, positive=False), affine(3)
DEAD = ChannelAffine([0.5, 0.0, 2], [1.0, 2, 3])
PURE_SIGNED = affine(3, positive=False, shift=False)


def window(view: Average | Maximum, pad: int = 0) -> Net:
    net = Net(x=draw(2, 3, 5, 6))
    net.pool("x", view, pad)
    return net


def reduced(view: Average | Maximum) -> Net:
    net = Net(x=draw(2, 3, 5, 6))
    net.reduce("x", view)
    return net


@pytest.mark.parametrize("pad", [0, 1])
def test_an_average_that_leaves_padding_out_passes_any_affine(pad: int) -> None:
    assert_pulls(window(Average(SPACE), pad), on(1, SIGNED))
    assert_pushes(window(Average(SPACE), pad), on(1, SIGNED))


def test_an_average_that_counts_padding_passes_a_scale_and_refuses_a_shift() -> None:
    net = window(Average(SPACE, counts_padding=True), 1)
    assert_pulls(net, on(1, PURE_SIGNED))
    assert_pushes(net, on(1, PURE_SIGNED))
    assert_refuses(pull(net, on(1, POSITIVE)), Reason.SHIFT_MEETS_PADDING)
    assert_refuses(push(net, on(1, POSITIVE)), Reason.SHIFT_MEETS_PADDING)


def test_a_shift_through_counted_padding_would_be_wrong() -> None:
    net = window(Average(SPACE, counts_padding=True), 1)
    free = Average(SPACE)  # the same operator, with the condition taken away
    net.operators[0] = net.operators[0].__class__(**{**vars(net.operators[0]), "view": free})
    with pytest.raises(AssertionError):
        assert_pulls(net, on(1, POSITIVE))


@pytest.mark.parametrize("pad", [0, 1])
def test_a_maximum_passes_positive_scales_and_any_shift(pad: int) -> None:
    assert_pulls(window(Maximum(SPACE), pad), on(1, POSITIVE))
    assert_pushes(window(Maximum(SPACE), pad), on(1, POSITIVE))


def test_a_maximum_pulls_a_scale_of_zero_and_does_not_push_it() -> None:
    assert_pulls(window(Maximum(SPACE)), on(1, DEAD))
    assert_refuses(push(window(Maximum(SPACE)), on(1, DEAD)), Reason.SCALE_IS_NOT_POSITIVE)


def test_a_maximum_refuses_a_negative_scale() -> None:
    assert_refuses(pull(window(Maximum(SPACE)), on(1, PURE_SIGNED)), Reason.SCALE_IS_NOT_POSITIVE)
    assert_refuses(push(window(Maximum(SPACE)), on(1, PURE_SIGNED)), Reason.SCALE_IS_NOT_POSITIVE)


def test_a_maximum_whose_indices_are_read_refuses() -> None:
    net = window(Maximum(SPACE, indices_read=True))
    assert_refuses(pull(net, on(1, POSITIVE)), Reason.INDICES_ARE_READ)
    assert_refuses(push(net, on(1, POSITIVE)), Reason.INDICES_ARE_READ)


def test_a_maximum_with_a_window_wholly_in_padding_passes_the_identity_only() -> None:
    net = window(Maximum(SPACE, window_in_padding=True), 2)
    identity = on(1, ChannelAffine.identity(3))
    assert_pulls(net, identity)
    assert_pushes(net, identity)
    for refused in (POSITIVE, affine(3, shift=False)):
        assert_refuses(pull(net, on(1, refused)), Reason.SHIFT_MEETS_PADDING)
        assert_refuses(push(net, on(1, refused)), Reason.SHIFT_MEETS_PADDING)


@pytest.mark.parametrize("kind", [Average, Maximum])
@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize(("axes", "axis", "after"), [((2, 3), 1, 1), ((0, 2), 1, 0), ((1,), 3, 2), ((1, 2), 3, 1)])
def test_an_affine_beside_the_reduced_axes_follows_its_axis(
    kind: type[Average | Maximum], keeps: bool, axes: tuple[int, ...], axis: int, after: int
) -> None:
    net, there = reduced(kind(axes, keeps)), axis if keeps else after
    channels = (2, 3, 5, 6)[axis]
    assert assert_pushes(net, on(axis, affine(channels))).placed[0].axes == (there,)
    assert assert_pulls(net, on(there, affine(channels))).placed[0].axes == (axis,)


@pytest.mark.parametrize("keeps", [True, False])
def test_an_affine_on_a_reduced_axis_refuses(keeps: bool) -> None:
    net = reduced(Average((1, 2), keeps))
    assert_refuses(push(net, on(1, POSITIVE)), Reason.OPERATOR_MIXES_CHANNELS)
    if keeps:
        assert_refuses(pull(net, on(1, ChannelAffine([2.0], [0.0]))), Reason.OPERATOR_MIXES_CHANNELS)


def test_an_affine_on_two_axes_of_which_one_is_reduced_refuses() -> None:
    both = PlacedAffine(affine(15), (1, 2), (3, 5))
    for keeps in (True, False):
        assert_refuses(push(reduced(Average((1,), keeps)), both), Reason.OPERATOR_MIXES_CHANNELS)
    assert assert_pushes(reduced(Average((0,), False)), both).placed[0].axes == (0, 1)
    assert assert_pulls(reduced(Average((0,), False)), PlacedAffine(affine(15), (0, 1), (3, 5))).placed[0].axes == (
        1,
        2,
    )


def test_an_affine_that_is_the_same_everywhere_passes_a_reduction_of_every_axis() -> None:
    everywhere = PlacedAffine(ChannelAffine([2.0], [-1.0]), (), ())
    net = reduced(Average((0, 1, 2, 3), keeps_axes=False))
    np.testing.assert_array_equal(assert_pulls(net, everywhere).placed[0].affine.scale, [2.0])
    assert_pushes(net, everywhere)


def test_a_reduction_that_drops_axes_of_an_unknown_shape_is_not_pulled_through() -> None:
    net = Net(x=draw(2, 3, 5, 6))
    net.shapes["x"] = None
    net.reduce("x", Average((2, 3), keeps_axes=False))
    assert_refuses(pull(net, on(1, POSITIVE)), Reason.AXIS_NOT_PROVEN)
    assert_pushes(net, on(1, POSITIVE))


def totalled(axes: tuple[int, ...] = SPACE, *, keeps: bool = True, known: bool = True) -> Net:
    net = Net(x=draw(2, 3, 5, 6))
    add_total(net, "x", axes, keeps=keeps, known=known)
    return net


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize(("axes", "count"), [((2, 3), 30), ((3,), 6), ((0, 2), 10)])
def test_a_sum_counts_the_shift_once_for_every_element(axes: tuple[int, ...], count: int, keeps: bool) -> None:
    after = 1 if keeps or 0 not in axes else 0
    pushed = assert_pushes(totalled(axes, keeps=keeps), on(1, SIGNED)).placed[0]
    np.testing.assert_allclose(pushed.affine.shift, count * SIGNED.shift)
    pulled = assert_pulls(totalled(axes, keeps=keeps), on(after, SIGNED)).placed[0]
    np.testing.assert_allclose(pulled.affine.shift, SIGNED.shift / count)
    assert (pushed.axes, pulled.axes) == ((after,), (1,))


def test_a_sum_of_an_unknown_number_of_elements_passes_a_scale_and_refuses_a_shift() -> None:
    net = totalled(known=False)
    assert_pulls(net, on(1, PURE_SIGNED))
    assert_pushes(net, on(1, PURE_SIGNED))
    assert_refuses(pull(net, on(1, SIGNED)), Reason.AXIS_NOT_PROVEN)
    assert_refuses(push(net, on(1, SIGNED)), Reason.AXIS_NOT_PROVEN)


def test_a_sum_of_nothing_refuses_a_shift() -> None:
    net = Net(x=draw(2, 3, 0, 6))
    add_total(net, "x", SPACE)
    assert_refuses(pull(net, on(1, SIGNED)), Reason.AXIS_NOT_PROVEN)
    assert_pulls(net, on(1, PURE_SIGNED))


@pytest.mark.parametrize("keeps", [True, False])
def test_a_sum_over_the_channels_refuses(keeps: bool) -> None:
    assert_refuses(push(totalled((1, 2), keeps=keeps), on(1, SIGNED)), Reason.OPERATOR_MIXES_CHANNELS)
    assert_refuses(push(totalled((1,), keeps=keeps), on(1, PURE_SIGNED)), Reason.OPERATOR_MIXES_CHANNELS)
    if keeps:
        assert_refuses(pull(totalled((1,)), on(1, ChannelAffine([2.0], [0.0]))), Reason.OPERATOR_MIXES_CHANNELS)
