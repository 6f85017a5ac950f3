"""Exact mean and variance of every channel, in parts that can be merged in any order.

With `d = mean_b - mean_a` and `n = n_a + n_b` (Chan, Golub and LeVeque 1983, "Algorithms for computing the sample
variance"): `mean = mean_a + d * n_b / n`, `m2 = m2_a + m2_b + d^2 * n_a * n_b / n`. Never `E[x^2] - E[x]^2`, which
cancels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.affine import Float64Array


@dataclass(frozen=True, eq=False)
class ChannelMoments:
    """How many values each channel has seen, their mean, and the sum of their squared deviations from it.

    A monoid: `a + b` is what all values of both have, and `none` changes nothing.

    Attributes:
        count: Values in each channel.
        mean: (C,), float64; 0 where there is no value.
        m2: (C,), float64: sum of `(x - mean)^2`.
    """

    count: int
    mean: Float64Array
    m2: Float64Array

    def __post_init__(self) -> None:
        if self.mean.shape != self.m2.shape or self.mean.ndim != 1:
            raise ValueError(f"means of shape {self.mean.shape}, sums of squares of shape {self.m2.shape}")
        self.mean.setflags(write=False)
        self.m2.setflags(write=False)

    @property
    def channels(self) -> int:
        """C."""
        return int(self.mean.size)

    @property
    def is_finite(self) -> bool:
        """Whether no value was infinite or NaN."""
        return bool(np.isfinite(self.mean).all() and np.isfinite(self.m2).all())

    @classmethod
    def none(cls, channels: int) -> ChannelMoments:
        """The moments of no value."""
        return cls(0, np.zeros(channels), np.zeros(channels))

    @classmethod
    def of(cls, values: npt.NDArray[Any]) -> ChannelMoments:
        """The moments of `values`, (n, C) of any real dtype."""
        wide = np.asarray(values, np.float64)
        return cls.of_groups(1, wide, np.zeros_like(wide))

    @classmethod
    def of_groups(cls, size: int, means: Float64Array, m2s: Float64Array) -> ChannelMoments:
        """The moments of groups of equal size together.

        Args:
            size: Values of a channel in one group.
            means: (groups, C), float64: the mean of each group.
            m2s: (groups, C), float64: its sum of squared deviations from that mean.
        """
        groups, channels = means.shape
        if groups * size == 0:
            return cls.none(channels)
        near = means.mean(axis=0)
        away = means - near
        offset = away.mean(axis=0)  # what rounding has left out of `near`
        between = (away * away).sum(axis=0) - groups * offset * offset
        return cls(groups * size, near + offset, m2s.sum(axis=0) + size * between)

    def __add__(self, other: ChannelMoments) -> ChannelMoments:
        """The moments of the values of both."""
        if self.channels != other.channels:
            raise ValueError(f"{self.channels} and {other.channels} channels")
        count = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        away, share = other.mean - self.mean, other.count / count
        mean = self.mean + away * share
        return ChannelMoments(count, mean, self.m2 + other.m2 + away * away * (self.count * share))

    def variance(self, *, bessel: bool = False) -> Float64Array:
        """The population's variance `m2 / n`, or with `bessel` the unbiased estimate `m2 / (n - 1)`.

        Raises:
            ValueError: There are no values, or with `bessel` only one.
        """
        freedom = self.count - 1 if bessel else self.count
        if freedom < 1:
            raise ValueError(f"no variance of {self.count} values")
        return self.m2 / freedom
