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

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

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

    @property
    def failed(self) -> bool:
        """Compared and not within the tolerance. A tensor without elements neither passes nor fails."""
        return self.compared and not self.passed


@dataclass(frozen=True, eq=False)
class Noise:
    """Measured rounding noise: per axis of `slice_axes(rank)`, the largest movement within each slice."""

    movements: tuple[NDArray[np.float64], ...]


def slice_axes(rank: int) -> tuple[int | None, ...]:
    """The axes to cut: all but the batch; a tensor of rank 0 or 1 is one slice (None)."""
    return tuple(range(1, rank)) if rank > 1 else (None,)


def measure_noise(before: NDArray[np.generic], perturbed: NDArray[np.generic]) -> Noise | None:
    """The noise of `before`, from the same tensor after its input moved by a few roundings; None if incomparable."""
    if before.shape != perturbed.shape or before.dtype.name not in UNIT_ROUNDOFF or before.size == 0:
        return None
    moved = _difference(before, perturbed)
    return Noise(tuple(_slice_maxima(moved, axis) for axis in slice_axes(before.ndim)))


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
    if (_kinds(_wide(before)) != _kinds(_wide(other))).any():
        return float("inf")
    difference, magnitude = _difference(before, other), _magnitude(before)
    ratios = []
    for axis in slice_axes(before.ndim):
        own = _slice_maxima(magnitude, axis)
        ratios.append(_ratios(_slice_maxima(difference, axis), np.maximum(own, _typical(own))).max())
    return float(max(ratios))


def compare(  # noqa: PLR0913
    name: str,
    before: NDArray[np.generic],
    after: NDArray[np.generic],
    *,
    tolerance: float | None = None,
    accuracy: str | None = None,
    noise: Noise | None = None,
) -> TensorComparison:
    """Compare one tensor before and after.

    Args:
        name: The tensor's name.
        before: The reference, any shape and type.
        after: What must equal it.
        tolerance: Largest relative error of a slice; by default `TOLERANCE` of `accuracy`.
        accuracy: The coarsest floating-point type on the way to the tensor; by default its own type.
        noise: The reference's measured noise (`measure_noise`).

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
    return _compare_floats(blank, before, after, UNIT_ROUNDOFF[accuracy], noise)


def _compare_exactly(
    blank: TensorComparison, before: NDArray[np.generic], after: NDArray[np.generic]
) -> TensorComparison:
    """Integers, booleans and strings are equal or they are not."""
    differs = np.asarray(before != after)
    share = float(np.mean(differs))
    if share == 0.0:
        return replace(blank, error=0.0, passed=True)
    return replace(blank, error=share, index=_where_largest(differs), note=f"{int(differs.sum())} elements differ")


def _compare_floats(
    blank: TensorComparison, before: NDArray[np.generic], after: NDArray[np.generic], u: float, noise: Noise | None
) -> TensorComparison:
    """NaN and infinities stand at the same places; everything else is close, slice by slice."""
    wide_before, wide_after = _wide(before), _wide(after)
    kinds_differ = _kinds(wide_before) != _kinds(wide_after)
    if kinds_differ.any():
        place = _where_largest(kinds_differ)
        note = f"{wide_after[place]} where the original has {wide_before[place]}"
        return replace(blank, index=place, note=note)
    sizes = _difference(before, after), _magnitude(before)
    results = [
        _worst_slice(blank, sizes, axis, u, None if noise is None else noise.movements[place])
        for place, axis in enumerate(slice_axes(before.ndim))
    ]
    worst = max(results, key=lambda result: (result.failed, result.error))
    return replace(worst, ill_conditioned=any(result.ill_conditioned for result in results))


def _worst_slice(
    blank: TensorComparison,
    sizes: tuple[NDArray[np.floating], NDArray[np.floating]],
    axis: int | None,
    u: float,
    moved: NDArray[np.float64] | None,
) -> TensorComparison:
    """The slice of `axis` with the largest error relative to its scale; `sizes` are |difference| and |before|."""
    errors, own = _slice_maxima(sizes[0], axis), _slice_maxima(sizes[1], axis)
    typical = _typical(own)
    moved = np.zeros_like(own) if moved is None else moved
    usual = float(np.median(moved[own > 0])) if typical > 0 else 0.0
    common = max(NOISE_ROUNDINGS * u * typical, usual)
    floor = np.minimum(np.maximum(moved, common) / blank.tolerance, typical) if blank.tolerance > 0 else 0.0 * own
    scales = np.maximum(own, floor)
    ratios = _ratios(errors, scales)
    worst = int(np.argmax(ratios))
    granted, limit = _grant(blank.tolerance, NOISE_FACTOR * usual / typical if typical > 0 else 0.0)
    return replace(
        blank,
        error=float(ratios[worst]),
        scale=float(scales[worst]),
        tolerance=granted,
        axis=axis,
        index=_where_in_slice(sizes[0], axis, worst) if ratios[worst] > 0 else (),
        passed=bool(ratios[worst] <= granted),
        ill_conditioned=NOISE_FACTOR * usual > limit * typical,
        note="" if granted == blank.tolerance else f"rounding alone moves it by {usual / typical:.1e} of its scale",
    )


def _grant(tolerance: float, wanted: float) -> tuple[float, float]:
    """The tolerance raised to what the noise asks for, and the limit of that."""
    limit = max(tolerance, min(MOST_TOLERANCES * tolerance, MOST))
    return max(tolerance, min(wanted, limit)), limit


def _typical(own: NDArray[np.float64]) -> float:
    """The median scale of the slices that are not zero; 0 when all are."""
    return float(np.median(own[own > 0])) if (own > 0).any() else 0.0


def _ratios(errors: NDArray[np.float64], scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """Errors over scales. A slice of zeros in a tensor of zeros has no scale: any error there is infinitely large."""
    return np.divide(errors, scales, out=np.where(errors > 0, np.inf, 0.0), where=scales > 0)


def _slice_maxima(values: NDArray[np.floating], axis: int | None) -> NDArray[np.float64]:
    """The largest value of every slice of `axis`, shape (size of the axis,), or (1,) for the whole tensor."""
    others = tuple(other for other in range(values.ndim) if other != axis)
    largest = np.max(values, axis=None if axis is None else others)
    return np.atleast_1d(np.asarray(largest, dtype=np.float64))


def _where_in_slice(values: NDArray[np.floating], axis: int | None, index: int) -> tuple[int, ...]:
    """The place of the largest value of one slice, in the whole tensor."""
    if axis is None:
        return _where_largest(values)
    place = _where_largest(np.take(values, index, axis=axis))
    return (*place[:axis], index, *place[axis:])


def _where_largest(values: NDArray[np.generic]) -> tuple[int, ...]:
    return tuple(int(place) for place in np.unravel_index(int(np.argmax(values)), values.shape))


def _wide(values: NDArray[np.generic]) -> NDArray[np.floating]:
    """Half precisions widened to float32, so that a difference of two of them is exact."""
    return values.astype(np.float64 if values.dtype.name == "float64" else np.float32, copy=False)


def _difference(before: NDArray[np.generic], after: NDArray[np.generic]) -> NDArray[np.floating]:
    """`|after - before|` where both are finite, else 0: the kinds are judged apart. May overflow to infinity."""
    wide_before, wide_after = _wide(before), _wide(after)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(wide_after - wide_before)
    return np.where(np.isfinite(wide_before) & np.isfinite(wide_after), difference, 0)


def _magnitude(values: NDArray[np.generic]) -> NDArray[np.floating]:
    """`|values|` where finite, else 0."""
    wide = _wide(values)
    return np.where(np.isfinite(wide), np.abs(wide), 0)


def _kinds(values: NDArray[np.floating]) -> NDArray[np.int8]:
    """0 finite, 1 NaN, 2 plus infinity, 3 minus infinity."""
    kinds = np.isnan(values) * 1 + np.isposinf(values) * 2 + np.isneginf(values) * 3
    return np.asarray(kinds, dtype=np.int8)
