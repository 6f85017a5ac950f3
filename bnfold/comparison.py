"""Two arrays compared slice by slice: `error = max|after - before| / scale` of each slice, and the worst slice counts.

One scale for a whole tensor hides what is small in it: in a YOLO output of shape (1, 84, 8400) boxes of 640 pixels hide
class scores below 1. So a slice is one index of one axis, every axis but the batch (0) is cut in turn, and each slice
answers for its own scale. Cutting a spatial axis as well is harmless: such a slice holds every channel.

A slice may be much smaller than what it was computed from (a channel whose ReLU barely opens, a logit near zero). Its
rounding noise then belongs to the larger numbers, so its scale is not taken below the noise:
`scale = max(own, min(noise / tolerance, typical))`, with `typical` the median scale of the slices that are not zero,
and `noise` the larger of the slice's own measured noise, the median measured noise, and `16 * u * typical`.

Measured noise is how far the original itself moves when its input moves by a few roundings. Through a deep net rounding
grows beyond any fixed tolerance, and the right fold with it: at every depth of a random ResNet-101 right float32 folds
differ by 0.2 to 0.7 of the noise of 64 roundings (2.0 in its shallow end), and one wrong weight by 3 to 1200 times it.
So up to twice the noise is granted, within a limit; where the noise exceeds the limit a failure is in doubt.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from bnfold.slices import (
    absolute_difference,
    kinds_of,
    magnitudes,
    relative_errors,
    slice_axes,
    slice_maxima,
    typical_scale,
    where_in_slice,
    where_largest,
    widened,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from bnfold.judging import Errors

#: Unit round-off `u` of every floating-point type that is compared with a tolerance.
UNIT_ROUNDOFF: Mapping[str, float] = {
    "float64": 2.0**-53,
    "float32": 2.0**-24,
    "float16": 2.0**-11,
    "bfloat16": 2.0**-8,
}

#: Allowed error relative to the slice's scale, by stored type. float32: right folds of a calibrated ResNet-101 differ
#: by up to 9e-5, so 1e-3 leaves a factor of ten. float64: the same number of roundings, 2^14 u. float16, bfloat16: the
#: weights themselves move by u, and 64 u is the most that still tells a right fold from a wrong one.
TOLERANCE: Mapping[str, float] = {"float64": 2.0**-39, "float32": 1e-3, "float16": 2.0**-5, "bfloat16": 2.0**-2}

#: A tensor whose measured noise is above the tolerance is granted twice its noise, though never more than this many
#: tolerances, and never more than a quarter of its scale.
NOISE_FACTOR, MOST_TOLERANCES, MOST = 2.0, 32.0, 0.25

#: Roundings of a typical number that are granted to a slice whose noise was not measured.
NOISE_ROUNDINGS = 16.0


@dataclass(frozen=True)
class TensorComparison:
    """How far a tensor moved.

    Attributes:
        name: The tensor's name.
        shape: Its shape before.
        dtype: Its stored type before, by NumPy's name.
        error: Error of the worst slice relative to `scale`; infinite where the kinds of numbers differ, and for
            integers the share of elements that differ.
        scale: Scale of the worst slice, in the tensor's own unit.
        tolerance: Largest `error` that passes, what the noise was granted included; 0 for integers.
        axis: Axis the worst slice is an index of; None when the tensor is one slice.
        index: The worst element; empty when nothing differs or nothing was compared.
        compared: At least one element was compared, or the shapes or types differ.
        passed: Compared, and the error is within the tolerance.
        ill_conditioned: Rounding alone moves the original further than can be granted: a failure here is in doubt.
        note: What a reader must know; empty when the numbers say it all.
        oracle: Both models' errors against float64; None where that was not asked, or cannot be believed.
        stage: The same where all three start from the original's values before the tensor (`bnfold.staging`).
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    error: float
    scale: float
    tolerance: float
    axis: int | None = None
    index: tuple[int, ...] = ()
    compared: bool = True
    passed: bool = False
    ill_conditioned: bool = False
    note: str = ""
    oracle: Errors | None = None
    stage: Errors | None = None

    @property
    def failed(self) -> bool:
        """Compared and not within the tolerance. A tensor without elements neither passes nor fails."""
        return self.compared and not self.passed


@dataclass(frozen=True, eq=False)
class Noise:
    """Measured rounding noise: per axis of `slice_axes(rank)`, the largest movement within each slice."""

    movements: tuple[NDArray[np.float64], ...]


@dataclass(frozen=True, eq=False)
class Scales:
    """How large a tensor of this shape usually is: per axis of `slice_axes(rank)`, the scale of each slice."""

    shape: tuple[int, ...]
    slices: tuple[NDArray[np.float64], ...]


def measure_noise(before: NDArray[np.generic], perturbed: NDArray[np.generic]) -> Noise | None:
    """The noise of `before`, from the same tensor after its input moved by a few roundings; None if incomparable."""
    if before.shape != perturbed.shape or before.dtype.name not in UNIT_ROUNDOFF or before.size == 0:
        return None
    moved = absolute_difference(before, perturbed)
    return Noise(tuple(slice_maxima(moved, axis) for axis in slice_axes(before.ndim)))


def measure_scales(values: NDArray[np.generic]) -> Scales | None:
    """The scales of a tensor; None where it has none."""
    if values.dtype.name not in UNIT_ROUNDOFF or values.size == 0:
        return None
    sizes = magnitudes(values)
    return Scales(values.shape, tuple(slice_maxima(sizes, axis) for axis in slice_axes(values.ndim)))


def movement(before: NDArray[np.generic], other: NDArray[np.generic]) -> float:
    """Largest movement of any slice, relative to its own scale or the typical one, whichever is larger.

    Noise in a slice that is zero but for noise is no movement. Infinite when shapes, types or kinds of numbers differ.
    """
    if before.shape != other.shape or before.dtype != other.dtype:
        return float("inf")
    if before.size == 0:
        return 0.0
    if before.dtype.name not in UNIT_ROUNDOFF:
        return float(np.mean(before != other))
    if (kinds_of(widened(before)) != kinds_of(widened(other))).any():
        return float("inf")
    difference, magnitude = absolute_difference(before, other), magnitudes(before)
    ratios = []
    for axis in slice_axes(before.ndim):
        own = slice_maxima(magnitude, axis)
        ratios.append(relative_errors(slice_maxima(difference, axis), np.maximum(own, typical_scale(own))).max())
    return float(max(ratios))


def compare(  # noqa: PLR0913
    name: str,
    before: NDArray[np.generic],
    after: NDArray[np.generic],
    *,
    tolerance: float | None = None,
    accuracy: str | None = None,
    noise: Noise | None = None,
    usual: Scales | None = None,
) -> TensorComparison:
    """Compare one tensor before and after.

    Args:
        name: The tensor's name.
        before: The reference, any shape and type.
        after: What must equal it.
        tolerance: Largest relative error of a slice; by default `TOLERANCE` of `accuracy`.
        accuracy: The coarsest floating-point type on the way to the tensor; by default its own type.
        noise: The reference's measured noise (`measure_noise`).
        usual: Scales that the reference has on ordinary inputs, below which none is taken.

    Returns:
        The comparison; a difference of shape or type is a failure with a note, never an exception.
    """
    kind = before.dtype.name
    blank = TensorComparison(name, before.shape, kind, float("inf"), 0.0, 0.0)
    if before.dtype != after.dtype:
        return replace(blank, note=f"the type changed from {kind} to {after.dtype.name}")
    if before.shape != after.shape:
        return replace(blank, note=f"the shape changed from {before.shape} to {after.shape}")
    if before.size == 0:
        return replace(blank, error=0.0, compared=False, note="the tensor is empty: nothing was compared")
    if kind not in UNIT_ROUNDOFF:
        return _compare_exactly(blank, before, after)
    accuracy = accuracy or kind
    blank = replace(blank, tolerance=TOLERANCE[accuracy] if tolerance is None else tolerance)
    return _compare_floats(blank, before, after, u=UNIT_ROUNDOFF[accuracy], noise=noise, usual=usual)


def _compare_exactly(
    blank: TensorComparison, before: NDArray[np.generic], after: NDArray[np.generic]
) -> TensorComparison:
    """Integers, booleans and strings are equal or they are not."""
    differs = np.asarray(before != after)
    share = float(np.mean(differs))
    if share == 0.0:
        return replace(blank, error=0.0, passed=True)
    return replace(blank, error=share, index=where_largest(differs), note=f"{int(differs.sum())} elements differ")


def _compare_floats(  # noqa: PLR0913
    blank: TensorComparison,
    before: NDArray[np.generic],
    after: NDArray[np.generic],
    *,
    u: float,
    noise: Noise | None,
    usual: Scales | None,
) -> TensorComparison:
    """NaN and infinities stand at the same places; everything else is close, slice by slice."""
    wide_before, wide_after = widened(before), widened(after)
    kinds_differ = kinds_of(wide_before) != kinds_of(wide_after)
    if kinds_differ.any():
        place = where_largest(kinds_differ)
        note = f"{wide_after[place]} where the original has {wide_before[place]}"
        return replace(blank, index=place, note=note)
    difference, magnitude = absolute_difference(before, after), magnitudes(before)
    usual = usual if usual is not None and usual.shape == before.shape else None
    results = []
    for cut, axis in enumerate(slice_axes(before.ndim)):
        own = slice_maxima(magnitude, axis)
        own = own if usual is None else np.maximum(own, usual.slices[cut])
        moved = None if noise is None else noise.movements[cut]
        results.append(_worst_slice(blank, difference, own, axis, u=u, moved=moved))
    worst = max(results, key=lambda result: (result.failed, result.error))
    return replace(worst, ill_conditioned=any(result.ill_conditioned for result in results))


def _worst_slice(  # noqa: PLR0913
    blank: TensorComparison,
    difference: NDArray[np.floating],
    own: NDArray[np.float64],
    axis: int | None,
    *,
    u: float,
    moved: NDArray[np.float64] | None,
) -> TensorComparison:
    """The slice of `axis` with the largest error relative to its scale, of which `own` has one for each slice."""
    errors = slice_maxima(difference, axis)
    typical = typical_scale(own)
    moved = np.zeros_like(own) if moved is None else moved
    usual = float(np.median(moved[own > 0])) if typical > 0 else 0.0
    common = max(NOISE_ROUNDINGS * u * typical, usual)
    floor = np.minimum(np.maximum(moved, common) / blank.tolerance, typical) if blank.tolerance > 0 else 0.0 * own
    scales = np.maximum(own, floor)
    ratios = relative_errors(errors, scales)
    worst = int(np.argmax(ratios))
    granted, limit = _grant(blank.tolerance, NOISE_FACTOR * usual / typical if typical > 0 else 0.0)
    return replace(
        blank,
        error=float(ratios[worst]),
        scale=float(scales[worst]),
        tolerance=granted,
        axis=axis,
        index=where_in_slice(difference, axis, worst) if ratios[worst] > 0 else (),
        passed=bool(ratios[worst] <= granted),
        ill_conditioned=NOISE_FACTOR * usual > limit * typical,
        note="" if granted == blank.tolerance else f"rounding alone moves it by {usual / typical:.1e} of its scale",
    )


def _grant(tolerance: float, wanted: float) -> tuple[float, float]:
    """The tolerance raised to what the noise asks for, and the limit of that."""
    limit = max(tolerance, min(MOST_TOLERANCES * tolerance, MOST))
    return max(tolerance, min(wanted, limit)), limit
