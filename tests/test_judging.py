"""The rule of the float64 oracle, as arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.judging import Errors, channel_errors, channel_scales, judge, worse

U = 2.0**-24


def test_both_errors_are_relative_to_the_largest_channel_and_the_ratio_to_each() -> None:
    scale, was, now = np.array([100.0, 1]), np.array([1e-3, 1e-5]), np.array([2e-3, 2e-4])
    found = judge(scale, was, now, U)
    assert (found.original, found.folded, found.believed) == (1e-5, 2e-5, True)
    allowed = [4 * 1e-3 + 64 * U * 100, 4 * (1e-3 + 1e-5) / 2 + 64 * U]  # the median of two is their mean
    assert found.ratio == pytest.approx(max(2e-3 / allowed[0], 2e-4 / allowed[1]))


def test_usual_scales_are_a_floor_where_they_have_the_shape() -> None:
    small, none, error = np.full(3, 1e-6), np.zeros(3), np.full(3, 32 * U)
    assert judge(small, none, error, U).ratio > 1
    assert judge(small, none, error, U, np.ones(3)).ratio == 0.5
    assert judge(small, none, error, U, np.ones(2)).ratio > 1
    assert judge(small, none, error, U, np.ones(1)).ratio > 1
    assert judge(np.ones(3), none, error, U, small).ratio == 0.5


def test_as_many_roundings_as_are_asked_for_are_granted() -> None:
    one, none = np.ones(1), np.zeros(1)
    assert judge(one, none, 16 * U * one, U, roundings=16).ratio == 1
    assert judge(one, none, 16 * U * one, U, roundings=8).ratio == 2
    assert judge(one, one, none, U).ratio == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_as_far_off_as_can_be(bad: float) -> None:
    one = np.ones(2)
    found = judge(one, 0 * one, np.array([0.0, bad]), U)
    assert (found.ratio, found.original, found.folded) == (np.inf, 0, np.inf)


def test_channels_lie_on_axis_1() -> None:
    truth = np.array([[[1.0, -2], [3, 4]], [[5, 6], [-9, 8]]])
    assert channel_scales(truth).tolist() == [6, 9]
    assert channel_scales(truth[0, 0]).tolist() == 2.0
    assert channel_errors(truth, truth + np.array([[[0.0, 0], [0, 1]], [[-2, 0], [0, 0]]])).tolist() == [2, 1]


def test_of_two_runs_the_worse_is_reported_with_the_larger_errors() -> None:
    good, bad = Errors(0.5, 3e-3, 1e-3), Errors(2.0, 1e-3, 2e-3)
    unknown = Errors(0.1, 1.0, 0.0, believed=False)
    assert worse(good, bad) == worse(bad, good) == Errors(2.0, 3e-3, 2e-3)
    assert worse(bad, unknown) == Errors(0.1, 1.0, 2e-3, believed=False)
