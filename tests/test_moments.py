"""Moments are those of all values, however these were split, and however large the mean is beside the deviation."""

from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bnfold.moments import ChannelMoments

#: Relative to the largest value for a mean, to the variance for a variance.
TOLERANCE = 1e-12


@st.composite
def values(draw: st.DrawFn) -> np.ndarray:
    """(n, C) values, from means of about 0 to a hundred deviations."""
    seed, n, channels = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, 60)), draw(st.integers(1, 5))
    generator = np.random.default_rng(seed)
    offset = draw(st.sampled_from([0.0, 1.0, -100.0]))
    return offset + np.exp(draw(st.floats(-8, 8))) * generator.standard_normal((n, channels))


def split(x: np.ndarray, draw: st.DataObject) -> list[np.ndarray]:
    places = draw.draw(st.lists(st.integers(0, len(x)), max_size=5).map(sorted))
    return np.split(x, places)


def exact(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and population variance in extended precision."""
    wide = x.astype(np.longdouble)
    mean = wide.mean(axis=0)
    return mean, ((wide - mean) ** 2).mean(axis=0)


def assert_right(moments: ChannelMoments, x: np.ndarray) -> None:
    mean, variance = exact(x)
    conditioning = 1 + np.abs(x).max() ** 2 / np.maximum(variance, 1e-300)
    assert moments.count == len(x)
    assert (np.abs(moments.mean - mean) <= TOLERANCE * np.abs(x).max()).all()
    # the numbers of the mean themselves end at 1e-16 of it: no algorithm in float64 knows (x - mean)^2 any better
    allowed = variance * np.maximum(TOLERANCE, 1e-16 * np.sqrt(conditioning))
    assert (np.abs(moments.variance() - variance) <= allowed).all()


@given(values(), st.data())
def test_the_split_does_not_matter(x: np.ndarray, data: st.DataObject) -> None:
    parts = [ChannelMoments.of(part) for part in split(x, data)]
    assert_right(reduce(ChannelMoments.__add__, parts), x)


@given(values(), st.data())
def test_the_order_does_not_matter(x: np.ndarray, data: st.DataObject) -> None:
    parts = [ChannelMoments.of(part) for part in split(x, data)]
    shuffled = data.draw(st.permutations(parts))
    assert_right(reduce(ChannelMoments.__add__, shuffled), x)


@given(values(), values(), values())
def test_merging_is_associative(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> None:
    channels = min(a.shape[1] for a in (x, y, z))
    a, b, c = (ChannelMoments.of(v[:, :channels]) for v in (x, y, z))
    left, right = (a + b) + c, a + (b + c)
    assert left.count == right.count
    scale = max(np.abs(v).max() for v in (x, y, z))
    # the means are known to their rounding, and m2 is made of their differences
    lost = 64 * np.finfo(float).eps * scale * np.sqrt(left.m2 * left.count)
    assert (np.abs(left.m2 - right.m2) <= TOLERANCE * left.m2 + lost + (np.finfo(float).eps * scale) ** 2).all()
    np.testing.assert_allclose(left.mean, right.mean, rtol=0, atol=TOLERANCE * scale)


@given(values())
def test_no_value_changes_nothing(x: np.ndarray) -> None:
    some, none = ChannelMoments.of(x), ChannelMoments.none(x.shape[1])
    for merged in (some + none, none + some):
        assert merged.count == some.count
        assert (merged.mean == some.mean).all()
        assert (merged.m2 == some.m2).all()
    assert (none + none).count == 0


@given(values(), st.integers(1, 4))
def test_groups_are_merged_as_one_by_one(x: np.ndarray, size: int) -> None:
    whole = x[: len(x) // size * size]
    parts = [ChannelMoments.of(part) for part in whole.reshape(-1, size, x.shape[1])]
    if parts:
        means, m2s = (np.stack([getattr(part, name) for part in parts]) for name in ("mean", "m2"))
        assert_right(ChannelMoments.of_groups(size, means, m2s), whole)


def test_a_tiny_variance_survives_a_huge_mean() -> None:
    x = 1e6 + 1e-3 * np.random.default_rng(0).standard_normal((10_000, 3))
    merged = reduce(ChannelMoments.__add__, [ChannelMoments.of(part) for part in np.array_split(x, 97)])
    _, variance = exact(x)
    assert (np.abs(merged.variance() - variance) <= 1e-6 * variance).all()
    cancelled = (x * x).mean(axis=0) - x.mean(axis=0) ** 2
    assert (np.abs(cancelled - variance) > 0.5 * variance).any(), "the textbook formula would have done"


def test_the_unbiased_variance_divides_by_one_less() -> None:
    x = np.random.default_rng(1).standard_normal((7, 2))
    np.testing.assert_allclose(ChannelMoments.of(x).variance(bessel=True), x.var(axis=0, ddof=1), rtol=TOLERANCE)


@pytest.mark.parametrize(("n", "bessel"), [(0, False), (0, True), (1, True)])
def test_too_few_values_have_no_variance(n: int, bessel: bool) -> None:
    with pytest.raises(ValueError, match=f"no variance of {n} values"):
        ChannelMoments.of(np.ones((n, 2))).variance(bessel=bessel)


def test_moments_of_other_channels_cannot_be_merged() -> None:
    with pytest.raises(ValueError, match="2 and 3 channels"):
        ChannelMoments.none(2) + ChannelMoments.none(3)


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_what_is_not_finite_shows(bad: float) -> None:
    with np.errstate(invalid="ignore"):
        assert not ChannelMoments.of(np.array([[1.0, bad]])).is_finite
