"""A linear operator's constants in one canonical form, and how it absorbs a channel affine.

At its output `s*(W*x + b) + t = (s*W)*x + (s*b + t)`; at its input `W*(s*x + t) + b = (W*s)*x + (b + sum_k W_k t)`.
Weights are seen as `(group, out/group, in/group, *kernel)`; two facts, `output_first` and `groups`, cover
Conv, ConvTranspose, Gemm, MatMul and nn.Linear.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.affine import ChannelAffine, Float64Array


@dataclass(frozen=True)
class WeightLayout:
    """How a stored weight maps to the canonical `(group, out/group, in/group, *kernel)`.

    Attributes:
        output_first: Whether the stored axis 0 is the output axis: Conv, `transB=1`, nn.Linear. ConvTranspose
            stores `(in, out/group, *kernel)`, MatMul and Gemm `(in, out)`.
        groups: The number of groups.
        batch_axes: Leading stored axes that are neither (a MatMul constant of rank above 2); they come last in the
            canonical form, as a kernel does.
    """

    output_first: bool
    groups: int = 1
    batch_axes: int = 0

    def canonical(self, stored: npt.ArrayLike) -> Float64Array:
        """The stored weight as float64 `(group, out/group, in/group, *kernel)`.

        Raises:
            ValueError: The first axis does not divide into the groups.
        """
        weight = _batch_last(np.asarray(stored, np.float64), self.batch_axes)
        if weight.ndim < 2 or weight.shape[0] % self.groups:
            raise ValueError(f"a weight of shape {weight.shape} does not divide into {self.groups} groups")
        grouped = weight.reshape(self.groups, weight.shape[0] // self.groups, *weight.shape[1:])
        return grouped if self.output_first else grouped.swapaxes(1, 2)

    def stored(self, canonical: Float64Array) -> Float64Array:
        """The inverse of `canonical`, in float64."""
        grouped = canonical if self.output_first else canonical.swapaxes(1, 2)
        weight = grouped.reshape(grouped.shape[0] * grouped.shape[1], *grouped.shape[2:])
        return np.ascontiguousarray(np.moveaxis(weight, (0, 1), (-2, -1)) if self.batch_axes else weight)


def _batch_last(weight: Float64Array, batch_axes: int) -> Float64Array:
    return np.moveaxis(weight, (-2, -1), (0, 1)) if batch_axes else weight


@dataclass(frozen=True, eq=False)
class LinearParams:
    """The constants of `y = W*x + b`, in float64; the bias is never absent.

    Attributes:
        weight: Shape (group, out/group, in/group, *kernel), read-only.
        bias: Shape (out,), or (out, *rest) where it also varies over other axes of the output (Gemm's C); read-only.

    Raises:
        ValueError: The bias does not have one entry (or row) per output channel.
    """

    weight: Float64Array
    bias: Float64Array

    def __post_init__(self) -> None:
        for name in ("weight", "bias"):
            view: npt.NDArray[Any] = np.asarray(getattr(self, name), np.float64).view()
            view.setflags(write=False)
            object.__setattr__(self, name, view)
        if self.weight.ndim < 3 or self.bias.ndim < 1 or self.bias.shape[0] != self.outputs:
            raise ValueError(f"weight {self.weight.shape} and bias {self.bias.shape} do not belong together")

    @property
    def outputs(self) -> int:
        """The number of output channels."""
        return int(self.weight.shape[0] * self.weight.shape[1])

    @property
    def inputs(self) -> int:
        """The number of input channels."""
        return int(self.weight.shape[0] * self.weight.shape[2])

    def absorb_output(self, affine: ChannelAffine) -> LinearParams:
        """The constants of `affine(W*x + b)`; `affine` has `outputs` channels. Exact for any geometry."""
        scale = affine.scale.reshape(self.weight.shape[0], self.weight.shape[1])
        weight = self.weight * _trailing(scale, self.weight.ndim)
        bias = self.bias * _trailing(affine.scale, self.bias.ndim) + _trailing(affine.shift, self.bias.ndim)
        return LinearParams(weight, bias)

    def absorb_input(self, affine: ChannelAffine) -> LinearParams:
        """The constants of `W*affine(x) + b`; `affine` has `inputs` channels.

        The shift is exact only where every output sees every tap: no zero padding. The caller proves that, and that
        no leading batch axis of a MatMul constant is in the kernel when there is a shift.
        """
        group, _, per_group = self.weight.shape[:3]
        scale = affine.scale.reshape(group, 1, per_group)
        taps = self.weight.sum(axis=tuple(range(3, self.weight.ndim)))
        through = np.einsum("goi,gi->go", taps, affine.shift.reshape(group, per_group)).reshape(-1)
        return LinearParams(
            self.weight * _trailing(scale, self.weight.ndim), self.bias + _trailing(through, self.bias.ndim)
        )

    def absolute(self) -> LinearParams:
        """`|W|` and `|b|`."""
        return LinearParams(np.abs(self.weight), np.abs(self.bias))

    def per_output(self) -> Float64Array:
        """The largest |weight| of each output channel; shape (outputs,)."""
        return np.asarray(np.abs(self.weight).max(axis=tuple(range(2, self.weight.ndim)), initial=0.0).reshape(-1))

    def per_input(self) -> Float64Array:
        """The largest |weight| of each input channel; shape (inputs,)."""
        axes = (1, *range(3, self.weight.ndim))
        return np.asarray(np.abs(self.weight).max(axis=axes, initial=0.0).reshape(-1))


def _trailing(values: Float64Array, ndim: int) -> Float64Array:
    """`values` with axes of length 1 appended, up to `ndim`."""
    return values.reshape(values.shape + (1,) * (ndim - values.ndim))
