"""Slices: every axis but the batch, their largest values, and where these stand."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.slices import (
    absolute_difference,
    kinds_of,
    magnitudes,
    relative_errors,
    slice_axes,
    slice_maxima,
    typical_scale,
    where_in_slice,
    widened,
)

VALUES = np.array([[1.0, 7, 3], [4, 5, 6]])


@pytest.mark.parametrize(("rank", "axes"), [(0, (None,)), (1, (None,)), (2, (1,)), (4, (1, 2, 3))])
def test_all_axes_but_the_batch_are_cut(rank: int, axes: tuple[int | None, ...]) -> None:
    assert slice_axes(rank) == axes


def test_the_typical_scale_is_the_median_of_those_that_are_not_zero() -> None:
    assert typical_scale(np.array([0.0, 0, 0, 2, 8, 3])) == 3
    assert typical_scale(np.zeros(3)) == 0


def test_the_maximum_of_every_slice_and_its_place() -> None:
    assert slice_maxima(VALUES, 1).tolist() == [4, 7, 6]
    assert slice_maxima(VALUES, None).tolist() == [7]
    assert slice_maxima(np.float64(5), None).tolist() == [5]
    assert [where_in_slice(VALUES, 1, place) for place in range(3)] == [(1, 0), (0, 1), (1, 2)]
    assert where_in_slice(VALUES, None, 0) == (0, 1)
    assert where_in_slice(VALUES[0], None, 0) == (1,)
    assert where_in_slice(np.float64(5), None, 0) == ()
    assert where_in_slice(VALUES[None], 2, 1) == (0, 0, 1)


def test_an_error_of_what_has_no_scale_is_infinite() -> None:
    assert relative_errors(np.array([0.0, 1, 1]), np.array([0.0, 0, 4])).tolist() == [0, np.inf, 0.25]


def test_halves_are_widened_and_doubles_stay() -> None:
    assert [widened(np.ones(1, kind)).dtype.name for kind in ("float16", "float32", "float64")] == [
        "float32", "float32", "float64",
    ]  # fmt: skip
    one = np.ones(2, np.float32)
    assert widened(one) is one


def test_what_is_not_finite_has_no_difference_and_no_size_but_a_kind() -> None:
    before, after = np.array([1.0, np.nan, np.inf, 2, -np.inf]), np.array([-3.0, 1, 1, np.nan, -np.inf])
    assert absolute_difference(before, after).tolist() == [4, 0, 0, 0, 0]
    assert magnitudes(-before).tolist() == [1, 0, 0, 2, 0]
    assert kinds_of(before).tolist() == [0, 1, 2, 0, 3]
