"""Quantised weights, and how they take a factor with their integers unchanged: `s*d*(q - z) = (s*d)*(q - z)`.

The step d of each cell (the tensor, a channel or a block) takes |s|. Where s < 0 the integers are mirrored at the zero
point, `q' = z' + z - q`; steps stay positive, because runtimes ask for that. Where s = 0, `q' = z'` and d stays.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bnfold.affine import Float64Array
from bnfold.decision import Reason, Refusal
from bnfold.linear import WeightLayout
from bnfold.rounding import integer_range, largest, round_once, smallest_normal


@dataclass(frozen=True, eq=False)
class QuantisedWeight:
    """`W = step*(code - zero_point)`; code is an integer, or a float8 or float4 number.

    Attributes:
        codes: As stored, in their own dtype.
        step: Positive, float64: shape () for the whole tensor; (n,) for one along `axis`; or, with `block`, as the
            codes, but for one entry to each `block` indices of `axis`.
        zero_point: int64, the shape of `step`.
        axis: The axis of the codes along which the steps differ.
        block: How many indices of `axis` share a step; 0 where it is all or one.
        dtype: The dtype in which the steps are stored.
        layout: How the weight, as the operator reads it, maps to the canonical form.
        order: Where the operator reads the codes moved: the flat index of the code of each weight; else None.
        may_split: Whether one step may become one for each channel (operator set 13 on).
    """

    codes: npt.NDArray[Any]
    step: Float64Array
    zero_point: npt.NDArray[np.int64]
    axis: int
    block: int
    dtype: np.dtype[Any]
    layout: WeightLayout
    order: npt.NDArray[np.intp] | None = None
    may_split: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the weight as the operator reads it."""
        return self.codes.shape if self.order is None else self.order.shape

    def dequantised(self) -> Float64Array:
        """The weight as the operator reads it."""
        values = self.in_place()
        return values if self.order is None else values.reshape(-1)[self.order]

    def in_place(self) -> Float64Array:
        """The weight in the order and the shape of the codes."""
        return np.asarray((self.codes.astype(np.float64) - self._spread(self.zero_point)) * self._spread(self.step))

    def scaled(self, outputs: Float64Array, inputs: Float64Array, where: str) -> QuantisedWeight | Refusal:
        """The weight times `outputs` (one factor for each output channel) and `inputs`; each step is rounded once."""
        factor = self._placed(outputs, inputs)
        cells = self if self._is_even(factor) else self._split(factor, outputs, inputs)
        if cells is None:
            return Refusal(Reason.QUANTISATION_IS_TOO_COARSE, where, self._cells_in_words())
        step = cells._stepped(factor, where)
        mirrored = cells._mirrored(factor)
        if mirrored is None:
            return Refusal(
                Reason.SIGN_DOES_NOT_FIT_INTEGERS, where, f"{self.codes.dtype.name}, {_few(self.zero_point)}"
            )
        if isinstance(step, Refusal):
            return step
        return replace(cells, step=step, codes=mirrored[0], zero_point=mirrored[1])

    def step_of_outputs(self, outputs: int, inputs: int) -> Float64Array | None:
        """The one step of each output channel, shape (outputs,); None where a channel has several."""
        if self.step.ndim == 0:
            return np.broadcast_to(self.step, (outputs,))
        index = None if self.block else self._index_of_outputs(self.axis, outputs, inputs)
        return None if index is None else self.step[index]

    def _cells_in_words(self) -> str:
        if self.block:
            return f"one scale for each {self.block} indices of axis {self.axis}"
        return f"one scale for each index of axis {self.axis}" if self.step.ndim else "one scale for the whole weight"

    def _spread(self, cells: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """One entry for each cell, so that it broadcasts against the codes."""
        if cells.ndim == 0:
            return cells
        if self.block:
            return np.repeat(cells, self.block, axis=self.axis).take(range(self.codes.shape[self.axis]), axis=self.axis)
        return cells.reshape([-1 if axis == self.axis else 1 for axis in range(self.codes.ndim)])

    def _over_cells(self, ufunc: np.ufunc, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """`values`, which broadcast against the codes, reduced to the shape of `step`."""
        if self.step.ndim == 0:
            return np.asarray(ufunc.reduce(values, axis=None))
        if self.block:
            whole = np.broadcast_to(values, self.codes.shape)
            return np.asarray(ufunc.reduceat(whole, range(0, whole.shape[self.axis], self.block), axis=self.axis))
        others = tuple(axis for axis in range(values.ndim) if axis != self.axis)
        return np.asarray(np.broadcast_to(ufunc.reduce(values, axis=others), self.step.shape))

    def _placed(self, outputs: npt.NDArray[Any], inputs: npt.NDArray[Any]) -> Float64Array:
        """The product for each weight, so that it broadcasts against the codes."""
        groups = self.layout.groups
        ends = (1,) * (len(self.shape) - 2)
        pairs = outputs.reshape(groups, -1, 1, *ends) * inputs.reshape(groups, 1, -1, *ends)
        stored = self.layout.stored(pairs)
        if self.order is None:
            return stored
        moved = np.empty(self.codes.size)
        moved[self.order] = np.broadcast_to(stored, self.shape)
        return moved.reshape(self.codes.shape)

    def _is_even(self, factor: Float64Array) -> bool:
        """Whether the factors of each cell are of one size; those that are zero need none."""
        size = np.abs(factor)
        smallest = self._over_cells(np.minimum, np.where(size > 0, size, np.inf))
        return bool((smallest >= self._over_cells(np.maximum, size)).all())

    def _split(self, factor: Float64Array, outputs: Float64Array, inputs: Float64Array) -> QuantisedWeight | None:
        """One step for each output channel instead of one for all, where that is enough."""
        if self.step.ndim or not self.may_split:
            return None
        for axis, size in enumerate(self.codes.shape):
            step, zero_point = np.broadcast_to(self.step, (size,)), np.broadcast_to(self.zero_point, (size,))
            finer = replace(self, step=step, zero_point=zero_point, axis=axis)
            if finer._is_even(factor) and finer.step_of_outputs(outputs.size, inputs.size) is not None:
                return finer
        return None

    def _index_of_outputs(self, axis: int, outputs: int, inputs: int) -> npt.NDArray[np.intp] | None:
        """For each output channel its index on `axis`; None where it has several."""
        channel = self._placed(np.arange(outputs), np.ones(inputs)).astype(np.intp)
        size = self.codes.shape[axis]
        if channel.shape[axis] != size:
            return None
        index = np.arange(size).reshape([-1 if a == axis else 1 for a in range(channel.ndim)])
        first, last = np.full(outputs, size), np.full(outputs, -1)
        np.minimum.at(first, channel, np.broadcast_to(index, channel.shape))
        np.maximum.at(last, channel, np.broadcast_to(index, channel.shape))
        return first if (first == last).all() else None

    def _stepped(self, factor: Float64Array, where: str) -> Float64Array | Refusal:
        """The steps times the size of the factors, rounded once; as they are where all factors are zero."""
        size = self._over_cells(np.maximum, np.abs(factor))
        moved = (size > 0) & (size != 1)
        step = np.where(moved, round_once(self.step * size, self.dtype).astype(np.float64), self.step)
        if not (step <= largest(self.dtype)).all():
            return Refusal(Reason.OVERFLOWS_DTYPE, where, f"a scale of {step.max():.3g} in {self.dtype.name}")
        if (moved & (step < smallest_normal(self.dtype))).any():
            return Refusal(Reason.UNDERFLOWS_DTYPE, where, f"a scale of {step[moved].min():.3g} in {self.dtype.name}")
        return step

    def _mirrored(self, factor: Float64Array) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]] | None:
        """Codes and zero points with the signs of the factors; None where they do not fit the dtype.

        A zero point moves only where it must, to the nearest one that will do. If all are equal, they stay equal.
        """
        if (factor > 0).all():
            return self.codes, self.zero_point
        signs, limits = np.sign(factor), integer_range(self.codes.dtype)
        if limits is None:  # as many numbers above zero as below, and + 0.0 leaves no negative zero
            return (signs * self.codes.astype(np.float64) + 0.0).astype(self.codes.dtype), self.zero_point
        offsets = signs.astype(np.int64) * (self.codes.astype(np.int64) - self._spread(self.zero_point))
        lowest = limits[0] - np.minimum(self._over_cells(np.minimum, offsets), 0)
        highest = limits[1] - np.maximum(self._over_cells(np.maximum, offsets), 0)
        if (self.zero_point == self.zero_point.flat[0]).all():
            lowest, highest = (np.broadcast_to(a, self.step.shape) for a in (lowest.max(), highest.min()))
        zero_point = np.clip(self.zero_point, lowest, highest)
        # ONNX gives 32-bit codes no zero point but 0.
        if (lowest > highest).any() or (self.codes.dtype.itemsize > 2 and zero_point.any()):
            return None
        return (offsets + self._spread(zero_point)).astype(self.codes.dtype), zero_point


@dataclass(frozen=True, eq=False)
class QuantisedBias:
    """`b = step*code` with 32-bit codes; runtimes take the step to be that of the input times that of the weight.

    Attributes:
        codes: int32, shape (outputs,).
        step: Positive, float64, shape () or (outputs,).
        input_step: The step of the operator's data input; None where it is not known.
        dtype: The dtype in which the steps are stored.
    """

    codes: npt.NDArray[np.int32]
    step: Float64Array
    input_step: float | None
    dtype: np.dtype[Any]

    def dequantised(self) -> Float64Array:
        """The bias, shape (outputs,)."""
        return np.asarray(self.codes * self.step)

    def nearest(self, bias: Float64Array, weight: QuantisedWeight, inputs: int, where: str) -> QuantisedBias | Refusal:
        """`bias` on the grid that belongs to `weight`: off by at most half a step."""
        steps = weight.step_of_outputs(bias.size, inputs)
        if self.input_step is None or steps is None:
            what = "the weight's scale differs within a channel" if steps is None else "the input's scale is unknown"
            return Refusal(Reason.BIAS_STEP_NOT_KNOWN, where, what)
        step = round_once(self.input_step * (weight.step if weight.step.ndim == 0 else steps), self.dtype)
        exact = step.astype(np.float64)
        if (exact < smallest_normal(self.dtype)).any():
            return Refusal(Reason.UNDERFLOWS_DTYPE, where, f"a bias scale of {exact.min():.3g} in {self.dtype.name}")
        codes = np.rint(bias / exact)
        if not (np.abs(codes) <= np.iinfo(np.int32).max).all():
            return Refusal(Reason.QUANTISED_BIAS_OVERFLOWS, where, f"{np.abs(codes).max():.3g} steps")
        return replace(self, codes=codes.astype(np.int32), step=exact)


@dataclass(frozen=True, eq=False)
class Quantised:
    """The constants of a linear operator whose weight is quantised.

    Attributes:
        weight: The weight.
        bias: The bias, where that is quantised as well; else None.
    """

    weight: QuantisedWeight
    bias: QuantisedBias | None = None

    def scaled(
        self, outputs: Float64Array, inputs: Float64Array, bias: Float64Array, where: str
    ) -> Quantised | Refusal:
        """With the weight times `outputs` and `inputs`, and the bias as near to `bias` as its grid allows."""
        weight = self.weight.scaled(outputs, inputs, where)
        if isinstance(weight, Refusal) or self.bias is None:
            return weight if isinstance(weight, Refusal) else Quantised(weight)
        nearest = self.bias.nearest(bias, weight, inputs.size, where)
        return nearest if isinstance(nearest, Refusal) else Quantised(weight, nearest)


def _few(zero_point: npt.NDArray[np.int64]) -> str:
    """The zero points, for people."""
    first, same = zero_point.flat[0], bool((zero_point == zero_point.flat[0]).all())
    return f"zero point {first}" if same else "zero points that differ"
