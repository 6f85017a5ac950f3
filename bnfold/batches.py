"""The batches of one pass over the data: opened, shared among the processes, counted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from bnfold.data import InputSpec
from bnfold.data_callable import Stream
from bnfold.data_sources import DataLike, Source, as_source
from bnfold.observation import State
from bnfold.processes import Link

#: Batches, however given.
Data: TypeAlias = "DataLike | Callable[[], Iterable[Any]]"


class Counted:
    """The batches that this process reads, counted in one pass, as `fed` gives them to the model.

    Attributes:
        samples: How many samples (axis 0 of the first input) came by.
        batches: How many batches they were in.
    """

    def __init__(self, source: Source, link: Link, fed: Callable[[State], State] = lambda batch: batch) -> None:
        self._shard, self._fed = source.shard(link.rank, link.size), fed
        self.samples = self.batches = 0

    def __iter__(self) -> Iterator[State]:
        for _, batch in self._shard:
            self.samples += length(batch)
            self.batches += 1
            yield self._fed(batch)


def open_data(data: Data, inputs: Sequence[InputSpec]) -> Source:
    """As `as_source`, but for what runs once, and functions."""
    if isinstance(data, Iterator):
        return Source(tuple(inputs), Stream("the given iterator", lambda: data, tuple(inputs), None))
    if callable(data) and not isinstance(data, Iterable):
        return Source(tuple(inputs), Stream("the given function", data, tuple(inputs), None))
    return as_source(data, inputs)


def count_batches(data: Data, source: Source, first: State | None, link: Link) -> int | None:
    """How many batches this process has, if that is known."""
    samples = source.samples
    if samples is None and isinstance(data, Sequence):
        samples = sum(map(length, data))
    return -(-samples // (max(1, length(first)) * link.size)) if samples is not None and first else None


def length(batch: Any) -> int:
    """Samples in a batch: a dict of arrays, a sequence of them, or one."""
    parts = list(batch.values()) if isinstance(batch, Mapping) else batch
    shape = getattr(parts[0] if isinstance(parts, list | tuple) and parts else parts, "shape", ())
    return int(shape[0]) if shape else 1
