"""Quantised weights by themselves: what they compute, what factors they take, and what they cannot."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.decision import Reason, Refusal
from bnfold.linear import WeightLayout
from bnfold.quantised import QuantisedBias, QuantisedWeight
from bnfold.rounding import integer_range

FLOAT32, INT4 = np.dtype(np.float32), np.dtype(ml_dtypes.int4)


def _weight(codes: Any, step: Any, zero_point: Any = 0, axis: int = 0, block: int = 0, **more: Any) -> QuantisedWeight:
    step = np.asarray(step, np.float32).astype(np.float64)
    zeros = np.broadcast_to(np.asarray(zero_point, np.int64), step.shape)
    more = {"layout": WeightLayout(output_first=True), **more}
    return QuantisedWeight(np.asarray(codes), step, zeros, axis, block, FLOAT32, **more)


@st.composite
def _weights(draw: st.DrawFn) -> QuantisedWeight:
    """A matrix of 3 outputs and 4 inputs in 4 bits, with one step, one for each output, each input or each block."""
    codes = np.array(draw(st.lists(st.integers(-8, 7), min_size=12, max_size=12)), np.int8).reshape(3, 4).astype(INT4)
    shape, axis, block = draw(st.sampled_from([((), 0, 0), ((3,), 0, 0), ((4,), 1, 0), ((3, 2), 1, 3), ((2, 4), 0, 2)]))
    count = int(np.prod(shape))
    steps = draw(st.lists(st.sampled_from([0.5, 0.1, 0.03]), min_size=count, max_size=count))
    zeros = draw(st.one_of(st.integers(-8, 7), st.lists(st.integers(-8, 7), min_size=count, max_size=count)))
    zeros = np.broadcast_to(np.asarray(zeros), (count,)).reshape(shape)
    return _weight(codes, np.reshape(steps, shape), zeros, axis, block)


_FACTORS = st.sampled_from([1.0, 0.3, -2.0, -0.7, 0.0])


def _factors(count: int) -> st.SearchStrategy[list[float]]:
    return st.one_of(_FACTORS.map(lambda f: [f] * count), st.lists(_FACTORS, min_size=count, max_size=count))


@settings(max_examples=400, deadline=None)
@given(_weights(), _factors(3), _factors(4))
def test_what_is_taken_is_exact_and_what_is_refused_is_impossible(
    weight: QuantisedWeight, outputs: list[float], inputs: list[float]
) -> None:
    factor = np.outer(outputs, inputs)
    found = weight.scaled(np.array(outputs), np.array(inputs), "w")
    if isinstance(found, Refusal):
        possible = _fits if found.reason is Reason.SIGN_DOES_NOT_FIT_INTEGERS else _is_even
        assert not possible(weight, factor)
        return
    wanted = weight.dequantised() * factor
    assert (np.abs(found.dequantised() - wanted) <= 2.0**-24 * np.abs(wanted)).all()
    assert (found.step > 0).all()
    low, high = integer_range(INT4) or (0, 0)
    assert ((found.zero_point >= low) & (found.zero_point <= high)).all()
    if (weight.zero_point == weight.zero_point.flat[0]).all():
        assert np.unique(found.zero_point).size == 1
    if (factor > 0).all():
        np.testing.assert_array_equal(found.codes, weight.codes)


def _cells(weight: QuantisedWeight) -> Any:
    """The number of the cell of each weight."""
    numbers = np.arange(weight.step.size).reshape(weight.step.shape)
    if weight.block:
        places = np.arange(weight.codes.shape[weight.axis]) // weight.block
        return np.take(numbers, places, axis=weight.axis)
    spread = numbers if weight.step.ndim == 0 else np.expand_dims(numbers, 1 - weight.axis)
    return np.broadcast_to(spread, weight.codes.shape)


def _is_even(weight: QuantisedWeight, factor: Any) -> bool:
    """Whether each cell (each row, where one step may be split) has factors of one size, or zero."""
    cells = np.arange(3)[:, None] + 0 * factor if weight.step.ndim == 0 else _cells(weight)
    sizes = [{abs(f) for f in factor[cells == cell]} - {0.0} for cell in np.unique(cells)]
    return all(len(found) <= 1 for found in sizes)


def _fits(weight: QuantisedWeight, factor: Any) -> bool:
    """Whether there is a zero point with which the mirrored codes fit: by trying all."""
    cells = _cells(weight)
    zeros = weight.zero_point.reshape(-1)[cells]
    offsets = np.sign(factor) * (weight.codes.astype(np.int64) - zeros)
    shared = (weight.zero_point == weight.zero_point.flat[0]).all()
    groups = [np.ones_like(cells, bool)] if shared else [cells == cell for cell in np.unique(cells)]
    return all(
        any(((offsets[group] + z >= -8) & (offsets[group] + z <= 7)).all() for z in range(-8, 8)) for group in groups
    )


def test_where_the_sign_allows_it_the_zero_point_stays() -> None:
    codes = np.array([[-7, 7], [-8, 7]], np.int8).astype(INT4)
    found = _weight(codes, 0.1).scaled(np.array([-1.0, 1.0]), np.ones(2), "w")
    assert isinstance(found, QuantisedWeight)
    assert found.zero_point == 0
    np.testing.assert_array_equal(found.codes.astype(int), [[7, -7], [-8, 7]])


def test_one_step_is_split_only_where_that_is_allowed_and_along_the_outputs() -> None:
    codes = np.ones((2, 3), np.int8)
    outputs, inputs = np.array([1.0, 2.0]), np.array([1.0, 2.0, 3.0])
    for one, ends, fine in ((True, (outputs, np.ones(3)), True), (True, (np.ones(2), inputs), False),
                            (False, (outputs, np.ones(3)), False)):  # fmt: skip
        found = _weight(codes, 0.1, may_split=one).scaled(*ends, "w")
        assert isinstance(found, QuantisedWeight) == fine
        if isinstance(found, Refusal):
            assert (found.reason, found.where) == (Reason.QUANTISATION_IS_TOO_COARSE, "w")


def test_a_moved_weight_is_scaled_where_its_codes_stand() -> None:
    codes = np.arange(6, dtype=np.int8).reshape(2, 3)
    order = np.arange(6).reshape(2, 3).T
    weight = _weight(codes, [0.1, 0.2, 0.3], axis=1, order=order, layout=WeightLayout(output_first=True))
    assert weight.shape == (3, 2)
    np.testing.assert_allclose(weight.dequantised(), (codes * np.float32([0.1, 0.2, 0.3])).T, rtol=1e-7)
    found = weight.scaled(np.array([1.0, 2.0, 4.0]), np.ones(2), "w")
    assert isinstance(found, QuantisedWeight)
    np.testing.assert_allclose(found.step, [0.1, 0.4, 1.2], rtol=1e-7)
    np.testing.assert_allclose(found.step_of_outputs(3, 2), found.step)
    assert weight.step_of_outputs(3, 2) is not None


@pytest.mark.parametrize(
    ("scale", "reason"),
    [(1e39, Reason.OVERFLOWS_DTYPE), (1e-38, Reason.UNDERFLOWS_DTYPE), (-1e-38, Reason.UNDERFLOWS_DTYPE)],
)
def test_a_scale_that_its_dtype_cannot_hold_is_refused(scale: float, reason: Reason) -> None:
    found = _weight(np.ones((2, 2), np.int8), 0.5).scaled(np.array([1.0, scale]), np.ones(2), "w")
    assert isinstance(found, Refusal)
    assert found.reason is reason


def test_codes_of_32_bits_have_no_zero_point() -> None:
    codes = np.array([[-(2**31), 5]], np.int32)
    found = _weight(codes, 0.5).scaled(np.array([-1.0]), np.ones(2), "w")
    assert isinstance(found, Refusal)
    assert found.reason is Reason.SIGN_DOES_NOT_FIT_INTEGERS
    assert isinstance(_weight(codes + 1, 0.5).scaled(np.array([-1.0]), np.ones(2), "w"), QuantisedWeight)


def test_a_bias_is_the_nearest_number_of_the_product_of_the_scales() -> None:
    weight = _weight(np.ones((2, 2), np.int8), [0.5, 0.25])
    bias = QuantisedBias(np.zeros(2, np.int32), np.array(0.1), 0.1, FLOAT32)
    found = bias.nearest(np.array([1.234, -0.7]), weight, 2, "b")
    assert isinstance(found, QuantisedBias)
    np.testing.assert_array_equal(found.step, np.float32([0.05, 0.025]).astype(np.float64))
    np.testing.assert_array_equal(found.codes, [25, -28])


def test_the_largest_bias_that_fits_is_taken_and_the_next_is_not() -> None:
    weight, bias = (
        _weight(np.ones((1, 2), np.int8), 1.0),
        QuantisedBias(np.zeros(1, np.int32), np.array(1.0), 1.0, FLOAT32),
    )
    assert isinstance(bias.nearest(np.array([2.0**31 - 1]), weight, 2, "b"), QuantisedBias)
    found = bias.nearest(np.array([2.0**31]), weight, 2, "b")
    assert isinstance(found, Refusal)
    assert found.reason is Reason.QUANTISED_BIAS_OVERFLOWS


def test_a_bias_cannot_follow_steps_that_differ_within_a_channel_or_are_not_known() -> None:
    blocks = _weight(np.ones((1, 2), np.int8), [[0.5, 0.25]], axis=1, block=1)
    for step, weight in ((0.1, blocks), (None, _weight(np.ones((1, 2), np.int8), 0.5))):
        found = QuantisedBias(np.zeros(1, np.int32), np.array(0.1), step, FLOAT32).nearest(np.ones(1), weight, 2, "b")
        assert isinstance(found, Refusal)
        assert found.reason is Reason.BIAS_STEP_NOT_KNOWN
