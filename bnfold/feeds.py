"""What the two models are fed, run by run: made-up inputs, then the caller's own data, and either moved a little."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from bnfold.comparison import UNIT_ROUNDOFF
from bnfold.data import synthesise
from bnfold.dataflow import FLOATS
from bnfold.errors import InternalError
from bnfold.patterns import patterns

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from bnfold.data import InputSpec
    from bnfold.data_sources import Source

    Arrays = dict[str, NDArray[np.generic]]

#: Batches of the caller's data that are compared, the first ones.
MOST_BATCHES = 3


def given_batches(data: Source | None) -> Iterator[Arrays]:
    """The batches of the caller's data that are compared; none without data."""
    return islice(iter(data), MOST_BATCHES) if data is not None else iter(())


def describe_given(data: Source, runs: Sequence[Mapping[str, tuple[int, ...]]]) -> str:
    """Which runs were on the caller's data, for the report."""
    last = "last run was" if len(runs) == 1 else f"last {len(runs)} runs were"
    batches = "batch" if len(runs) == 1 else f"{len(runs)} batches"
    return f"The {last} on the caller's data: the first {batches} of {data.describe()}."


def feeds_again(  # noqa: PLR0913
    inputs: Sequence[InputSpec],
    runs: Sequence[Mapping[str, tuple[int, ...]]],
    *,
    seed: int,
    given: int,
    data: Source | None,
    kinds: Sequence[str] = (),
    fixed: Mapping[str, NDArray[np.generic]] | None = None,
) -> Iterator[Arrays]:
    """The inputs of a check once more: of its runs, of which the last `given` were on `data`; then of its patterns.

    Args:
        inputs: What the model takes.
        runs: Shapes of the inputs of every run.
        seed: The seed of the check.
        given: How many of the runs were on the caller's data.
        data: The caller's data.
        kinds: Names of the patterns that were run, in the shapes of the first run.
        fixed: The inputs that the caller fixed.
    """
    made_up, held = len(runs) - given, dict(fixed or {})
    first: Arrays = {}
    for i, shapes in enumerate(runs[:made_up]):
        feeds = synthesise(inputs, seed=seed + 2 * i, batch=1, overrides=shapes) | held
        first = first or feeds
        yield feeds
    again = list(islice(given_batches(data), given)) if given else []
    if len(again) != given:
        raise InternalError(f"{given} runs were on the caller's data, and {len(again)} batches of it are there")
    yield from (batch | held for batch in again)
    yield from (feeds for found, feeds in patterns(first, held, seed) if set(found) <= set(kinds))


def perturb(feeds: Arrays, accuracy: str) -> Arrays:
    """The inputs, moved by 64 roundings, though by a 256th at most (8 roundings of float16), yet by 2 roundings."""
    step = max(2 * UNIT_ROUNDOFF[accuracy], min(64 * UNIT_ROUNDOFF[accuracy], 2.0**-8))
    generator = np.random.default_rng(0)
    moved = dict(feeds)
    for name, value in feeds.items():
        if value.dtype.name in FLOATS:
            signs = generator.integers(0, 2, size=value.shape) * 2.0 - 1.0
            moved[name] = np.asarray(value.astype(np.float64) * (1 + step * signs)).astype(value.dtype)
    return moved
