"""An array cut into slices along one axis, and how large the numbers of each slice are.

A slice is one index of one axis; every axis but the batch (0) is cut in turn (`bnfold.comparison` says why).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def slice_axes(rank: int) -> tuple[int | None, ...]:
    """The axes to cut: all but the batch; a tensor of rank 0 or 1 is one slice (None)."""
    return tuple(range(1, rank)) if rank > 1 else (None,)


def typical_scale(own: NDArray[np.float64]) -> float:
    """The median scale of the slices that are not zero; 0 when all are."""
    return float(np.median(own[own > 0])) if (own > 0).any() else 0.0


def relative_errors(errors: NDArray[np.float64], scales: NDArray[np.float64]) -> NDArray[np.float64]:
    """Errors over scales. A slice of zeros in a tensor of zeros has no scale: any error there is infinitely large."""
    return np.divide(errors, scales, out=np.where(errors > 0, np.inf, 0.0), where=scales > 0)


def slice_maxima(values: NDArray[np.floating], axis: int | None) -> NDArray[np.float64]:
    """The largest value of every slice of `axis`, shape (size of the axis,), or (1,) for the whole tensor."""
    others = tuple(other for other in range(values.ndim) if other != axis)
    largest = np.max(values, axis=others)
    return np.atleast_1d(np.asarray(largest, dtype=np.float64))


def where_in_slice(values: NDArray[np.floating], axis: int | None, index: int) -> tuple[int, ...]:
    """The place of the largest value of one slice, in the whole tensor."""
    if axis is None:
        return where_largest(values)
    place = where_largest(np.take(values, index, axis=axis))
    return (*place[:axis], index, *place[axis:])


def where_largest(values: NDArray[np.generic]) -> tuple[int, ...]:
    """The place of the largest value, the first of equal ones."""
    return tuple(int(place) for place in np.unravel_index(int(np.argmax(values)), values.shape))


def widened(values: NDArray[np.generic]) -> NDArray[np.floating]:
    """Half precisions widened to float32, so that a difference of two of them is exact."""
    return values.astype(np.float64 if values.dtype.name == "float64" else np.float32, copy=False)


def absolute_difference(before: NDArray[np.generic], after: NDArray[np.generic]) -> NDArray[np.floating]:
    """`|after - before|` where both are finite, else 0: the kinds are judged apart. May overflow to infinity."""
    wide_before, wide_after = widened(before), widened(after)
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.abs(wide_after - wide_before)
    return np.where(np.isfinite(wide_before) & np.isfinite(wide_after), difference, 0)


def magnitudes(values: NDArray[np.generic]) -> NDArray[np.floating]:
    """`|values|` where finite, else 0."""
    wide = widened(values)
    return np.where(np.isfinite(wide), np.abs(wide), 0)


def kinds_of(values: NDArray[np.floating]) -> NDArray[np.int8]:
    """0 finite, 1 NaN, 2 plus infinity, 3 minus infinity."""
    kinds = np.isnan(values) * 1 + np.isposinf(values) * 2 + np.isneginf(values) * 3
    return np.asarray(kinds, dtype=np.int8)
