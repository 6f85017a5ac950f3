"""Runs the cases of `benchmarks/right_folds.py` in processes; rows lie in a file by the sources that they depend on."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path

from benchmarks.right_fold_cases import Case
from benchmarks.right_fold_judge import Row, examine

_ROOT = Path(__file__).resolve().parents[1]
_SOURCES = ("bnfold/**/*.py", "benchmarks/right_fold_*.py", "tests/random_graph*.py", "tests/zoo/*.py")
_PAGE = "right_fold_page.py"


def digest() -> str:
    """Changes with bnfold, with the models and with the judge."""
    paths = sorted(path for pattern in _SOURCES for path in _ROOT.glob(pattern) if path.name != _PAGE)
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()[:12]


def known(path: Path) -> dict[str, Row]:
    """The rows of earlier runs, by key; a line that was cut off is left out."""
    rows = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            held = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows[held["key"]] = Row(**held | {"blamed": tuple(held["blamed"])})
    return rows


def examined(wanted: Sequence[Case], cache: Path, jobs: int, nice: int = 10) -> Iterator[Row]:
    """A row for each case, those of earlier runs first; new ones are kept at once."""
    path = cache / f"rows-{digest()}.jsonl"
    there = known(path)
    yield from (there[case.key] for case in wanted if case.key in there)
    missing = [case for case in wanted if case.key not in there]
    with path.open("a", encoding="utf-8") as file:
        for row in _made(missing, cache, jobs, nice):
            print(json.dumps(asdict(row)), file=file, flush=True)
            yield row


def _made(missing: Sequence[Case], cache: Path, jobs: int, nice: int) -> Iterator[Row]:
    if jobs == 1:
        _calm(nice)
        yield from (examine(case, cache) for case in missing)
        return
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_calm, initargs=(nice,)) as pool:
        try:
            for future in as_completed([pool.submit(examine, case, cache) for case in missing]):
                yield future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after an exception nobody waits for the rest


def _calm(nice: int) -> None:
    """Others get the processor first; what exporters say of themselves is nobody's business here."""
    os.nice(nice)
    warnings.simplefilter("ignore")
