"""The comparison must see what is small next to what is large, and must not blame rounding."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from bnfold.comparison import TOLERANCE, UNIT_ROUNDOFF, compare, measure_noise, movement


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def yolo(scores: float = 1.0, classes: int = 80) -> np.ndarray:
    """Boxes of up to 640 pixels in four rows, class scores below `scores` in the rest; shape (1, 4 + classes, 300)."""
    generator = np.random.default_rng(1)
    rows = np.concatenate([generator.uniform(5, 640, (4, 300)), scores * generator.uniform(0, 1, (classes, 300))])
    return rows[None].astype(np.float32)


def test_equal_arrays_pass_with_no_error() -> None:
    x = draw(2, 3, 4, 4)
    result = compare("x", x, x.copy())
    assert (result.passed, result.error, result.index, result.shape, result.dtype) == (
        True,
        0.0,
        (),
        x.shape,
        "float32",
    )


def test_the_worst_element_and_its_slice_are_named() -> None:
    before = draw(2, 3, 4, 4)
    before[:, 2] *= 0.01
    after = before.copy()
    after[1, 2, 3, 0] += 0.005
    result = compare("x", before, after)
    assert result.failed
    assert (result.axis, result.index) == (1, (1, 2, 3, 0))
    assert result.scale == pytest.approx(np.abs(before[:, 2]).max())
    assert result.error == pytest.approx(0.005 / np.abs(before[:, 2]).max(), rel=1e-4)


@pytest.mark.parametrize("scores", [1.0, 1e-3])
def test_zeroed_class_scores_behind_large_boxes_are_caught(scores: float) -> None:
    before = yolo(scores)
    after = before.copy()
    after[:, 4:] = 0
    assert np.abs(after - before).max() / np.abs(before).max() < 2e-3  # one scale for the tensor would nearly pass it
    assert compare("y", before, after).failed
    assert compare("y", before.transpose(0, 2, 1), after.transpose(0, 2, 1)).failed  # (1, anchors, channels)


def test_one_zeroed_class_out_of_eighty_is_caught() -> None:
    before = yolo(0.01)
    after = before.copy()
    after[:, 50] = 0
    result = compare("y", before, after)
    assert result.failed
    assert result.index[1] == 50


def test_zeroed_scores_of_a_detector_with_one_class_are_caught() -> None:
    before = yolo(0.3, classes=1)
    after = before.copy()
    after[:, 4:] = 0
    assert compare("y", before, after).failed


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_every_float_type_passes_a_few_roundings_and_fails_beyond_its_tolerance(dtype: str) -> None:
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    before = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(kind)
    wide = before.astype(np.float64)
    assert compare("x", before, (wide * (1 + 4 * UNIT_ROUNDOFF[dtype])).astype(kind)).passed
    assert compare("x", before, (wide * (1 + 1.5 * TOLERANCE[dtype])).astype(kind)).failed


def test_a_float64_tensor_computed_through_float32_is_judged_as_float32() -> None:
    before = draw(2, 3).astype(np.float64)
    after = before * (1 + 1e-5)
    assert compare("x", before, after).failed
    assert compare("x", before, after, accuracy="float32").passed


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_kinds_of_numbers_must_match_at_the_same_places(value: float) -> None:
    before = draw(2, 3, 4, 4)
    after = before.copy()
    after[0, 1, 2, 3] = value
    result = compare("x", before, after)
    assert result.failed
    assert result.index == (0, 1, 2, 3)
    assert str(value) in result.note
    assert compare("x", after, before).failed
    assert compare("x", after, after.copy()).passed


def test_an_infinity_does_not_hide_an_error_beside_it() -> None:
    before = draw(2, 3, 4, 4)
    before[0, 1, 0, 0] = np.inf
    after = before.copy()
    after[1, 1, 1, 1] += 1
    assert compare("x", before, after).failed


def test_opposite_infinities_and_an_overflowing_difference_fail() -> None:
    assert compare("x", np.array([[np.inf, 1]], np.float32), np.array([[-np.inf, 1]], np.float32)).failed
    assert compare("x", np.array([[3e38, 1]], np.float32), np.array([[-3e38, 1]], np.float32)).failed


def test_shape_and_type_changes_fail_with_a_note() -> None:
    x = draw(2, 3)
    assert "shape changed from (2, 3) to (3, 2)" in compare("x", x, x.reshape(3, 2)).note
    assert compare("x", x, x.reshape(3, 2)).failed
    assert "type changed from float32 to float64" in compare("x", x, x.astype(np.float64)).note
    assert compare("x", x, x.astype(np.float64)).failed


def test_an_empty_tensor_neither_passes_nor_fails() -> None:
    empty = np.zeros((0, 4), np.float32)
    result = compare("x", empty, empty)
    assert (result.compared, result.passed, result.failed) == (False, False, False)


@pytest.mark.parametrize("dtype", [np.int64, np.bool_, np.uint8])
def test_whole_numbers_are_compared_exactly(dtype: type) -> None:
    before = np.array([[1, 0, 1]]).astype(dtype)
    after = before.copy()
    assert compare("x", before, after).passed
    after[0, 1] = 1
    result = compare("x", before, after)
    assert (result.failed, result.index, result.error) == (True, (0, 1), pytest.approx(1 / 3))


@pytest.mark.parametrize("shape", [(), (5,)])
def test_tensors_of_rank_zero_and_one_are_one_slice(shape: tuple[int, ...]) -> None:
    before = np.full(shape, 2.0, np.float32)
    assert compare("x", before, before * np.float32(1.0001)).passed
    assert compare("x", before, before * np.float32(1.01)).failed
    assert compare("x", before, np.full(shape, np.nan, np.float32)).failed


def test_a_channel_that_is_zero_but_for_rounding_passes() -> None:
    before = draw(2, 8, 6, 6)
    before[:, 3] = 0
    after = before.copy()
    after[0, 3, 1, 1] = 3e-7
    assert compare("x", before, after).passed
    after[0, 3, 1, 1] = 3e-3
    assert compare("x", before, after).failed


def test_a_tensor_of_zeros_must_stay_zero() -> None:
    zeros = np.zeros((2, 3), np.float32)
    assert compare("x", zeros, zeros.copy()).passed
    assert compare("x", zeros, zeros + np.float32(1e-20)).failed


def test_measured_noise_excuses_a_slice_of_cancellation_and_nothing_else() -> None:
    before = draw(2, 8, 6, 6)
    before[:, 3] *= 1e-4
    perturbed, after = before.copy(), before.copy()
    perturbed[:, 3] += 3e-6 * draw(2, 6, 6, seed=1)
    after[:, 3] += 3e-6 * draw(2, 6, 6, seed=2)
    noise = measure_noise(before, perturbed)
    assert compare("x", before, after).failed
    assert compare("x", before, after, noise=noise).passed
    after[:, 4] *= np.float32(1.002)
    result = compare("x", before, after, noise=noise)
    assert result.failed
    assert result.index[1] == 4


def test_twice_the_measured_noise_is_granted_and_no_more() -> None:
    before = draw(2, 8, 6, 6)
    noise = measure_noise(before, before * np.float32(1.002))
    granted = compare("x", before, before * np.float32(1.0025), noise=noise)
    assert granted.passed
    assert 3e-3 < granted.tolerance < 4.001e-3  # the median slice moves by less than 2e-3 of the largest
    assert "rounding alone moves it by" in granted.note
    failed = compare("x", before, before * np.float32(1.0045), noise=noise)
    assert failed.failed
    assert not failed.ill_conditioned


def test_chaos_is_granted_a_limit_only_and_a_failure_in_it_is_in_doubt() -> None:
    before = draw(2, 8, 6, 6)
    noise = measure_noise(before, -before)
    assert compare("x", before, before * np.float32(1.03), noise=noise).passed
    result = compare("x", before, before * np.float32(1.04), noise=noise)
    assert result.failed
    assert result.ill_conditioned
    assert not compare("x", before, before * np.float32(1.04)).ill_conditioned


def test_movement_ignores_noise_where_nothing_else_is() -> None:
    constant = np.tile(np.arange(1, 9, dtype=np.float32)[None, :, None, None], (2, 1, 4, 4))
    other = constant.copy()
    other[:, 3] = constant[:, 3] + 1e-5 * draw(2, 4, 4)
    constant[:, 0], other[:, 0] = 0, 1e-9
    assert movement(constant, other) < 1e-4
    assert movement(constant, constant + draw(2, 8, 4, 4)) > 0.1
    assert movement(constant, constant[:1]) == np.inf
