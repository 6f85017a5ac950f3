"""Folds thousands of random graphs and reports what happened: `python -m benchmarks.random_graphs --count 20000`.

Exit code 0 when every sentence of `tests/random_graph_checks.py` holds for every seed, else 1; the failing models are
written to a folder, each named after its seed. Every fifth seed is run on onnxruntime too.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import onnx

from benchmarks.campaign import Counts, Summary, campaign
from bnfold.decision import Folded, Kept
from tests.random_graph_checks import Findings, examine
from tests.random_graphs import random_graph


def examined(seed: int, runtime: bool) -> Summary:
    """The graph of that seed."""
    found = examine(random_graph(seed), runtime=runtime)
    counts = _counted(found)
    counts["runtime", "examined"] += runtime
    return Summary(seed, tuple(found.failures), counts)


def _counted(found: Findings) -> Counts:
    counts: Counts = Counter()
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


def _keep(seed: int, folder: Path) -> None:
    onnx.save(random_graph(seed).model, folder / f"{seed}.onnx")


if __name__ == "__main__":
    sys.exit(campaign("graphs", examined, _keep))
