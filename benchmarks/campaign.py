"""Thousands of seeds examined by several processes: what failed is printed and written out, the rest is counted."""

from __future__ import annotations

import argparse
import multiprocessing
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

#: Numbers of things by section of the report and name.
Counts: TypeAlias = Counter[tuple[str, str]]


@dataclass(frozen=True)
class Summary:
    """What one seed showed, small enough to be sent between processes.

    Attributes:
        seed: The seed.
        failures: Sentences that do not hold.
        counts: What was counted.
    """

    seed: int
    failures: tuple[str, ...]
    counts: Counts = field(default_factory=Counter)


def examined(examine: Callable[[int, bool], Summary], every: int, seed: int) -> Summary:
    """One seed, every so many more thoroughly; what is raised is a failure."""
    warnings.simplefilter("ignore")
    try:
        return examine(seed, seed % every == 0)
    except Exception:  # neither a fold nor the making of what is folded may raise
        return Summary(seed, (traceback.format_exc(limit=-3),))


def total(summaries: Iterable[Summary], keep: Callable[[int], object]) -> tuple[Counts, int]:
    """All counts together, and how many seeds failed; those are printed and kept."""
    counts: Counts = Counter()
    failed = 0
    for summary in summaries:
        counts.update(summary.counts)
        if summary.failures:
            failed += 1
            keep(summary.seed)
            print(f"seed {summary.seed}: " + "; ".join(summary.failures), flush=True)
    return counts, failed


def _all(examine: Callable[[int, bool], Summary], seeds: range, every: int, jobs: int) -> Iterator[Summary]:
    work = partial(examined, examine, every)
    if jobs == 1:
        yield from map(work, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(work, seeds, chunksize=5)


def campaign(what: str, examine: Callable[[int, bool], Summary], keep: Callable[[int, Path], object]) -> int:
    """Parse the command line, examine, print; the exit code.

    Args:
        what: Plural, for the report.
        examine: A function of a module, which other processes import.
        keep: Writes what a seed makes into a folder.
    """
    parser = argparse.ArgumentParser(description=f"Fold random {what} and examine every result.")
    parser.add_argument("--count", type=int, default=1000, help="how many seeds")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2, help="how many processes")
    parser.add_argument("--every", type=int, default=5, help="every so many seeds are examined more thoroughly")
    folder = Path(f"random-{what}-failures")
    parser.add_argument("--folder", type=Path, default=folder, help="where failures go")
    given = parser.parse_args()
    started = time.monotonic()
    seeds = range(given.seed, given.seed + given.count)

    def kept(seed: int) -> None:
        given.folder.mkdir(parents=True, exist_ok=True)
        keep(seed, given.folder)

    counts, failed = total(_all(examine, seeds, given.every, given.jobs), kept)
    for section, name in sorted(counts, key=lambda key: (key[0], -counts[key])):
        print(f"{section:20} {counts[section, name]:8} {name}")
    print(f"{given.count} {what}, {failed} failed, {time.monotonic() - started:.0f} s")
    return int(failed > 0)
