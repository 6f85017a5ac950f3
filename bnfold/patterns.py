"""Inputs that a normal draw never is: an image's numbers in [0, 1), constants, impulses at corners and borders.

Numbers that all lie about zero hide a wrong sign of a shift behind their spread, and a wrong border in the mean over an
image; a constant has nothing but shifts, and an impulse at the border nothing but the border.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from bnfold.dataflow import FLOATS

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[np.generic]]

#: The patterns by name, in the order in which they are run.
PATTERNS = ("uniform numbers", "zeros", "ones", "impulses")

#: Size of an impulse: as large as standard normal numbers get.
IMPULSE = 4.0


def patterns(feeds: Arrays, held: Collection[str], seed: int) -> Iterator[tuple[str, Arrays]]:
    """Every pattern by name, in the shapes of `feeds`; none where no floating-point input is free.

    Args:
        feeds: The inputs of an ordinary run. Whole numbers and booleans keep their values.
        held: Names of the inputs that stay as they are.
        seed: Of what is drawn.
    """
    free = [name for name, value in feeds.items() if value.dtype.name in FLOATS and name not in held]
    for place, kind in enumerate(PATTERNS if free else ()):
        generator = np.random.default_rng([seed, place])
        made = {name: _pattern(kind, feeds[name].shape, generator) for name in free}
        yield kind, {name: made[name].astype(value.dtype) if name in made else value for name, value in feeds.items()}


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
