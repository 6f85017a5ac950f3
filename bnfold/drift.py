"""What became of the statistics of one BatchNorm: `Recalibrated`, with how far they moved, or `Left` as they were.

Drift of a channel: `|mean' - mean| / sqrt(var + epsilon)`, in units of what the BatchNorm divided by until now.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

import numpy as np

from bnfold.affine import Float64Array


class Hindrance(Enum):
    """Why the statistics stayed as they were; the value is a full clause that a report can print."""

    #: Excluded by `keep` or not included by `only`.
    EXCLUDED_BY_CALLER = "the caller asked to keep it"
    #: Its input had no element in any batch.
    SAW_NO_SAMPLE = "no sample reached it"
    #: It shares its statistics with a BatchNorm behind it, so that no order of the work is right.
    SELF_DEPENDENT = "it shares its statistics with a BatchNorm that lies behind it"
    #: In a body of If, Loop or Scan.
    INSIDE_BODY = "it is in the body of an If, Loop or Scan"
    #: In a model-local function, which may be called from several places.
    INSIDE_FUNCTION = "it is in a model-local function"
    #: What it normalises does not depend on the model's input (standardised weights).
    NORMALISES_CONSTANT = "what it normalises does not depend on the data"
    #: Training mode, or parameters that are not constant or contradict each other; the detail says which.
    NOT_IN_INFERENCE_FORM = "it is no BatchNorm with one constant mean and variance for each channel"
    #: The dtype in which they are stored ends before the new statistics do.
    NOT_IN_RANGE = "the new statistics are beyond the range of the type in which they are stored"


@dataclass(frozen=True, eq=False)
class Statistics:
    """What an inference BatchNorm subtracts, and what it divides by the square root of.

    Attributes:
        mean: (C,), float64.
        variance: (C,), float64.
    """

    mean: Float64Array
    variance: Float64Array


@dataclass(frozen=True, eq=False)
class Recalibrated:
    """A BatchNorm with new statistics.

    Attributes:
        name: Its node; the first one, where several share the statistics.
        calls: All nodes that share them.
        epsilon: What is added to the variance.
        old: The statistics until now.
        new: The statistics from now on, as they are stored.
        samples: Values in each channel that they were computed from.
        dead: Channels that kept their old statistics, because the new variance + epsilon is below 1e-12.
    """

    name: str
    calls: tuple[str, ...]
    epsilon: float
    old: Statistics
    new: Statistics
    samples: int
    dead: tuple[int, ...] = ()

    @property
    def channels(self) -> int:
        """C."""
        return int(self.new.mean.size)

    @property
    def drift(self) -> Float64Array:
        """(C,): by how many old deviations the mean moved; infinite where the old variance was none."""
        with np.errstate(all="ignore"):
            moved = np.abs(self.new.mean - self.old.mean)
            units = moved / np.sqrt(self.old.variance + self.epsilon)
        return np.where(moved == 0, 0.0, np.nan_to_num(units, nan=np.inf, posinf=np.inf))

    @property
    def largest_drift(self) -> float:
        """The drift of the channel that moved most."""
        return float(self.drift.max())

    @property
    def rms_drift(self) -> float:
        """The root of the mean squared drift of the channels."""
        return float(np.sqrt(np.mean(self.drift**2)))

    @property
    def variance_ratio(self) -> Float64Array:
        """(C,): the new variance over the old one, epsilon added to both; infinite where the old one was none."""
        with np.errstate(all="ignore"):
            ratio = (self.new.variance + self.epsilon) / (self.old.variance + self.epsilon)
        return np.where(np.isnan(ratio) | (ratio < 0), np.inf, ratio)


@dataclass(frozen=True)
class Left:
    """A BatchNorm whose statistics stayed.

    Attributes:
        name: Its node.
        hindrance: Why.
        detail: What in particular; may be empty.
    """

    name: str
    hindrance: Hindrance
    detail: str = ""

    def __str__(self) -> str:
        return self.hindrance.value + (f" ({self.detail})" if self.detail else "")


Outcome: TypeAlias = "Recalibrated | Left"
