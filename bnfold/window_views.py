"""Views of operators that pool, resample, pad and pick: what they do to the entries of a value's axes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Average:
    """A mean over windows or whole axes: AveragePool, GlobalAveragePool, ReduceMean.

    Attributes:
        axes: The axes that are averaged over.
        keeps_axes: Whether they stay, with another length.
        counts_padding: Whether zeros of the padding are averaged in.
    """

    axes: tuple[int, ...]
    keeps_axes: bool = True
    counts_padding: bool = False


@dataclass(frozen=True)
class Maximum:
    """A maximum over windows or whole axes: MaxPool, GlobalMaxPool, ReduceMax.

    Attributes:
        axes: The axes over which the maximum runs.
        keeps_axes: Whether they stay, with another length.
        window_in_padding: Whether a window may lie wholly in the padding, so that its maximum is -inf.
        indices_read: Whether the second output is read.
    """

    axes: tuple[int, ...]
    keeps_axes: bool = True
    window_in_padding: bool = False
    indices_read: bool = False


@dataclass(frozen=True)
class Total:
    """A sum over whole axes: ReduceSum.

    Attributes:
        axes: The axes that are summed over.
        keeps_axes: Whether they stay, with length 1.
        count: How many elements one sum has; None if that is not known.
    """

    axes: tuple[int, ...]
    keeps_axes: bool = True
    count: int | None = None


@dataclass(frozen=True)
class Resample:
    """Resize, Upsample: every output is a mean of inputs, whose weights add up to 1.

    Attributes:
        untouched: The axes that provably stay as they are.
        extrapolation: The number that stands in where the operator reads outside the input; None if it never does.
    """

    untouched: frozenset[int]
    extrapolation: float | None = None


@dataclass(frozen=True)
class Pad:
    """Padding; negative pads crop.

    Attributes:
        begins: How many entries come before each axis.
        ends: How many come after.
        value: The constant that is put there; None for reflect, edge and wrap.
        dtype: The dtype of the constant.
    """

    begins: tuple[int, ...]
    ends: tuple[int, ...]
    value: float | None
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Select:
    """Every output entry is one input entry: Slice, Gather, Split, SpaceToDepth.

    Attributes:
        picks: By axis: for each output, the input index of every output index.
        opaque: Axes on which entries are picked that are not known.
        sizes: By axis of `picks`: the length of the input.
    """

    picks: Mapping[int, tuple[tuple[int, ...], ...]]
    opaque: frozenset[int]
    sizes: Mapping[int, int]


@dataclass(frozen=True)
class Spread:
    """The entries of one axis are spread over others: input index c goes to output index `places[c]`: DepthToSpace.

    Attributes:
        axis: The axis.
        places: The output index of each input index.
    """

    axis: int
    places: tuple[int, ...]
