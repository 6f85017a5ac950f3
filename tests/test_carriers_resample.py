"""Resize and Pad pass an affine exactly where what stands in outside the input stays what it is, or can be changed."""

from __future__ import annotations

import numpy as np
import pytest
from carrier_laws import assert_pulls, assert_pushes, assert_refuses, on, pull, push
from fold_graph import FLOAT32, Net, affine, draw

from bnfold.affine import ChannelAffine
from bnfold.decision import Reason
from bnfold.graph import PlacedAffine, SetConstant
from bnfold.window_views import Pad, Resample

INF = float("inf")
SPACE = ((0, 0, 1, 2), (0, 0, 2, 1))
CHANNELS = ((0, 1, 0, 0), (0, 2, 0, 0))
EVERYWHERE = ((0, 1, 1, 1), (0, 2, 1, 1))


def resized(untouched: set[int], extrapolation: float | None = None) -> Net:
    """Linear upsampling of the last axis; with an extrapolation value one column of it stands at the end."""
    net = Net(x=draw(2, 3, 4, 5))

    def run(_op: object, _held: object, xs: list[np.ndarray]) -> np.ndarray:
        y = (xs[0][..., :-1] + 3 * xs[0][..., 1:]) / 4
        return y if extrapolation is None else np.append(y, np.full((2, 3, 4, 1), extrapolation), -1)

    net.add(Resample(frozenset(untouched), extrapolation), "x", run=run)
    return net


def padded(where: tuple[tuple[int, ...], tuple[int, ...]], value: float | None, mode: str = "constant") -> Net:
    net = Net(x=draw(2, 3, 4, 5))
    net.pad("x", Pad(*where, value, FLOAT32), mode)
    return net


def test_a_resize_passes_any_affine_on_an_axis_that_it_leaves_alone() -> None:
    any_affine = on(1, affine(3, positive=False))
    assert_pulls(resized({0, 1, 2}), any_affine)
    assert_pushes(resized({0, 1, 2}), any_affine)


def test_a_resize_that_may_touch_the_axis_refuses() -> None:
    assert_refuses(pull(resized({0, 2}), on(1, affine(3))), Reason.AXIS_NOT_PROVEN)
    assert_refuses(push(resized({0, 2}), on(1, affine(3))), Reason.AXIS_NOT_PROVEN)


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_a_resize_that_extrapolates_passes_what_leaves_the_value_as_it_is(value: float) -> None:
    scale = np.array([0.5, -2, 3])
    fixing = on(1, ChannelAffine(scale, value - scale * value))
    assert_pulls(resized({1}, value), fixing)
    assert_pushes(resized({1}, value), fixing)


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_a_resize_that_extrapolates_refuses_what_would_change_the_value(value: float) -> None:
    moved = ChannelAffine(np.ones(3), np.array([0, 0, 0.5]))
    assert_refuses(pull(resized({1}, value), on(1, moved)), Reason.SHIFT_MEETS_PADDING)
    assert_refuses(push(resized({1}, value), on(1, moved)), Reason.SHIFT_MEETS_PADDING)


@pytest.mark.parametrize("mode", ["reflect", "edge", "wrap"])
def test_padding_by_the_input_itself_passes_any_affine_beside_the_padded_axes(mode: str) -> None:
    any_affine = on(1, affine(3, positive=False))
    assert_pulls(padded(SPACE, None, mode), any_affine)
    assert_pushes(padded(SPACE, None, mode), any_affine)
    assert_refuses(pull(padded(CHANNELS, None, mode), on(1, affine(6))), Reason.OPERATOR_MIXES_CHANNELS)
    assert_refuses(push(padded(CHANNELS, None, mode), any_affine), Reason.OPERATOR_MIXES_CHANNELS)


@pytest.mark.parametrize(("value", "shift"), [(0.0, 0.0), (INF, 1.0), (-INF, 1.0)])
def test_a_constant_that_the_affine_leaves_alone_stays(value: float, shift: float) -> None:
    wanted = on(1, ChannelAffine([0.5, 2, 3], np.full(3, shift)))
    assert assert_pulls(padded(SPACE, value), wanted).edits == ()
    assert assert_pushes(padded(SPACE, value), wanted).edits == ()


def test_a_constant_changes_where_it_becomes_one_number_for_all_channels() -> None:
    pulled = ChannelAffine([2.0, 4, -1], [3.0, 1, 6])  # s*1 + t = 5 in every channel
    (edit,) = assert_pulls(padded(SPACE, 1.0), on(1, pulled)).edits
    assert isinstance(edit, SetConstant)
    assert (edit.value.shape, float(edit.value)) == ((), 5.0)
    pushed = ChannelAffine([2.0, 4, -1], [-3.0, -7, 3])  # (1 - t)/s = 2
    (edit,) = assert_pushes(padded(SPACE, 1.0), on(1, pushed)).edits
    assert isinstance(edit, SetConstant)
    assert float(edit.value) == 2.0


def test_a_constant_that_would_differ_between_channels_refuses() -> None:
    assert_refuses(pull(padded(SPACE, 0.0), on(1, affine(3))), Reason.SHIFT_MEETS_PADDING)
    assert_refuses(push(padded(SPACE, 0.0), on(1, affine(3))), Reason.SHIFT_MEETS_PADDING)
    for turned in ([1.0, 1, -1], [-1.0, -1, -1]):  # an infinite constant never changes
        scale = on(1, ChannelAffine(turned, np.zeros(3)))
        assert_refuses(pull(padded(SPACE, -INF), scale), Reason.SHIFT_MEETS_PADDING)
        assert_refuses(push(padded(SPACE, -INF), scale), Reason.SHIFT_MEETS_PADDING)


def test_a_scale_of_zero_is_pulled_but_pushed_only_where_the_constant_fits() -> None:
    dead = on(1, ChannelAffine(np.zeros(3), np.full(3, 2.0)))
    assert_pulls(padded(SPACE, 1.0), dead)
    assert_refuses(push(padded(SPACE, 1.0), dead), Reason.SCALE_IS_ZERO)
    assert_pushes(padded(SPACE, 2.0), dead)


def test_padded_channels_get_the_identity_and_must_keep_their_constant() -> None:
    step = assert_pushes(padded(CHANNELS, 1.5), on(1, affine(3, positive=False)))
    assert step.placed[0].affine.take(np.array([0, 4, 5])).is_identity
    inner, rim = affine(3), ChannelAffine([2.0], [-1.5])
    wanted = ChannelAffine.concat([rim, inner, rim, rim])
    assert assert_pulls(padded(CHANNELS, 1.5), on(1, wanted)).placed[0].affine.equals(inner)
    assert_refuses(pull(padded(CHANNELS, 1.0), on(1, wanted)), Reason.SHIFT_MEETS_PADDING)


def test_padding_on_the_channel_axis_and_elsewhere_never_changes_the_constant() -> None:
    pushed = on(1, ChannelAffine([2.0, 2, 2], [4.0, 4, 4]))  # (0 - t)/s = -2 in every channel of the input
    assert_refuses(push(padded(EVERYWHERE, 0.0), pushed), Reason.SHIFT_MEETS_PADDING)
    keeping = ChannelAffine(np.full(6, 2.0), [0.0, 5, 5, 5, 0, 0])  # s*0 + t = 5 in every channel of the input
    assert_refuses(pull(padded(EVERYWHERE, 0.0), on(1, keeping)), Reason.SHIFT_MEETS_PADDING)
    assert_pulls(padded(EVERYWHERE, 0.0), on(1, affine(6, shift=False)))
    assert_pushes(padded(EVERYWHERE, 0.0), on(1, affine(3, shift=False)))
    assert_pushes(padded(EVERYWHERE, 2.0), on(1, ChannelAffine([2.0, 3, 4], [-2.0, -4, -6])))


def test_cropped_channels_and_affines_on_two_axes_refuse_on_a_padded_axis() -> None:
    crop = ((0, -1, 0, 0), (0, 0, 0, 0))
    two_axes = PlacedAffine(affine(15), (1, 3), (3, 5))
    for net, wanted, seen in ((crop, on(1, affine(2)), on(1, affine(3))), (CHANNELS, two_axes, two_axes)):
        view = Net(x=draw(2, 3, 4, 5))
        view.add(Pad(*net, 0.0, FLOAT32), "x", run=lambda _op, _held, xs: xs[0], constant=0.0)
        assert_refuses(pull(view, wanted), Reason.OPERATOR_MIXES_CHANNELS)
        assert_refuses(push(view, seen), Reason.OPERATOR_MIXES_CHANNELS)
