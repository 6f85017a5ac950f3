"""What recalibration may know about a model: its BatchNorms, their levels, and the parts of the model between these.

The level of a BatchNorm is the number of BatchNorms on the longest way to it, so those of one level do not depend on
each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np

from bnfold.drift import Statistics
from bnfold.moments import ChannelMoments

#: What one batch carries on: arrays by name, or lists of arrays where the model has sequences.
State: TypeAlias = Mapping[str, Any]

#: One place where statistics are used: the BatchNorm, by its position in `Observable.sites`, and which of its calls.
Call: TypeAlias = tuple[int, int]


@dataclass(frozen=True, eq=False)
class Site:
    """The statistics of one BatchNorm, used by one operator or shared by several.

    Attributes:
        calls: The names of these operators.
        epsilon: What is added to the variance; the smallest, where the operators differ.
        old: The statistics as stored.
        dtypes: How mean and variance are stored.
    """

    calls: tuple[str, ...]
    epsilon: float
    old: Statistics
    dtypes: tuple[np.dtype[Any], np.dtype[Any]]

    @property
    def name(self) -> str:
        """The name of the first operator."""
        return self.calls[0]


class Segment(Protocol):
    """The part of a model between two levels, ready to run."""

    def reduce(
        self, state: State, statistics: Mapping[Call, Statistics]
    ) -> tuple[Mapping[Call, ChannelMoments], State]:
        """The moments of the inputs of this level's BatchNorms for one batch, and what later segments need of it.

        Args:
            state: What the segment before left of the batch; the batch itself for the first one.
            statistics: What the BatchNorms of the level before normalise by.
        """


class Observable(Protocol):
    """A model whose BatchNorms can be watched, level by level.

    Attributes:
        sites: The BatchNorms.
        levels: Positions in `sites`; a BatchNorm comes after all that lie before it in the model.
    """

    @property
    def sites(self) -> Sequence[Site]: ...  # noqa: D102
    @property
    def levels(self) -> Sequence[Sequence[int]]: ...  # noqa: D102

    def cut(self, level: int) -> Segment:
        """The segment that ends at the inputs of the BatchNorms of this level."""

    def carried(self, sizes: Mapping[str, tuple[int, ...]]) -> Sequence[Sequence[int | None]]:
        """Bytes of what is kept of one batch behind each level, value by value in the order of the segment's state.

        Args:
            sizes: The shapes of the batch, by input.

        Returns:
            None for a value whose size is not known beforehand.
        """
