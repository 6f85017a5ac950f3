"""Several processes that recalibrate one model together: rank r of n reads the batches r, r + n, r + 2n, ...

What each saw is gathered with the number of the batch, merged in the order of the batches on rank 0, and broadcast. So
all ranks have the same bits, those of one process that reads everything. An error in one of them is the error of all.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

from bnfold.drift import Outcome
from bnfold.errors import BnfoldError, InternalError, MachineError, UsageError
from bnfold.recalibration import Found, Settle

#: Seconds to wait for the others; a level of a large data set may take one process that much longer than another.
DEFAULT_TIMEOUT = 1800.0


@dataclass(frozen=True)
class Processes:
    """That this process is one of several: all those of torch.distributed, which is initialised, make the same call.

    Attributes:
        timeout: Seconds to wait for the others each time.
    """

    timeout: float = DEFAULT_TIMEOUT

    def __post_init__(self) -> None:
        if self.timeout <= 0:
            raise UsageError(f"the timeout is {self.timeout:g} seconds", where="processes", remedy="give more than 0")


class Link(Protocol):
    """This process among all.

    Attributes:
        rank: Which one it is.
        size: How many there are.
    """

    @property
    def rank(self) -> int: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102

    def share(self, seen: Iterator[Found], settle: Settle) -> dict[int, Outcome]:
        """What `settle` makes of what all processes saw, in the order of the batches."""

    def total(self, *numbers: int) -> tuple[int, ...]:
        """The sums over all processes."""

    def demand_same(self, work: object) -> None:
        """Raise a UsageError unless `work` is equal in all processes."""


@dataclass(frozen=True)
class Alone:
    """The only process."""

    rank: int = 0
    size: int = 1

    def share(self, seen: Iterator[Found], settle: Settle) -> dict[int, Outcome]:
        """As `Link`; each batch is let go at once."""
        return settle(seen)

    def total(self, *numbers: int) -> tuple[int, ...]:
        """As `Link`."""
        return numbers

    def demand_same(self, work: object) -> None:
        """As `Link`."""

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to leave."""


def linked(processes: Processes | None) -> AbstractContextManager[Link]:
    """The link to the other processes, for the time of one call; what is raised there is raised in all of them.

    Raises:
        UsageError: torch.distributed is not initialised.
        MachineError: Another process has ended, or was silent for too long.
    """
    if processes is None:
        return Alone()
    import torch.distributed as dist  # noqa: PLC0415

    if not dist.is_available() or not dist.is_initialized():
        raise UsageError(
            "torch.distributed is not initialised",
            where="processes",
            remedy="call torch.distributed.init_process_group first, or leave out processes",
        )
    size = dist.get_world_size()
    return Alone() if size == 1 else _Linked(processes, dist.get_rank(), size)


class _Linked:
    """See `Link`. All that is exchanged are numbers of the host, so the processes talk over gloo."""

    def __init__(self, processes: Processes, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._processes, self._group, self._is_agreed = processes, None, False

    def __enter__(self) -> Link:
        import torch.distributed as dist  # noqa: PLC0415

        self._group = self._attempt(lambda: dist.new_group(timeout=self._timeout(), backend="gloo"))
        return self

    def __exit__(self, _kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        import torch.distributed as dist  # noqa: PLC0415

        try:
            if isinstance(error, Exception) and not self._is_agreed:
                self._tell(error)
        finally:
            dist.destroy_process_group(self._group)

    def share(self, seen: Iterator[Found], settle: Settle) -> dict[int, Outcome]:
        """As `Link`."""
        mine = [(self.rank + place * self.size, found) for place, found in enumerate(seen)]
        numbered = sorted((entry for part in self._exchange(mine) for entry in part), key=lambda entry: entry[0])
        settled = settle([found for _, found in numbered]) if self.rank == 0 else None
        result: dict[int, Outcome] = self._exchange(settled)[0]
        return result

    def total(self, *numbers: int) -> tuple[int, ...]:
        """As `Link`."""
        return tuple(map(sum, zip(*self._exchange(numbers), strict=True)))

    def demand_same(self, work: object) -> None:
        """As `Link`."""
        others = self._exchange(work)
        for rank, other in enumerate(others):
            if other != others[0]:
                self._is_agreed = True  # each sees it by itself
                raise UsageError(f"process {rank} was asked for something else than process 0", where="processes")

    def _exchange(self, value: Any) -> list[Any]:
        """The value of each process, by rank; an error that one of them has told is raised."""
        found = self._gather(("value", value))
        errors = [told for kind, told in found if kind == "error"]
        if errors:
            self._is_agreed = True
            raise errors[0]
        return [value for _, value in found]

    def _tell(self, error: Exception) -> None:
        """Let the others, who are at their next exchange or will come to it, raise this; the lowest rank's counts."""
        self._is_agreed = True
        try:
            found = self._gather(("error", _portable(error)))
        except MachineError:
            return  # nobody is left to hear it
        first = next(rank for rank, (kind, _) in enumerate(found) if kind == "error")
        if first != self.rank:
            raise found[first][1] from error

    def _gather(self, entry: tuple[str, Any]) -> Sequence[tuple[str, Any]]:
        import torch.distributed as dist  # noqa: PLC0415

        found: list[Any] = [None] * self.size
        self._attempt(lambda: dist.all_gather_object(found, entry, group=self._group))
        return found

    def _attempt(self, collective: Any) -> Any:
        try:
            return collective()
        except Exception as error:  # gloo raises a RuntimeError for most, and its store some of its own
            self._is_agreed = True
            raise MachineError(
                f"another process of this run has ended, or was silent for {self._processes.timeout:g} seconds",
                where=f"process {self.rank} of {self.size}",
                remedy="look for what it said, or wait longer with --timeout",
            ) from error

    def _timeout(self) -> Any:
        from datetime import timedelta  # noqa: PLC0415

        return timedelta(seconds=self._processes.timeout)


def _portable(error: Exception) -> Exception:
    """The error, or what says the same, fit to be sent."""
    try:
        copy = pickle.loads(pickle.dumps(error))
    except Exception:  # an error of anybody's may hold anything
        copy = None
    return error if type(copy) is type(error) and str(copy) == str(error) else _described(error)


def _described(error: Exception) -> BnfoldError:
    return InternalError(f"{type(error).__name__}: {error}")
