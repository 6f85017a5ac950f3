"""Folds random PyTorch modules and reports what happened: `python -m benchmarks.random_modules --count 2000`.

Exit code 0 when every sentence of `tests/random_module_checks.py` holds for every seed, else 1; the sources of failing
modules are written to a folder. Every fifth seed goes through bnfold's own check, in float32, and is recalibrated too.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks.campaign import Counts, Summary, campaign
from tests.random_module_checks import examine
from tests.random_module_recalibration import recalibrated
from tests.random_modules import random_module
from tests.zoo.threads import one_thread


def examined(seed: int, checked: bool) -> Summary:
    """The module of that seed."""
    with tempfile.TemporaryDirectory() as folder, one_thread():
        module = random_module(seed, Path(folder))
        parts = [examine(module, checked=checked), *([recalibrated(module)] if checked else [])]
    counts: Counts = Counter()
    for found in parts:
        counts.update(found.counts)
        counts.update(("not examined", note[:100]) for note in found.notes)
    return Summary(seed, tuple(line for found in parts for line in found.failures), counts)


def _keep(seed: int, folder: Path) -> None:
    random_module(seed, folder)  # writes its source there


if __name__ == "__main__":
    sys.exit(campaign("modules", examined, _keep))
