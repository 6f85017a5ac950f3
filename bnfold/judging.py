"""Two results against the truth: `error(folded) <= 4*error(original) + 64*u*scale` in every channel.

The rule of the float64 oracle (`bnfold.oracle`), as arithmetic on arrays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bnfold.affine import Float64Array

#: The folded model may err this many times as much as the original.
ERROR_FACTOR = 4.0

#: To which this many roundings of the channel's scale are added.
ERROR_ROUNDINGS = 64.0


@dataclass(frozen=True)
class Errors:
    """How far two results are from the truth.

    Attributes:
        ratio: The largest error of the folded model in units of what the rule allows; at most 1 passes.
        original: The largest error of the original, relative to the tensor's scale.
        folded: The largest error of the folded model, likewise.
        believed: Whether the oracle and the original agree well enough to judge by.
    """

    ratio: float
    original: float
    folded: float
    believed: bool = True


def channel_scales(truth: Float64Array) -> Float64Array:
    """The largest magnitude in every channel (axis 1; one channel for fewer axes)."""
    axes = tuple(axis for axis in range(truth.ndim) if axis != 1)
    return np.asarray(np.abs(truth).max(axis=axes, initial=0.0), dtype=np.float64)


def channel_errors(truth: Float64Array, values: NDArray[Any]) -> Float64Array:
    """The largest error in every channel of `values`, which have the shape of `truth`."""
    with np.errstate(all="ignore"):
        return channel_scales(values - truth)


def judge(  # noqa: PLR0913
    scale: Float64Array,
    was: Float64Array,
    now: Float64Array,
    roundoff: float,
    usual: Float64Array | None = None,
    *,
    roundings: float = ERROR_ROUNDINGS,
) -> Errors:
    """Both errors of one tensor, channel by channel (`channel_errors`).

    A channel in which the original happened to be exact is granted the median channel's error. A tensor that is zero
    throughout has no scale of its own, because all that it was computed from cancelled: its scale counts as 1, which is
    the size of what a BatchNorm puts out.

    Args:
        scale: How large every channel is (`channel_scales`), in float64.
        was: The original's errors.
        now: The folded model's.
        roundoff: Unit round-off of the type that it is stored in.
        usual: Scales of the channels on ordinary inputs, below which none is taken: what cancels on a constant input
            has rounding errors of the size that it usually has.
        roundings: How many roundings of the scale are granted besides.
    """
    if usual is not None and usual.shape == scale.shape:
        scale = np.maximum(scale, usual)
    scale = scale if scale.any() else np.ones_like(scale)
    with np.errstate(all="ignore"):
        allowed = ERROR_FACTOR * np.maximum(was, np.median(was)) + roundings * roundoff * scale
        ratio = np.where(now == 0, 0.0, now / allowed)
        largest = [np.max(figures) for figures in (ratio, was / np.max(scale), now / np.max(scale))]
    worst, original_error, folded_error = np.nan_to_num(largest, nan=np.inf, posinf=np.inf)
    return Errors(float(worst), float(original_error), float(folded_error))


def worse(one: Errors, other: Errors) -> Errors:
    """Of two runs the one to report: not believed before believed, then by the rule, each error the larger one."""
    worst = max(one, other, key=lambda errors: (not errors.believed, errors.ratio))
    return Errors(worst.ratio, max(one.original, other.original), max(one.folded, other.folded), worst.believed)
