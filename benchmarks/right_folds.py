"""Folds 1,000 models as a user does, each known to be right from float64, and counts what is blamed nevertheless.

Run from the repository root; rows lie in a cache by the sources of bnfold, so that an interrupted run goes on::

    python -m benchmarks.right_folds --jobs 2 --markdown benchmarks/RIGHT_FOLDS.md

The same page holds the opposite: folds made wrong on purpose (`benchmarks/wrong_folds.py`). Exit code 1 where a right
fold is blamed, a fold of bnfold is wrong, or one made wrong is missed.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.right_fold_cases import cases
from benchmarks.right_fold_judge import Row
from benchmarks.right_fold_page import page
from benchmarks.right_fold_run import digest, examined
from benchmarks.wrong_folds import Caught, tried


def _watched(rows: Iterator[Row], count: int) -> Iterator[Row]:
    """Tells on stderr how far it is, and at once what must not be."""
    for place, row in enumerate(rows, start=1):
        if _is_amiss(row):
            print(f"{row.key}: {row.state}, {row.ratio:.3g} of the rule; {row.alarm or row.verified}", file=sys.stderr)
        if place % 50 == 0 or place == count:
            print(f"{place} of {count}", file=sys.stderr)
        yield row


def main() -> int:
    """Parse, run, write."""
    parser = argparse.ArgumentParser(description="Fold 1,000 models and count false alarms.")
    parser.add_argument("--only", default="", metavar="REGEX", help="only kinds in whose name it is found")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="how many processes")
    parser.add_argument("--nice", type=int, default=10, metavar="N", help="how far to stand back for other processes")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page here instead of to stdout")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "bnfold-right-folds", metavar="DIR")
    given = parser.parse_args()
    given.cache.mkdir(parents=True, exist_ok=True)
    wanted = [case for case in cases() if re.search(given.only, case.kind)]
    rows = list(_watched(examined(wanted, given.cache, given.jobs, given.nice), len(wanted)))
    wrong = tried(given.cache, digest())
    text = page(rows, wrong)
    if given.markdown:
        given.markdown.write_text(text, encoding="utf-8")
    else:
        print(text)
    return int(any(_is_amiss(row) for row in rows) or _missed(wrong))


def _is_amiss(row: Row) -> bool:
    """A fold that is wrong, or one that is right and blamed, by either command."""
    return row.state == "WRONG" or (row.state == "right" and bool(row.alarm or row.verified))


def _missed(wrong: Sequence[Caught]) -> bool:
    return any(not one.caught for one in wrong)


if __name__ == "__main__":
    sys.exit(main())
