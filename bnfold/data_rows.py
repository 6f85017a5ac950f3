"""Samples that can be read one by one, cut into batches: batch i is the samples `chosen[i*size : (i+1)*size]`.

The last batch may be smaller; none is dropped and no sample is repeated.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from bnfold.errors import DataError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

    from bnfold.data_fit import Where

    #: A batch as it was found, its number, and where its samples come from.
    Numbered = tuple[int, Mapping[str, NDArray[Any]], Where]


class Rows(Protocol):
    """Samples by number, in the order of their files."""

    @property
    def count(self) -> int:
        """How many there are."""

    def read(self, rows: NDArray[np.intp]) -> Mapping[str, NDArray[Any]]:
        """These samples, one array for each input, on axis 0; `rows` ascends."""

    def place(self, row: int) -> str:
        """Where a sample comes from, for messages."""

    def describe(self, chosen: int) -> str:
        """`360 samples of digits.npy`, or `8 of 360 ...`; no absolute path."""


@dataclass(frozen=True, eq=False)
class Sampled:
    """A feed of chosen samples.

    Attributes:
        rows: All samples.
        chosen: Numbers of the samples to use, ascending.
        size: Samples in a batch.
        how: What to say of the choice and the batches.
    """

    rows: Rows
    chosen: range | NDArray[np.intp]
    size: int
    how: str

    @property
    def samples(self) -> int:
        """How many samples a pass yields."""
        return len(self.chosen)

    def describe(self) -> str:
        """One line for reports."""
        return f"{self.rows.describe(self.samples)} ({self.how})"

    def numbered(self, rank: int, world: int) -> Iterator[Numbered]:
        """Batches rank, rank + world, ..., each with its number; the others are not read."""
        for number in range(rank, -(-self.samples // self.size), world):
            wanted = np.asarray(self.chosen[number * self.size : (number + 1) * self.size], dtype=np.intp)
            yield number, self.rows.read(wanted), _places(self.rows, wanted)


def _places(rows: Rows, wanted: NDArray[np.intp]) -> Where:
    return lambda sample: rows.place(int(wanted[min(sample, len(wanted) - 1)]))


def choose(count: int, samples: int | None, seed: int, where: str) -> range | NDArray[np.intp]:
    """All samples, or a random subset of `samples` of them, drawn with `seed`; in ascending order.

    Raises:
        DataError: There is no sample.
        UsageError: There are fewer than were asked for.
    """
    if not count:
        raise DataError("there is no sample in it", where=where, remedy="give data with at least one")
    if samples is None or samples == count:
        return range(count)
    if samples > count:
        raise UsageError(
            f"{samples} samples were asked for and there are {count}", where=where, remedy=f"give --samples {count}"
        )
    drawn = np.random.default_rng(seed).choice(count, size=samples, replace=False, shuffle=False)
    return np.sort(drawn).astype(np.intp)


def check_fills(chosen: int, fixed: int | None, where: str) -> None:
    """Raise a DataError where a model of fixed batch size would be left with a smaller batch."""
    if fixed is not None and chosen % fixed:
        most = chosen - chosen % fixed
        remedy = f"give --samples {most}" if most else f"give at least {fixed} samples"
        raise DataError(
            f"the model takes batches of exactly {fixed}, which {chosen} samples do not fill",
            where=where,
            remedy=f"{remedy}, or export the model with a free batch axis",
        )
