"""Laws of the channel affine: a monoid under `then`, with inverses, slices and repetitions that agree."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bnfold.affine import ChannelAffine

#: Three roundings of numbers up to 1e3 and scales down to 1e-2.
CLOSE = 1e-9

NUMBERS = st.floats(-10, 10, allow_nan=False)
SCALES = st.one_of(st.floats(0.01, 10), st.floats(-10, -0.01))


@st.composite
def affines(drawn: st.DrawFn, channels: int = 3) -> ChannelAffine:
    vectors = [drawn(st.lists(s, min_size=channels, max_size=channels)) for s in (SCALES, NUMBERS)]
    return ChannelAffine(*vectors)


X = np.random.default_rng(0).standard_normal((5, 3))


@settings(deadline=None)
@given(affines(), affines(), affines())
def test_then_is_associative_and_means_one_after_the_other(
    a: ChannelAffine, b: ChannelAffine, c: ChannelAffine
) -> None:
    left, right = a.then(b).then(c), a.then(b.then(c))
    np.testing.assert_allclose(left.scale, right.scale, rtol=CLOSE)
    np.testing.assert_allclose(left.shift, right.shift, rtol=CLOSE, atol=CLOSE)
    np.testing.assert_allclose(a.then(b).apply(X), b.apply(a.apply(X)), rtol=CLOSE, atol=CLOSE)


@settings(deadline=None)
@given(affines())
def test_the_identity_is_neutral(a: ChannelAffine) -> None:
    identity = ChannelAffine.identity(3)
    assert identity.is_identity
    assert a.then(identity).equals(a)
    assert identity.then(a).equals(a)


@settings(deadline=None)
@given(affines())
def test_the_inverse_undoes_from_both_sides(a: ChannelAffine) -> None:
    for both in (a.then(a.inverse()), a.inverse().then(a)):
        np.testing.assert_allclose(both.apply(X), X, rtol=CLOSE, atol=CLOSE * 1e3)


def test_a_scale_of_zero_has_no_inverse() -> None:
    with pytest.raises(ZeroDivisionError, match="no inverse"):
        ChannelAffine([1.0, 0.0], [0.0, 1.0]).inverse()


@settings(deadline=None)
@given(affines(2), affines(3))
def test_concat_and_take_undo_each_other(a: ChannelAffine, b: ChannelAffine) -> None:
    both = ChannelAffine.concat([a, b])
    assert both.channels == 5
    assert both.take(slice(0, 2)).equals(a)
    assert both.take(np.array([2, 3, 4])).equals(b)


@settings(deadline=None)
@given(affines(), affines(), st.integers(1, 4))
def test_repeat_is_a_take_with_repeats_and_goes_through_then(a: ChannelAffine, b: ChannelAffine, times: int) -> None:
    indices = np.arange(3).repeat(times)
    assert a.repeat(times).equals(a.take(indices))
    assert a.repeat(times).then(b.repeat(times)).equals(a.then(b).repeat(times))


@settings(deadline=None)
@given(affines(), affines())
def test_take_and_concat_go_through_then(a: ChannelAffine, b: ChannelAffine) -> None:
    indices = np.array([2, 0, 0])
    assert a.then(b).take(indices).equals(a.take(indices).then(b.take(indices)))
    assert (
        ChannelAffine.concat([a, b])
        .then(ChannelAffine.concat([b, a]))
        .equals(ChannelAffine.concat([a.then(b), b.then(a)]))
    )


@pytest.mark.parametrize(("scale", "shift"), [([1.0, 2], [1.0]), ([[1.0]], [[1.0]]), (1.0, 1.0), ([1.0], [1.0, 2])])
def test_scale_and_shift_are_vectors_of_one_length(scale: object, shift: object) -> None:
    with pytest.raises(ValueError, match="vectors of one length"):
        ChannelAffine(scale, shift)  # type: ignore[arg-type]


def test_its_arrays_are_its_own_and_cannot_be_written() -> None:
    mine = np.ones(2, np.float32)
    a = ChannelAffine(mine, mine)  # type: ignore[arg-type]
    mine[0] = 5
    assert (a.scale.dtype, a.shift.dtype) == (np.float64, np.float64)
    assert a.is_identity is False
    np.testing.assert_array_equal(a.scale, [1, 1])
    for array in (a.scale, a.shift, a.then(a).scale, a.scale_only.shift):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 2


def test_a_batchnorm_is_computed_in_float64_from_the_stored_numbers() -> None:
    gamma, beta, mean, var = (np.array([v], np.float32) for v in (0.3, -1.0, 1000.1, 1e-3))
    a = ChannelAffine.of_batchnorm(gamma, beta, mean, var, 1e-5)
    x = np.array([1000.2])
    wide = [float(v[0]) for v in (gamma, beta, mean, var)]
    expected = wide[0] * (x - wide[2]) / np.sqrt(wide[3] + 1e-5) + wide[1]
    np.testing.assert_allclose(a.apply(x), expected, rtol=1e-11)  # |shift| is 1e4 times |y|


@pytest.mark.parametrize("var", [-1.0, -1e-5, float("nan"), float("inf")])
def test_statistics_that_allow_no_affine_are_told_by_is_finite(var: float) -> None:
    a = ChannelAffine.of_batchnorm([1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [1.0, var], 1e-5)
    assert a.is_finite is (var == float("inf"))  # an infinite variance gives a scale of 0
    assert a.then(ChannelAffine([0.0, 0.0], [0.0, 0.0])).is_finite is a.is_finite


@pytest.mark.parametrize(
    ("scale", "shift", "positive", "pure", "identity"),
    [
        ([1.0, 1], [0.0, 0], True, True, True),
        ([1.0, 1], [0.0, 1e-300], True, False, False),
        ([1.0, 2], [0.0, -0.0], True, True, False),
        ([1.0, 0], [0.0, 0], False, True, False),
        ([1.0, -1], [0.0, 0], False, True, False),
    ],
)
def test_its_questions_are_answered_exactly(
    scale: list[float], shift: list[float], positive: bool, pure: bool, identity: bool
) -> None:
    a = ChannelAffine(scale, shift)  # type: ignore[arg-type]
    assert (a.is_positive, a.is_pure_scale, a.is_identity) == (positive, pure, identity)
    assert a.scale_only.is_pure_scale
    assert a.scale_only.scale.tolist() == scale
