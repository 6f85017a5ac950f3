"""A channel affine, the one thing that folding carries about: `y_c = scale_c * x_c + shift_c`, in float64.

For an inference BatchNorm `scale = gamma / sqrt(var + epsilon)` and `shift = beta - mean * scale`
(ONNX operator specification, BatchNormalization; Ioffe and Szegedy 2015, algorithm 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ChannelAffine:
    """The map `y_c = scale_c * x_c + shift_c` of one channel axis.

    Attributes:
        scale: float64, shape (channels,), read-only.
        shift: float64, shape (channels,), read-only.

    Raises:
        ValueError: `scale` and `shift` are not two vectors of the same length.
    """

    scale: Float64Array
    shift: Float64Array

    def __post_init__(self) -> None:
        scale, shift = _frozen(self.scale), _frozen(self.shift)
        if scale.ndim != 1 or scale.shape != shift.shape:
            raise ValueError(f"scale {scale.shape} and shift {shift.shape} must be vectors of one length")
        object.__setattr__(self, "scale", scale)
        object.__setattr__(self, "shift", shift)

    @classmethod
    def identity(cls, channels: int) -> ChannelAffine:
        """`y = x` on `channels` channels."""
        return cls(np.ones(channels), np.zeros(channels))

    @classmethod
    def of_batchnorm(
        cls,
        gamma: npt.ArrayLike,
        beta: npt.ArrayLike,
        mean: npt.ArrayLike,
        var: npt.ArrayLike,
        epsilon: float,
    ) -> ChannelAffine:
        """The affine of an inference BatchNorm; four vectors of shape (channels,), epsilon as stored.

        A channel with `var + epsilon <= 0` gets a scale that is not finite; ask `is_finite`.
        """
        gamma, beta, mean, var = (np.asarray(a, np.float64) for a in (gamma, beta, mean, var))
        with np.errstate(all="ignore"):
            scale = gamma / np.sqrt(var + epsilon)
            return cls(scale, beta - mean * scale)

    @classmethod
    def concat(cls, parts: Sequence[ChannelAffine]) -> ChannelAffine:
        """The channels of `parts`, one after the other; `parts` must not be empty."""
        return cls(np.concatenate([p.scale for p in parts]), np.concatenate([p.shift for p in parts]))

    @property
    def channels(self) -> int:
        """The number of channels."""
        return int(self.scale.size)

    @property
    def is_finite(self) -> bool:
        """No entry is infinite or NaN."""
        return bool(np.isfinite(self.scale).all() and np.isfinite(self.shift).all())

    @property
    def is_positive(self) -> bool:
        """Every scale is above zero."""
        return bool((self.scale > 0).all())

    @property
    def is_pure_scale(self) -> bool:
        """Every shift is exactly zero."""
        return not self.shift.any()

    @property
    def is_identity(self) -> bool:
        """The map changes nothing."""
        return self.is_pure_scale and bool((self.scale == 1).all())

    @property
    def scale_only(self) -> ChannelAffine:
        """The same scale, with no shift."""
        return ChannelAffine(self.scale, np.zeros_like(self.shift))

    def absolute(self) -> ChannelAffine:
        """`|s|*x + |t|`: how large the terms are that are added up."""
        return ChannelAffine(np.abs(self.scale), np.abs(self.shift))

    def apply(self, x: npt.ArrayLike) -> Float64Array:
        """`scale * x + shift` for `x` whose last axis is the channel axis."""
        return np.asarray(np.asarray(x, np.float64) * self.scale + self.shift)

    def then(self, after: ChannelAffine) -> ChannelAffine:
        """This affine first, `after` second: `after.scale * (scale * x + shift) + after.shift`; ask `is_finite`."""
        with np.errstate(all="ignore"):
            return ChannelAffine(self.scale * after.scale, self.shift * after.scale + after.shift)

    def inverse(self) -> ChannelAffine:
        """The affine that undoes this one.

        Raises:
            ZeroDivisionError: A scale is zero, so that the channel's input is lost.
        """
        if not self.scale.all():
            raise ZeroDivisionError("an affine with a scale of zero has no inverse")
        return ChannelAffine(1 / self.scale, -self.shift / self.scale)

    def take(self, indices: npt.NDArray[np.intp] | slice) -> ChannelAffine:
        """The channels at `indices`, in that order."""
        return ChannelAffine(self.scale[indices], self.shift[indices])

    def repeat(self, times: int) -> ChannelAffine:
        """Each channel `times` times, next to each other: (a, b) becomes (a, a, b, b)."""
        return ChannelAffine(self.scale.repeat(times), self.shift.repeat(times))

    def equals(self, other: ChannelAffine) -> bool:
        """The same numbers, bit for bit up to the sign of zero."""
        return np.array_equal(self.scale, other.scale) and np.array_equal(self.shift, other.shift)


def _frozen(values: Any) -> Float64Array:
    array: Float64Array = np.array(values, dtype=np.float64)
    array.setflags(write=False)
    return array
