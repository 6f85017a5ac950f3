"""What a comparison measures by: round-off, tolerances, noise, usual sizes and movement, each of them alone."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from bnfold.comparison import TOLERANCE, UNIT_ROUNDOFF, compare, measure_noise, measure_scales, movement

ONES = np.ones((2, 3), np.float32)
EMPTY = np.ones((0, 3), np.float32)
WHOLE = np.ones((2, 3), np.int64)


@pytest.mark.parametrize("dtype", UNIT_ROUNDOFF)
def test_the_unit_roundoff_is_half_the_step_above_one(dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    assert UNIT_ROUNDOFF[dtype] == float(ml_dtypes.finfo(kind).eps) / 2


def test_the_tolerances_are_those_of_the_design() -> None:
    assert TOLERANCE == {"float64": 2.0**-39, "float32": 1e-3, "float16": 1 / 32, "bfloat16": 1 / 4}


@pytest.mark.parametrize(("one", "other"), [(ONES, ONES[:1]), (WHOLE, WHOLE), (EMPTY, EMPTY)])
def test_what_has_no_roundings_has_no_noise(one: np.ndarray, other: np.ndarray) -> None:
    assert measure_noise(one, other) is None


@pytest.mark.parametrize("values", [WHOLE, EMPTY])
def test_what_has_no_floating_point_numbers_has_no_scale(values: np.ndarray) -> None:
    assert measure_scales(values) is None


def test_noise_and_scales_are_those_of_every_slice() -> None:
    values = np.array([[1.0, -20, 300], [4, 5, -600]], np.float32)
    noise, scales = measure_noise(values, values + np.float32([[1, 0, 0], [0, 0, -2]])), measure_scales(values)
    assert noise is not None
    assert scales is not None
    assert [found.tolist() for found in noise.movements] == [[1, 0, 2]]
    assert scales.shape == (2, 3)
    assert [found.tolist() for found in scales.slices] == [[4, 20, 600]]


@pytest.mark.parametrize(
    ("other", "found"),
    [
        (ONES, 0.0),
        (ONES[:1], np.inf),
        (ONES.astype(np.float64), np.inf),
        (np.where([[True, False, False], [False] * 3], np.float32(np.nan), ONES), np.inf),
        (ONES + np.float32([[0, 0, 0], [0, 0.25, 0]]), 0.25),
    ],
)
def test_movement_is_that_of_the_slice_that_moves_most(other: np.ndarray, found: float) -> None:
    assert movement(ONES, other) == found


def test_movement_of_whole_numbers_is_the_share_of_those_that_differ() -> None:
    assert movement(WHOLE, WHOLE + np.array([[0, 0, 0], [5, 0, 0]])) == pytest.approx(1 / 6)
    assert movement(EMPTY, EMPTY) == 0


def test_movement_is_relative_to_the_typical_slice_where_a_slice_is_small() -> None:
    values = np.array([[1.0, 2, 1e-6]], np.float32)
    moved = np.array([[1.0, 2, 0.3]], np.float32)
    assert movement(values, moved) == pytest.approx(0.3, rel=1e-5)  # of the median, 1
    values = np.array([[1.0, 2, 4]], np.float32)
    assert movement(values, values + np.float32([[0, 0, 2]])) == pytest.approx(0.5)  # of its own


def test_movement_is_the_largest_over_all_axes() -> None:
    values = np.array([[[1.0, 1], [100, 100]]], np.float32)
    moved = values + np.float32([[[1, 0], [0, 0]]])
    assert movement(values, moved) == pytest.approx(1 / 50.5)  # along the last axis, 1 / 100


def test_a_tolerance_of_the_callers_takes_the_place_of_the_types() -> None:
    found = [compare("y", ONES, ONES * np.float32(1.01), tolerance=limit) for limit in (None, 0.5, 0.002)]
    assert [(entry.passed, entry.tolerance) for entry in found] == [(False, 1e-3), (True, 0.5), (False, 0.002)]


def test_a_pattern_is_measured_by_the_usual_scale_of_a_tensor_of_its_shape() -> None:
    small, moved = 1e-6 * ONES, 2e-6 * ONES
    assert compare("y", small, moved).failed
    assert compare("y", small, moved, usual=measure_scales(ONES)).passed
    assert compare("y", small, moved, usual=measure_scales(ONES[:1])).failed
    assert compare("y", ONES, 1.01 * ONES, usual=measure_scales(small)).failed  # a floor only


def test_the_noise_is_that_of_the_slices_that_are_not_zero() -> None:
    values = np.array([[0.0, 0, 0, 1, 1]], np.float32)
    noise = measure_noise(values, values * np.float32(1.01))
    assert compare("y", values, values, noise=noise).tolerance == pytest.approx(0.02, rel=1e-3)


def test_a_tensor_is_ill_conditioned_where_one_axis_shows_it() -> None:
    values = np.ones((1, 2, 9), np.float32)
    moved = values.copy()
    moved[0, :, 0] = 1.05  # every slice of axis 1 has it, and one of nine along axis 2
    assert compare("y", values, values, noise=measure_noise(values, moved)).ill_conditioned
    assert not compare("y", values, values, noise=measure_noise(values, values)).ill_conditioned


@pytest.mark.parametrize(("noise", "ill"), [(0.1, False), (0.13, True)])
def test_noise_grants_no_more_than_a_quarter_of_the_scale(noise: float, ill: bool) -> None:
    """In float16, where 32 tolerances are the whole scale; twice the noise is what is asked for."""
    values = np.full((2, 4), 1, np.float16)
    found = compare("y", values, values, noise=measure_noise(values, values + np.float16(noise)))
    assert found.ill_conditioned is ill
    assert found.tolerance == pytest.approx(min(0.25, 2 * noise), rel=1e-2)


@pytest.mark.parametrize(("roundings", "passed"), [(0.9, True), (1.1, False)])
def test_a_slice_without_measured_noise_is_granted_sixteen_roundings_of_a_typical_number(
    roundings: float, passed: bool
) -> None:
    values = np.array([[1.0, 1, 1, 1e-9]], np.float32)
    moved = values + np.float32([[0, 0, 0, roundings * 16 * UNIT_ROUNDOFF["float32"]]])
    assert compare("y", values, moved).passed is passed
