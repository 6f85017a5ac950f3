"""Operator views: what an operator computes, in the words of the rules and of no framework.

A new operator is one view here (or one that exists), one carrier, and one line in each front end's reader table.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.decision import Refusal, Subject
from bnfold.embedding import Geometry
from bnfold.linear import WeightLayout
from bnfold.quantised import Quantised
from bnfold.window_views import Average, Maximum, Pad, Resample, Select, Spread, Total

if TYPE_CHECKING:
    from bnfold.graph import Operator, PlacedAffine, Step


@dataclass(frozen=True)
class Linear:
    """`y = W*x + b` with constant W and b: Conv, ConvTranspose, Gemm, MatMul (with the Add behind it), nn.Linear.

    Attributes:
        layout: How the stored weight maps to the canonical form.
        input_axis: The channel axis of the data input.
        output_axis: The channel axis of the output.
        outputs: The number of output channels.
        inputs: The number of input channels.
        dtype: The dtype of the stored weight.
        shift_at_input: Why a shift cannot enter at the input (zero padding is seen, ...); None if it can.
        shift_adds_operator: Whether a shift needs a new Add, as for a MatMul without one.
        geometry: The window over the spatial axes; None where pads are not known, for no convolution, for quantised W.
        quantised: The constants, where W is quantised and is to stay so, which limits what they can absorb; else None.
    """

    layout: WeightLayout
    input_axis: int
    output_axis: int
    outputs: int
    inputs: int
    dtype: np.dtype[Any]
    shift_at_input: Refusal | None = None
    shift_adds_operator: bool = False
    geometry: Geometry | None = None
    quantised: Quantised | None = None


@dataclass(frozen=True, eq=False)
class BatchNorm:
    """An inference BatchNorm: `affine` on `axis`.

    Attributes:
        affine: scale and shift of each channel.
        axis: The channel axis.
        dtype: The dtype in which gamma and beta are stored.
        mean: The running mean, shape (channels,).
        deviation: sqrt(var + epsilon), shape (channels,).
        offset: The largest |mean| / sqrt(var + epsilon); how much cancels when the mean is subtracted.
        before: An estimate of the largest |x| that comes in: |mean| + 6 sqrt(var), the maximum over the channels.
        after: An estimate of the largest |y| that goes out: |beta| + 6 |gamma|, the maximum over the channels.
    """

    affine: ChannelAffine
    axis: int
    dtype: np.dtype[Any]
    mean: Float64Array
    deviation: Float64Array
    offset: float
    before: float
    after: float

    @classmethod
    def of_statistics(  # noqa: PLR0913, PLR0917  # the operator's own parameters
        cls,
        gamma: Float64Array,
        beta: Float64Array,
        mean: Float64Array,
        var: Float64Array,
        epsilon: float,
        dtype: np.dtype[Any],
    ) -> BatchNorm:
        """The BatchNorm on axis 1 with these parameters, each of shape (channels,), stored in `dtype`."""
        with np.errstate(all="ignore"):
            deviation = np.sqrt(var + epsilon)
            offset = float(np.abs(mean / deviation).max())
            before = float((np.abs(mean) + 6 * np.sqrt(var)).max())
        after = float((np.abs(beta) + 6 * np.abs(gamma)).max())
        affine = ChannelAffine.of_batchnorm(gamma, beta, mean, var, epsilon)
        return cls(affine, 1, dtype, mean, deviation, offset, before, after)

    def stored(self, affine: ChannelAffine) -> tuple[Float64Array, Float64Array]:
        """Gamma and beta with which the BatchNorm, its statistics unchanged, computes `affine`."""
        return affine.scale * self.deviation, affine.shift + affine.scale * self.mean


class Arithmetic(Enum):
    """What a constant operand c does to x."""

    ADD = "x + c"
    SUBTRACT = "x - c"
    SUBTRACT_FROM = "c - x"
    MULTIPLY = "x * c"
    DIVIDE = "x / c"


@dataclass(frozen=True)
class ConstantOperand:
    """Add, Sub, Mul or Div of a value and a constant that does not broadcast the value up.

    Attributes:
        arithmetic: Which of them, and on which side the constant stands.
        rank: The rank of the value.
        dtype: The dtype of the constant.
    """

    arithmetic: Arithmetic
    rank: int
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Same:
    """The output is the input: Identity, Dropout in inference, Cast to the same type."""


@dataclass(frozen=True)
class Cast:
    """A conversion between floating-point types.

    Attributes:
        source: The dtype that comes in.
        target: The dtype that goes out.
    """

    source: np.dtype[Any]
    target: np.dtype[Any]


@dataclass(frozen=True)
class Transpose:
    """Axis i of the output is axis `perm[i]` of the input."""

    perm: tuple[int, ...]


@dataclass(frozen=True)
class Reshape:
    """The same elements in row-major order under another shape: Reshape, Flatten, Squeeze, Unsqueeze."""


@dataclass(frozen=True)
class Concat:
    """The inputs, one after the other along `axis` (not negative)."""

    axis: int


@dataclass(frozen=True)
class Homogeneous:
    """An activation with `f(c*x) = c*f(x)` for c > 0: LeakyRelu, PRelu, Abs."""

    is_even: bool = False


@dataclass(frozen=True)
class Clamp:
    """`min(max(x, low), high)`: Clip, Max and Min with constants, and Relu, whose low bound is 0 and high one infinite.

    Attributes:
        rank: The rank of the value; None where it is not known.
        dtype: The dtype in which bounds are stored.
        may_vary: Whether bounds may differ from channel to channel (Max and Min broadcast since operator set 8).
        axes: The axes along which the stored bounds vary.
    """

    rank: int | None
    dtype: np.dtype[Any]
    may_vary: bool = True
    axes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sum:
    """Add or Sub of two variables.

    Attributes:
        sign: 1 for `x + z`, -1 for `x - z`.
    """

    sign: int = 1


@dataclass(frozen=True)
class Product:
    """Mul of two variables, or Div, whose denominator takes nothing.

    Attributes:
        factors: The inputs that are factors: both, or the numerator alone.
    """

    factors: tuple[int, ...] = (0, 1)


@dataclass(frozen=True)
class Negate:
    """`-x`."""


@dataclass(frozen=True)
class Barrier:
    """Nothing passes, for the reason given.

    Attributes:
        refusal: Why.
        is_batchnorm: Whether it is a BatchNorm, which then gets this reason as its decision.
        channels: The BatchNorm's channels, 0 if unknown.
    """

    refusal: Refusal
    is_batchnorm: bool = False
    channels: int = 0

    def subject(self, name: str, kind: str) -> Subject:
        """What the decision about a BatchNorm that is a barrier is about."""
        return Subject(name, kind, self.channels, True)


@dataclass(frozen=True)
class Carrier:
    """An operator of your own, with its two rules.

    Attributes:
        pull: Given the operator and the affine wanted on its output: the affines wanted on its inputs, or why not.
        push: Given the operator and the affine on its first input: the affines seen on its outputs, or why not.
    """

    pull: Callable[[Operator, PlacedAffine], Step | Refusal]
    push: Callable[[Operator, PlacedAffine], Step | Refusal]


View: TypeAlias = (
    Linear
    | BatchNorm
    | ConstantOperand
    | Same
    | Cast
    | Transpose
    | Reshape
    | Concat
    | Average
    | Maximum
    | Resample
    | Pad
    | Homogeneous
    | Clamp
    | Sum
    | Product
    | Total
    | Negate
    | Select
    | Spread
    | Barrier
    | Carrier
)
