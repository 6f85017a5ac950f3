"""Kernels in a common frame: `sum_i W_i*x = (sum_i E_i W_i)*x`, E_i shifts kernel i to its place among the padding.

Tap j of a kernel with begin pads p stands at `(P - p)/dilation + j` in a frame with begin pads P. Exact for equal
strides, equal dilations (a single tap has any) and zero padding (RepVGG, arXiv:2101.03697, section 3.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.linear import LinearParams


@dataclass(frozen=True)
class Geometry:
    """The window of a convolution with zero padding; one entry per spatial axis, none for a matrix product.

    Attributes:
        kernel: Kernel sizes.
        strides: Strides.
        dilations: Dilations.
        begins: Zeros before the first entry.
        ends: Zeros after the last entry.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begins: tuple[int, ...]
    ends: tuple[int, ...]

    @classmethod
    def point(cls, strides: tuple[int, ...]) -> Geometry:
        """One tap, no padding."""
        one, zero = (1,) * len(strides), (0,) * len(strides)
        return cls(one, strides, one, zero, zero)

    @property
    def is_padded(self) -> bool:
        """Whether any zeros are seen."""
        return any(self.begins) or any(self.ends)

    @property
    def taps(self) -> int:
        """The number of taps."""
        return int(np.prod(self.kernel, dtype=np.int64))


@dataclass(frozen=True, eq=False)
class Branch:
    """A linear map of a value: `W*x + b` under a window.

    Attributes:
        params: Its constants; the weight's kernel is that of `geometry`.
        geometry: Its window.
    """

    params: LinearParams
    geometry: Geometry

    @classmethod
    def of_affine(cls, affine: ChannelAffine, groups: int, rank: int) -> Branch:
        """`scale*x + shift` of each channel, as a kernel of one tap that is diagonal within each of `groups`."""
        size = affine.channels // groups
        diagonal = affine.scale.reshape(groups, size, 1) * np.eye(size)
        geometry = Geometry.point((1,) * rank)
        return cls(LinearParams(diagonal.reshape(groups, size, size, *geometry.kernel), affine.shift), geometry)

    @property
    def cost(self) -> int:
        """Products per output position."""
        return int(self.params.weight.size)


def frame_of(geometries: Sequence[Geometry]) -> Geometry | None:
    """The smallest window that holds all of `geometries` at their places; None if there is none.

    They must have one stride, one dilation where they have more than one tap, and the same output size.
    """
    if len({g.strides for g in geometries}) != 1:
        return None
    axes = [_axis(sizes) for sizes in zip(*([*zip(*_fields(g), strict=True)] for g in geometries), strict=True)]
    known = [axis for axis in axes if axis is not None]
    if len(known) < len(axes):
        return None
    kernel, dilations, begins, ends = zip(*known, strict=True) if known else ((),) * 4
    return Geometry(kernel, geometries[0].strides, dilations, begins, ends)


def _fields(geometry: Geometry) -> tuple[tuple[int, ...], ...]:
    return geometry.kernel, geometry.dilations, geometry.begins, geometry.ends


def _axis(sizes: Sequence[tuple[int, ...]]) -> tuple[int, int, int, int] | None:
    """Kernel, dilation and pads of the frame on one axis, from those of each branch."""
    dilations = {dilation for kernel, dilation, _, _ in sizes if kernel > 1}
    dilation = dilations.pop() if dilations else 1
    begin, end = max(b for _, _, b, _ in sizes), max(e for _, _, _, e in sizes)
    spans = {dilation * (kernel - 1) - b - e for kernel, _, b, e in sizes}
    span = spans.pop() + begin + end
    places = [begin - b for _, _, b, _ in sizes]
    if dilations or spans or span % dilation or any(place % dilation for place in places):
        return None
    return span // dilation + 1, dilation, begin, end


def embedded(branch: Branch, frame: Geometry, groups: int) -> LinearParams:
    """The constants of `branch` with the kernel of `frame`, in `groups` groups, a divisor of its own."""
    weight = in_groups(branch.params.weight, groups)
    wide = np.zeros((*weight.shape[:3], *frame.kernel))
    places = zip(frame.begins, branch.geometry.begins, frame.dilations, branch.geometry.kernel, strict=True)
    at: list[Any] = [slice((P - p) // d, (P - p) // d + k) for P, p, d, k in places]  # as in the formula
    wide[(slice(None),) * 3 + tuple(at)] = weight
    return LinearParams(wide, branch.params.bias)


def in_groups(weight: Float64Array, groups: int) -> Float64Array:
    """A canonical weight in fewer groups: block-diagonal within each."""
    have, outputs, inputs = weight.shape[:3]
    times = have // groups
    wide = np.zeros((groups, times, outputs, times, inputs, *weight.shape[3:]))
    diagonal = np.arange(times)
    wide[:, diagonal, :, diagonal] = np.moveaxis(weight.reshape(groups, times, *weight.shape[1:]), 1, 0)
    return wide.reshape(groups, times * outputs, times * inputs, *weight.shape[3:])


def merged(branches: Sequence[tuple[int, Branch]], frame: Geometry, groups: int) -> LinearParams:
    """The constants of the signed sum of `branches`."""
    parts = [(sign, embedded(branch, frame, groups)) for sign, branch in branches]
    weight = sum((sign * part.weight for sign, part in parts), np.zeros(()))
    bias = sum((sign * part.bias for sign, part in parts), np.zeros(()))
    return LinearParams(np.asarray(weight), np.asarray(bias))
