"""What several readers ask of one value: the same affine, or affines of channels that only they pick.

A reader that picks some channels (Slice, Split, Gather) asks for the identity on the others, and does not mind what
they become: requests join entry by entry, if every reader then still sees what it asked for.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from bnfold import carriers
from bnfold.affine import ChannelAffine
from bnfold.bench import Bench
from bnfold.graph import PlacedAffine, Step
from bnfold.window_views import Select


@dataclass(frozen=True, eq=False)
class Wish:
    """What `reader`, an operator by its index, asks of the value at its input `position`."""

    placed: PlacedAffine
    reader: int
    position: int


def agreed(bench: Bench, wishes: list[Wish]) -> PlacedAffine | None:
    """The one affine that serves all; None if there is none."""
    first = wishes[0].placed
    if all(wish.placed.equals(first) for wish in wishes):
        return first
    total = _joined(wish.placed for wish in wishes)
    if total is None:
        return None
    readers = {(wish.reader, wish.position) for wish in wishes}
    return total if all(_is_served(bench, reader, wishes, total) for reader in readers) else None


def _is_served(bench: Bench, reader: tuple[int, int], wishes: list[Wish], total: PlacedAffine) -> bool:
    """Whether the reader, one output of which may have asked apart from another, sees `total` as what it asked for."""
    own = _joined(wish.placed for wish in wishes if (wish.reader, wish.position) == reader)
    operator = bench.operator(reader[0])
    if own is None or own.equals(total):
        return own is not None
    if not isinstance(operator.view, Select):
        return False
    seen, asked = (carriers.push(operator, {reader[1]: placed}, bench) for placed in (total, own))
    if not isinstance(seen, Step) or not isinstance(asked, Step):
        return False
    return all(seen.placed[output].equals(placed) for output, placed in asked.placed.items())


def _joined(placed: Iterable[PlacedAffine]) -> PlacedAffine | None:
    """The entries of all, where at most one is not the identity or all are alike; None where two differ."""
    total, *rest = placed
    for other in rest:
        joined = _both(total, other)
        if joined is None:
            return None
        total = joined
    return total


def _both(a: PlacedAffine, b: PlacedAffine) -> PlacedAffine | None:
    if (a.axes, a.sizes) != (b.axes, b.sizes):
        return None
    free = (a.affine.scale == 1) & (a.affine.shift == 0)
    same = (a.affine.scale == b.affine.scale) & (a.affine.shift == b.affine.shift)
    if not (free | same | ((b.affine.scale == 1) & (b.affine.shift == 0))).all():
        return None
    scale, shift = np.where(free, b.affine.scale, a.affine.scale), np.where(free, b.affine.shift, a.affine.shift)
    return a.with_affine(ChannelAffine(scale, shift))
