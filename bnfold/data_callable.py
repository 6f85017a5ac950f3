"""Batches from a function of the user's: called without arguments once for every pass, it yields batches.

A batch is a dict of arrays by input, a tuple or list of arrays in the order of the inputs, or one array for a model of
one input. Every pass must yield the same: a checksum of each batch tells.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.errors import BnfoldError, DataError, UsageError
from bnfold.importing import import_object

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bnfold.data import InputSpec
    from bnfold.data_rows import Numbered

    Arrays = dict[str, NDArray[Any]]

_FRESH = "it must give a new one for every pass: name a function with a yield in it, or one that returns a list"


@dataclass
class _Memory:
    """What earlier passes gave: the last iterator, and checksums of batches by number."""

    last: object = None
    checksums: dict[int, int] = field(default_factory=dict)
    batches: int | None = None


@dataclass(frozen=True, eq=False)
class Stream:
    """A feed of the batches that a function yields.

    Attributes:
        name: What the data is called in reports and messages.
        make: Called for every pass.
        inputs: What the model takes.
        samples: How many samples to take, the first ones; None for all.
    """

    name: str
    make: Callable[[], Iterable[Any]]
    inputs: tuple[InputSpec, ...]
    samples: int | None
    _memory: _Memory = field(default_factory=_Memory, repr=False)

    def describe(self) -> str:
        """One line for reports."""
        return self.name if self.samples is None else f"the first {self.samples} samples of {self.name}"

    def numbered(self, rank: int, world: int) -> Iterator[Numbered]:
        """Batches rank, rank + world, ..., each with its number; the others are made and dropped.

        Raises:
            DataError: The function raises, yields what is no batch, or not the same as before.
        """
        number = 0
        for number, batch in enumerate(self._cut(self._found()), start=1):
            if (number - 1) % world == rank:
                self._remember(number - 1, batch)
                yield number - 1, batch, partial(_place, f"{self.name}, batch {number - 1}")
        self._end(number)

    def _found(self) -> Iterator[Arrays]:
        """The batches of one pass by input; what the function raises becomes one sentence."""
        iterator = self._start()
        number = 0
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            except BnfoldError:
                raise
            except Exception as error:  # the user's code may raise anything
                raise self._raised(error, f", batch {number}") from error
            yield self._named(batch, number)
            number += 1

    def _start(self) -> Iterator[Any]:
        try:
            made = self.make()
            iterator = iter(made)
        except BnfoldError:
            raise
        except Exception as error:
            raise self._raised(error, "") from error
        if made is iterator and iterator is self._memory.last:  # a loader may start its own anew
            raise DataError("it gave the same iterator again, which runs once", where=self.name, remedy=_FRESH)
        self._memory.last = iterator
        return iterator

    def _raised(self, error: Exception, where: str) -> DataError:
        said = f": {error}" if str(error) else ""
        return DataError(
            f"it raised {type(error).__name__}{said}",
            where=self.name + where,
            remedy="it is called without arguments and yields batches",
        )

    def _named(self, batch: object, number: int) -> Arrays:
        names = [spec.name for spec in self.inputs]
        where = f"{self.name}, batch {number}"
        if not isinstance(batch, Mapping):
            parts = list(batch) if isinstance(batch, tuple | list) else [batch]
            if len(parts) != len(names):
                raise DataError(
                    f"it yields {len(parts)} arrays and the model has {len(names)} inputs ({', '.join(names)})",
                    where=where,
                    remedy="yield only what the model reads (no labels), or a dict by name",
                )
            batch = dict(zip(names, parts, strict=True))
        return {str(name): _as_array(value, f"{where}, {name}") for name, value in batch.items()}

    def _cut(self, batches: Iterator[Arrays]) -> Iterator[Arrays]:
        """The first `samples` samples; the last batch is cut."""
        if self.samples is None:
            yield from batches
            return
        left = self.samples
        for number, batch in enumerate(batches):
            size = _batch_size(batch, f"{self.name}, batch {number}")
            yield batch if size <= left else {name: array[:left] for name, array in batch.items()}
            left -= min(left, size)
            if not left:
                return
        raise UsageError(
            f"{self.samples} samples were asked for and there are {self.samples - left}",
            where=self.name,
            remedy=f"give --samples {self.samples - left}" if left < self.samples else "yield some",
        )

    def _remember(self, number: int, batch: Arrays) -> None:
        checksum = 0
        for name in sorted(batch):
            array = np.ascontiguousarray(batch[name])
            checksum = zlib.crc32(f"{name} {array.shape} {array.dtype}".encode(), checksum)
            checksum = zlib.crc32(array.reshape(-1).view(np.uint8).data, checksum)
        if self._memory.checksums.setdefault(number, checksum) != checksum:
            raise self._changed(number)

    def _end(self, batches: int) -> None:
        """After the last batch: at least one, and as many as before."""
        if not batches:
            raise DataError("it yields no batch", where=self.name, remedy="yield at least one for every pass")
        if self._memory.batches not in (None, batches):
            raise self._changed(batches)
        self._memory.batches = batches

    def _changed(self, number: int) -> DataError:
        return DataError(
            f"batch {number} is not the one of the pass before",
            where=self.name,
            remedy="every pass must yield the same batches in the same order: fix the seed, do not shuffle or augment",
        )


def load_callable(text: str) -> Callable[[], Iterable[Any]]:
    """The function that `package.module:callable` names; the current directory is searched first.

    Raises:
        UsageError: There is no such module or name, or it is no function.
        DataError: The module raises when it is imported.
    """
    found = import_object(text, DataError)
    if isinstance(found, Iterator):
        raise UsageError("this is a generator that has been started, and runs once", where=text, remedy=_FRESH)
    if not callable(found):
        raise UsageError(
            f"this is no function but a {type(found).__name__}",
            where=text,
            remedy="name one that yields batches",
        )
    return found  # type: ignore[no-any-return]  # what it returns is checked when it is called


def _place(batch: str, sample: int) -> str:
    return f"{batch}, sample {sample}"


def _as_array(value: object, where: str) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except Exception as error:  # whatever a framework's own tensor raises, a CUDA tensor of torch for one
        raise DataError(
            f"it cannot become an array ({type(error).__name__}: {error})", where=where, remedy="yield NumPy arrays"
        ) from error
    if array.dtype.kind in "OUSmM":
        raise DataError(
            f"it is no array of numbers but a {type(value).__name__}", where=where, remedy="yield NumPy arrays"
        )
    return array


def _batch_size(batch: Arrays, where: str) -> int:
    sizes = {array.shape[0] if array.ndim else -1 for array in batch.values()}
    if len(sizes) != 1 or -1 in sizes:
        raise DataError(
            "its arrays have different numbers of samples, so samples cannot be counted",
            where=where,
            remedy="leave out --samples",
        )
    return sizes.pop()
