"""One recalibration, whatever the model: reads the data, says what will be kept of it, and runs the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

from bnfold.batches import Counted, Data, count_batches
from bnfold.data_sources import Source
from bnfold.drift import Left, Outcome, Recalibrated
from bnfold.errors import MachineError, ProviderError
from bnfold.footprint import Footprint, demand_room, footprint
from bnfold.frontier import Frontier
from bnfold.observation import Observable, State
from bnfold.processes import Link
from bnfold.recalibration import Settings
from bnfold.recalibration import recalibrate as run_engine

_SMALLER = "make the batches smaller with --batch-size, or give --memory less"


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be done, whatever the model.

    Attributes:
        settings: How statistics are computed.
        wanted: Which BatchNorms the caller asks for, by name.
        memory: Bytes of activations to hold in memory.
        tell: Told what is being done.
        link: To the other processes.
    """

    settings: Settings
    wanted: Callable[[str], bool]
    memory: int
    tell: Callable[[str], None]
    link: Link


@dataclass(frozen=True, eq=False)
class Observed:
    """What came of it.

    Attributes:
        outcomes: One for each site of the observable.
        samples: How many samples all processes read.
        batches: In how many batches.
        need: What was kept between two levels, as far as it was known before.
    """

    outcomes: list[Outcome]
    samples: int
    batches: int
    need: Footprint

    @property
    def moved(self) -> list[Recalibrated]:
        """The BatchNorms with new statistics."""
        return [outcome for outcome in self.outcomes if isinstance(outcome, Recalibrated)]

    @property
    def left(self) -> list[Left]:
        """Those that the data left as they were."""
        return [outcome for outcome in self.outcomes if isinstance(outcome, Left)]


def observe(
    observable: Observable, data: Data, source: Source, work: Work, fed: Callable[[State], State] = lambda batch: batch
) -> Observed:
    """Compute the statistics of all sites.

    Args:
        observable: The model.
        data: What the caller gave.
        source: The same, opened.
        work: How.
        fed: A batch as the observable takes it.

    Raises:
        DataError: The batches do not fit, are none, too few, or lead to values that are not finite.
        MachineError: The model cannot be run here, or memory or disk do not suffice.
    """
    feed = Counted(source, work.link, fed)
    with Frontier(work.memory) as frontier, _explained():
        batches = iter(feed)
        first = next(batches, None) if observable.levels else None
        need = _needed(observable, first, count_batches(data, source, first, work.link), work.memory)
        demand_room(need)
        outcomes = run_engine(
            observable,
            batches if first is None else chain([first], batches),
            work.settings,
            frontier=frontier,
            tell=lambda clause: work.tell(f"{clause}; {need}" if need.batch else clause),
            share=work.link.share,
        )
    samples, count = work.link.total(feed.samples, feed.batches)
    return Observed(outcomes, samples, count, need)


def _needed(observable: Observable, first: State | None, batches: int | None, memory: int) -> Footprint:
    """What is kept between two levels, from the shapes of the first batch; all others are taken for as large."""
    shapes = {name: array.shape for name, array in (first or {}).items()}
    return footprint(observable.carried(shapes) if first else [], batches, memory)


@contextmanager
def _explained() -> Iterator[None]:
    """Say what helps here, where the runtime knows of its checks only."""
    try:
        yield
    except MemoryError as error:
        raise MachineError("the memory does not suffice", remedy=_SMALLER) from error
    except ProviderError as error:
        remedy = _SMALLER if "memory" in error.what else "recalibration runs the model, so take one that can be run"
        raise ProviderError(error.what, where=error.where, remedy=remedy) from error
