"""Folds thousands of random graphs and reports what happened: `python -m benchmarks.random_graphs --count 20000`.

Exit code 0 when every sentence of `tests/random_graph_checks.py` holds for every seed, else 1; the failing models are
written to a folder, each named after its seed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import onnx

from bnfold.decision import Folded, Kept
from tests.random_graph_checks import Findings, examine
from tests.random_graphs import random_graph


@dataclass(frozen=True)
class Summary:
    """What one seed showed, small enough to be sent between processes.

    Attributes:
        seed: The seed.
        failures: Sentences that do not hold.
        counts: Numbers of things by section of the report and name.
    """

    seed: int
    failures: tuple[str, ...]
    counts: Counter[tuple[str, str]]


def summarise(seed: int, every: int) -> Summary:
    """Examine one seed, every so many on onnxruntime too; what is raised is a failure."""
    warnings.simplefilter("ignore")
    graph = random_graph(seed)
    try:
        found = examine(graph, runtime=seed % every == 0)
    except Exception:  # a fold must not raise
        return Summary(seed, (traceback.format_exc(limit=-3),), Counter())
    counts = _counted(found)
    counts["runtime", "examined"] += seed % every == 0
    return Summary(seed, tuple(found.failures), counts)


def _counted(found: Findings) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    counts.update({("operators", kind): n for kind, n in found.operators.items()})
    counts.update(("not examined", note.split("(")[0][:70]) for note in found.notes)
    for decision in found.decisions:
        counts[_line(decision)] += 1
        kind = "BatchNorm" if decision.subject.is_batchnorm else "disguised"
        counts["decisions", f"{kind} {type(decision).__name__}"] += 1
        if isinstance(decision, Folded):
            counts["carriers on the way", str(min(len(decision.through), 6))] += 1
    return counts


def _line(decision: object) -> tuple[str, str]:
    match decision:
        case Folded(direction=direction):
            return "folded by", direction
        case Kept(refusals=refusals):
            return "kept because of", " + ".join(r.reason.name for r in refusals)
    return "reduced", ""


def total(summaries: Iterable[Summary], folder: Path) -> tuple[Counter[tuple[str, str]], int]:
    """All counts together, and how many seeds failed; those are printed and their models written."""
    counts: Counter[tuple[str, str]] = Counter()
    failed = 0
    for summary in summaries:
        counts.update(summary.counts)
        if summary.failures:
            failed += 1
            folder.mkdir(parents=True, exist_ok=True)
            onnx.save(random_graph(summary.seed).model, folder / f"{summary.seed}.onnx")
            print(f"seed {summary.seed}: " + "; ".join(summary.failures), flush=True)
    return counts, failed


def _examined(seeds: range, every: int, jobs: int) -> Iterator[Summary]:
    work = partial(summarise, every=every)
    if jobs == 1:
        yield from map(work, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(work, seeds, chunksize=20)


def main() -> int:
    """Parse, examine, print."""
    parser = argparse.ArgumentParser(description="Fold random graphs and examine every result.")
    parser.add_argument("--count", type=int, default=1000, help="how many seeds")
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--jobs", type=int, default=2, help="how many processes")
    parser.add_argument("--every", type=int, default=5, help="every so many seeds run on onnxruntime too")
    parser.add_argument("--folder", type=Path, default=Path("random-graph-failures"), help="where failing models go")
    given = parser.parse_args()
    started = time.monotonic()
    seeds = range(given.seed, given.seed + given.count)
    counts, failed = total(_examined(seeds, given.every, given.jobs), given.folder)
    for section, name in sorted(counts, key=lambda key: (key[0], -counts[key])):
        print(f"{section:20} {counts[section, name]:8} {name}")
    print(f"{given.count} graphs, {failed} failed, {time.monotonic() - started:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
