"""Times two functions against each other, in turns: `ratio = median over the rounds of (second / first)`.

What disturbs a machine (other work, its clock, its heat) changes slowly, so it meets both halves of a round alike and
leaves their ratio alone. Each half repeats its function until it takes 2 ms at least, and the halves change places from
round to round.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

#: A half of a round takes this long at least, in seconds, so that the clock's own steps do not count.
SHORTEST = 2e-3

#: Runs before anything is measured: memory is allocated and algorithms are chosen in them.
WARM = 3


@dataclass(frozen=True)
class Timing:
    """Figures over the rounds.

    Attributes:
        median: The middle one.
        low: The lower quartile.
        high: The upper quartile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, figures: list[float]) -> Timing:
        """The quartiles of `figures`."""
        low, median, high = (float(q) for q in np.quantile(figures, (0.25, 0.5, 0.75)))
        return cls(median, low, high)


@dataclass(frozen=True)
class Duel:
    """Two functions against each other.

    Attributes:
        first: Seconds of the first one.
        second: Seconds of the second one.
        ratio: Second over first, round by round.
    """

    first: Timing
    second: Timing
    ratio: Timing


def duel(
    first: Callable[[], object],
    second: Callable[[], object],
    rounds: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Duel:
    """Time both functions in `rounds` rounds.

    Args:
        first: Does its work once.
        second: Likewise.
        rounds: At least 1.
        clock: Seconds since some moment; a test puts another one here.
    """
    functions = (first, second)
    repeats = [_warm_up(function, clock) for function in functions]
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        for place in (0, 1) if number % 2 == 0 else (1, 0):
            seconds[place].append(_time(functions[place], repeats[place], clock))
    ratios = [after / before for before, after in zip(*seconds, strict=True)]
    return Duel(Timing.of(seconds[0]), Timing.of(seconds[1]), Timing.of(ratios))


def _warm_up(function: Callable[[], object], clock: Callable[[], float]) -> int:
    """Run it until it is warm; how often to repeat it in one half of a round."""
    last = math.inf
    for _ in range(WARM):
        last = _time(function, 1, clock)
    return max(1, math.ceil(SHORTEST / max(last, 1e-9)))


def _time(function: Callable[[], object], repeats: int, clock: Callable[[], float]) -> float:
    """Seconds of one call."""
    start = clock()
    for _ in range(repeats):
        function()
    return (clock() - start) / repeats
