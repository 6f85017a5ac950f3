"""The little that the folding rules may know about a model: operators as views, values as handles, uses as edges.

A front end translates each operator into one of the views below; `y = W*x + b` is `Linear`, whatever the framework
calls it. The rules see views and propose `Edit`s; the front end writes them back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np

from bnfold.affine import ChannelAffine, Float64Array
from bnfold.decision import Kept, Refusal
from bnfold.linear import LinearParams
from bnfold.views import View

#: A handle for a value (a tensor at run time); its name in the model.
Value: TypeAlias = str

#: A size: known, a symbol that stands for the same number wherever it occurs, or unknown.
Dim: TypeAlias = int | str | None
Shape: TypeAlias = tuple[Dim, ...]


@dataclass(frozen=True)
class Operator:
    """One operator of the model, as the rules see it.

    Attributes:
        index: Its place in topological order; also its identity.
        name: The node's name, for people.
        kind: The framework's operator type, for people.
        view: What it computes.
        inputs: The values that it reads, the data first, whatever its place in the framework; constants that belong
            to the view are not among them. Only Concat has affines on more than the first.
        outputs: The values that it computes; None for an output left out.
        input_shapes: The shape of each input; None where the rank is unknown.
        output_shapes: The shape of each output; None where the rank is unknown.
        dtype: The dtype of its first output; None where unknown.
    """

    index: int
    name: str
    kind: str
    view: View
    inputs: tuple[Value, ...]
    outputs: tuple[Value | None, ...]
    input_shapes: tuple[Shape | None, ...]
    output_shapes: tuple[Shape | None, ...]
    dtype: np.dtype[Any] | None


@dataclass(frozen=True)
class Use:
    """One edge: `operator` reads a value as `inputs[position]`. `Add(x, x)` uses x twice."""

    operator: Operator
    position: int


@dataclass(frozen=True, eq=False)
class PlacedAffine:
    """An affine together with the axes of the value that it lives on.

    Attributes:
        affine: One entry for each combination of indices of `axes`, row-major.
        axes: Ascending, not negative. Usually one; none for an affine that is the same everywhere; several while a
            Reshape has split the channel axis.
        sizes: The length of each of `axes`.
    """

    affine: ChannelAffine
    axes: tuple[int, ...]
    sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        if list(self.axes) != sorted(set(self.axes)) or len(self.axes) != len(self.sizes):
            raise ValueError(f"axes {self.axes} of sizes {self.sizes} must be ascending and have one size each")
        if self.affine.channels != int(np.prod(self.sizes, dtype=np.int64)):
            raise ValueError(f"{self.affine.channels} entries do not fill axes of sizes {self.sizes}")

    @classmethod
    def on_axis(cls, affine: ChannelAffine, axis: int) -> PlacedAffine:
        """`affine` on one axis."""
        return cls(affine, (axis,), (affine.channels,))

    def with_affine(self, affine: ChannelAffine) -> PlacedAffine:
        """Another affine at the same place."""
        return PlacedAffine(affine, self.axes, self.sizes)

    def spread(self, axis: int, size: int) -> ChannelAffine | None:
        """The affine on exactly `axis`; None if it lives elsewhere. One that is the same everywhere fits any axis."""
        if self.axes == ():
            return self.affine.repeat(size)
        return self.affine if self.axes == (axis,) and self.sizes == (size,) else None

    def arrays(self, rank: int) -> tuple[Float64Array, Float64Array]:
        """Scale and shift, shaped to broadcast against a value of `rank` axes."""
        shape = [1] * rank
        for axis, size in zip(self.axes, self.sizes, strict=True):
            shape[axis] = size
        return self.affine.scale.reshape(shape), self.affine.shift.reshape(shape)

    def equals(self, other: PlacedAffine) -> bool:
        """The same numbers at the same place."""
        return self.axes == other.axes and self.sizes == other.sizes and self.affine.equals(other.affine)


@dataclass(frozen=True, eq=False)
class AbsorbOutput:
    """A linear operator takes `affine` at its output."""

    operator: Operator
    affine: ChannelAffine


@dataclass(frozen=True, eq=False)
class AbsorbInput:
    """A linear operator takes `affine` at its data input."""

    operator: Operator
    affine: ChannelAffine


@dataclass(frozen=True, eq=False)
class SetConstant:
    """The constant operand of `operator` becomes `value` (float64, rounded once when it is written)."""

    operator: Operator
    value: Float64Array


@dataclass(frozen=True, eq=False)
class SetAffine:
    """A BatchNorm that stays computes `affine` from now on."""

    operator: Operator
    affine: ChannelAffine


@dataclass(frozen=True, eq=False)
class Bounds:
    """The bounds of a clamp, `low <= high`; infinite where there is none.

    Attributes:
        low: float64; of shape () where it is one number, else of as many axes as the value.
        high: Likewise.

    Raises:
        ValueError: A bound is NaN, or `low` is above `high`.
    """

    low: Float64Array
    high: Float64Array

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            object.__setattr__(self, name, _compact(np.asarray(getattr(self, name), np.float64)))
        if not (self.low <= self.high).all():
            raise ValueError("the low bound of a clamp must not be above the high one, nor either of them NaN")

    @property
    def varies(self) -> bool:
        """A bound differs from element to element."""
        return self.low.ndim > 0 or self.high.ndim > 0

    @property
    def sides(self) -> int:
        """How many of the two bounds there are."""
        return sum(bool(np.isfinite(side).any()) for side in (self.low, self.high))

    def equals(self, other: Bounds) -> bool:
        """The same numbers, up to the sign of zero."""
        return np.array_equal(self.low, other.low) and np.array_equal(self.high, other.high)


def _compact(array: Float64Array) -> Float64Array:
    """One number where all are equal; never a negative zero; read-only."""
    same = array.size > 0 and bool((array == array.flat[0]).all())
    compact = np.array(array.flat[0] if same else array, np.float64) + 0.0
    compact = np.asarray(compact)
    compact.setflags(write=False)
    return compact


@dataclass(frozen=True, eq=False)
class SetBounds:
    """A clamp has `bounds` from now on (float64, rounded once when they are written)."""

    operator: Operator
    bounds: Bounds


Edit: TypeAlias = AbsorbOutput | AbsorbInput | SetConstant | SetAffine | SetBounds


@dataclass(frozen=True, eq=False)
class Step:
    """What one operator answers: the affines wanted on its inputs (pull) or seen on its outputs (push), and edits."""

    placed: dict[int, PlacedAffine] = field(default_factory=dict)
    edits: tuple[Edit, ...] = ()


#: What a rule may answer: what it would do, several ways of which one is enough, or why it does nothing.
Answer: TypeAlias = Step | tuple[Step, ...] | Refusal


class Pending(Protocol):
    """The constants as the folds so far have left them; what a carrier may ask besides the operator itself."""

    def constant(self, operator: Operator) -> Float64Array:
        """The constant of an operator whose view is `ConstantOperand` or `Pad`, in float64."""

    def affine(self, operator: Operator) -> ChannelAffine:
        """What an operator whose view is `BatchNorm` computes."""

    def bounds(self, operator: Operator) -> Bounds:
        """The bounds of an operator whose view is `Clamp`."""

    @property
    def spends(self) -> bool:
        """Whether a cheap operator may become a dearer one; the engine weighs it against what vanishes."""


class FoldGraph(Protocol):
    """A model, read-only. Implemented by each front end."""

    @property
    def operators(self) -> Sequence[Operator]:
        """All operators, in topological order, each at its own `index`."""

    @property
    def unreachable(self) -> Sequence[Kept]:
        """BatchNorms that are not among `operators`: in subgraphs and functions."""

    def producer(self, value: Value) -> Operator | None:
        """The operator that computes `value`; None for an input of the model."""

    def uses(self, value: Value) -> Sequence[Use]:
        """Every edge from `value` to an operator."""

    def visible(self, value: Value) -> Refusal | None:
        """Why `value` cannot change its meaning although no operator objects: an output, or captured by a body."""

    def is_measured(self, value: Value) -> bool:
        """Whether anything reads the shape of `value`, which no affine changes; another operator in its place may."""

    def linear_params(self, operator: Operator) -> LinearParams:
        """The stored constants of an operator whose view is `Linear`."""

    def constant(self, operator: Operator) -> Float64Array:
        """The stored constant of an operator whose view is `ConstantOperand` or `Pad`."""

    def bounds(self, operator: Operator) -> Bounds:
        """The stored bounds of an operator whose view is `Clamp`."""
