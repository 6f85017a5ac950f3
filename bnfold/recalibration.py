"""New statistics for every BatchNorm, from data: `mean, var = moments(input of the BatchNorm)`.

Three definitions of "the input":

* `sequential`: in eval mode, with every BatchNorm before it already recalibrated, over all data at once. The system of
  equations is triangular, so going through the levels in order solves it exactly; neither the size of the batches nor
  the old statistics play a part, and a second recalibration changes nothing.
* `batch`: every BatchNorm before it normalises by the statistics of the batch at hand, as in training; the values of
  all batches are pooled, what lies between the batches included ("precise BN").
* `ema`: as `batch`, but the moments of the batches go into the old statistics one after the other, as in training:
  `running = (1 - momentum) * running + momentum * batch`. PyTorch: momentum 0.1 and Bessel's variance; Keras, which
  writes `momentum * running + (1 - momentum) * batch`: its 0.99 is 0.01 here, with the population's variance.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from bnfold.drift import Hindrance, Left, Outcome, Recalibrated, Statistics
from bnfold.errors import DataError
from bnfold.frontier import Frontier
from bnfold.moments import ChannelMoments
from bnfold.observation import Call, Observable, Site, State
from bnfold.rounding import round_once

Method: TypeAlias = Literal["sequential", "batch", "ema"]

#: What one batch showed of the BatchNorms of a level.
Found: TypeAlias = Mapping[Call, ChannelMoments]

#: Outcomes of a level from what all its batches show, in their order.
Settle: TypeAlias = Callable[[Iterable[Found]], dict[int, Outcome]]

#: From fewer values in each channel (N*H*W) no statistics are computed unless forced.
FEWEST_SAMPLES = 32

#: A channel whose variance + epsilon is below this has no scale that means anything.
DEAD = 1e-12


@dataclass(frozen=True)
class Settings:
    """How statistics are computed.

    Attributes:
        method: What is upstream, and how batches are put together.
        momentum: Of `ema`: the weight of a new batch.
        bessel: Whether the variance is the unbiased estimate; normalisation divides by the population's.
        force: Whether fewer than 32 values in a channel will do.
    """

    method: Method = "sequential"
    momentum: float = 0.1
    bessel: bool = False
    force: bool = False

    @property
    def variance(self) -> str:
        """Which variance, by its name."""
        return "bessel" if self.bessel else "population"


def recalibrate(  # noqa: PLR0913
    observable: Observable,
    batches: Iterable[State],
    settings: Settings,
    *,
    frontier: Frontier,
    tell: Callable[[str], None] = lambda _clause: None,
    share: Callable[[Iterator[Found], Settle], dict[int, Outcome]] = lambda seen, settle: settle(seen),
) -> list[Outcome]:
    """One outcome for each site; the batches are asked for once.

    Args:
        observable: The model.
        batches: What is fed to it, or this process's share of that.
        settings: How statistics are computed.
        frontier: Holds the activations between two levels.
        tell: Told what is being done.
        share: Brings together what several processes saw of a level, and settles it once for all of them.

    Raises:
        DataError: There are no batches, too few values in a channel, or values that are not finite.
    """
    run = _Run(observable, settings, share)
    states: Iterator[State] = iter(batches)
    count = len(observable.levels)
    for level in range(count):
        tell(f"statistics of level {level + 1} of {count}" + (", kept on disk in part" if frontier.spilled else ""))
        run.observe(level, states, frontier)
        states = frontier.turn()
    return [run.outcomes[site] for site in range(len(observable.sites))]


class _Run:
    """A recalibration under way.

    Attributes:
        outcomes: What became of the sites so far.
    """

    def __init__(
        self,
        observable: Observable,
        settings: Settings,
        share: Callable[[Iterator[Found], Settle], dict[int, Outcome]],
    ) -> None:
        self._observable, self._settings, self._share = observable, settings, share
        self._is_eval = settings.method == "sequential"
        self.outcomes: dict[int, Outcome] = {}
        self._given: dict[Call, Statistics] = {}  # to the calls of the level before: settled,
        self._own: list[dict[Call, Statistics]] = []  # or of each batch

    def observe(self, level: int, states: Iterator[State], frontier: Frontier) -> None:
        """Take all batches through one segment, and settle the statistics at its end."""
        own: list[dict[Call, Statistics]] = []
        seen = self._passed(level, states, frontier, own)
        self.outcomes |= self._share(seen, lambda all_seen: self._outcomes(level, all_seen))
        self._given, self._own = dict(self._settled(level)), own

    def _passed(
        self, level: int, states: Iterator[State], frontier: Frontier, own: list[dict[Call, Statistics]]
    ) -> Iterator[Found]:
        """What each batch shows at the end of a segment."""
        segment, last = self._observable.cut(level), level + 1 == len(self._observable.levels)
        for batch, state in enumerate(states):
            given = self._given if self._is_eval or not level else self._own[batch]
            found, rest = segment.reduce(state, given)
            if not self._is_eval:
                own.append({call: self._alone(call, moments) for call, moments in found.items()})
            if not last:
                frontier.put(rest)
            yield found

    def _outcomes(self, level: int, seen: Iterable[Found]) -> dict[int, Outcome]:
        estimates = {site: _Estimate(self._observable.sites[site], self._settings) for site in self._sites(level)}
        batches = 0
        for found in seen:
            batches += 1
            for (site, _), moments in sorted(found.items(), key=lambda entry: entry[0]):
                estimates[site].add(moments)
        if not batches:
            raise DataError("there are no batches", remedy="give at least one")
        return {site: estimate.settled() for site, estimate in estimates.items()}

    def _sites(self, level: int) -> Sequence[int]:
        return self._observable.levels[level]

    def _alone(self, call: Call, moments: ChannelMoments) -> Statistics:
        """What training normalises by."""
        old = self._observable.sites[call[0]].old
        return Statistics(moments.mean, moments.variance()) if moments.count else old

    def _settled(self, level: int) -> Iterator[tuple[Call, Statistics]]:
        for position in self._sites(level):
            site, outcome = self._observable.sites[position], self.outcomes[position]
            now = outcome.new if isinstance(outcome, Recalibrated) else site.old
            yield from (((position, call), now) for call in range(len(site.calls)))


class _Estimate:
    """The statistics of one site, growing batch by batch."""

    def __init__(self, site: Site, settings: Settings) -> None:
        self._site, self._settings = site, settings
        self._pool = ChannelMoments.none(site.old.mean.size)
        self._running = site.old

    def add(self, moments: ChannelMoments) -> None:
        """What one call saw of one batch."""
        if not moments.is_finite:
            raise DataError(
                "values that are not finite reach this BatchNorm",
                where=self._site.name,
                remedy="look for inf or NaN in the data, or exclude it with --keep",
            )
        self._pool = self._pool + moments
        if self._settings.method == "ema" and moments.count:
            new, share = self._of(moments), self._settings.momentum
            mean, variance = (
                (1 - share) * was + share * now
                for was, now in ((self._running.mean, new.mean), (self._running.variance, new.variance))
            )
            self._running = Statistics(mean, variance)

    def settled(self) -> Outcome:
        """The new statistics, each number rounded once to how it is stored."""
        site, count = self._site, self._pool.count
        if not count:
            return Left(site.name, Hindrance.SAW_NO_SAMPLE)
        if count < FEWEST_SAMPLES and not self._settings.force:
            raise DataError(
                f"only {count} values in each channel reach this BatchNorm, which are too few for statistics",
                where=site.name,
                remedy=f"give more data ({FEWEST_SAMPLES} values at least), or --force",
            )
        exact = self._running if self._settings.method == "ema" else self._of(self._pool)
        dead = exact.variance + site.epsilon < DEAD
        mean, variance = (
            np.where(dead, was, round_once(now, dtype).astype(np.float64))
            for was, now, dtype in (
                (site.old.mean, exact.mean, site.dtypes[0]),
                (site.old.variance, exact.variance, site.dtypes[1]),
            )
        )
        if not (np.isfinite(mean[~dead]).all() and np.isfinite(variance[~dead]).all()):
            return Left(site.name, Hindrance.NOT_IN_RANGE, " and ".join(str(dtype) for dtype in set(site.dtypes)))
        channels = tuple(int(channel) for channel in np.flatnonzero(dead))
        new = Statistics(mean, variance)
        return Recalibrated(site.name, site.calls, site.epsilon, site.old, new, count, channels)

    def _of(self, moments: ChannelMoments) -> Statistics:
        bessel = self._settings.bessel
        if bessel and moments.count < 2:
            raise DataError(
                "one value in each channel has no unbiased variance",
                where=self._site.name,
                remedy="give larger batches",
            )
        return Statistics(moments.mean, moments.variance(bessel=bessel))
