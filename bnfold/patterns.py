"""Inputs that a normal draw never is: an image's numbers in [0, 1), constants, impulses at corners and borders.

Numbers that all lie about zero hide a wrong sign of a shift behind their spread, and a wrong border in the mean over an
image; a constant has nothing but shifts, and an impulse at the border nothing but the border.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bnfold.dataflow import FLOATS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.generic]]

#: The patterns by name, in the order in which they are run.
PATTERNS = ("uniform numbers", "zeros", "ones", "impulses")

#: Size of an impulse: as large as standard normal numbers get.
IMPULSE = 4.0


def patterns(feeds: Arrays, held: Collection[str], seed: int) -> Iterator[tuple[tuple[str, ...], Arrays]]:
    """Inputs in the shapes of `feeds`, with the names of the patterns in them; none where no number is free.

    Samples that go together share a run, which costs less: two samples hold two patterns.

    Args:
        feeds: The inputs of an ordinary run. Whole numbers and booleans keep their values.
        held: Names of the inputs that stay as they are.
        seed: Of what is drawn.
    """
    free = [name for name, value in feeds.items() if value.dtype.name in FLOATS and name not in held]
    together = min((max(feeds[name].shape[0], 1) if feeds[name].ndim else 1 for name in free), default=1)
    for start in range(0, len(PATTERNS) if free else 0, together):
        kinds = PATTERNS[start : start + together]
        made = {name: _packed(kinds, feeds[name].shape, [seed, start, place]) for place, name in enumerate(free)}
        yield kinds, {name: made[name].astype(value.dtype) if name in made else value for name, value in feeds.items()}


def _packed(kinds: Sequence[str], shape: tuple[int, ...], seed: list[int]) -> NDArray[np.float64]:
    """One kind for each sample, in turns."""
    generator = np.random.default_rng(seed)
    whole = [_pattern(kind, shape, generator) for kind in kinds]
    if len(kinds) == 1:
        return whole[0]
    return np.stack([whole[i % len(kinds)][i] for i in range(shape[0])])


def _pattern(kind: str, shape: tuple[int, ...], generator: np.random.Generator) -> NDArray[np.float64]:
    match kind:
        case "uniform numbers":
            return np.asarray(generator.random(shape))
        case "zeros":
            return np.zeros(shape)
        case "ones":
            return np.ones(shape)
        case _:
            return np.where(_border(shape), IMPULSE * (1 - 2 * generator.integers(0, 2, shape)), 0.0)


def _border(shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Corners and middles of borders, in every sample and channel; the first and last feature where nothing is spatial.

    For axes (h, w): (0, 0), (0, w/2), (0, w-1), (h/2, 0), (h/2, w-1), (h-1, 0), (h-1, w/2), (h-1, w-1).
    """
    picked, edge = np.ones(shape, bool), np.zeros(shape, bool)
    for axis in _spatial(shape):
        size = shape[axis]
        along = np.arange(size).reshape([-1 if other == axis else 1 for other in range(len(shape))])
        ends = (along == 0) | (along == size - 1)
        picked &= ends | (along == size // 2)
        edge |= ends
    return picked & edge


def _spatial(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes 2 onwards, or 1 and 2 before a last axis of 1, 3 or 4 channels; the last one of what has fewer axes."""
    rank = len(shape)
    if rank == 4 and shape[3] in (1, 3, 4) and shape[1] not in (1, 3, 4):
        return 1, 2
    return tuple(range(2, rank)) or tuple(range(rank))[-1:]
