"""What is kept of many runs: the worst comparison of every tensor, where a failure is worse than any error."""

from __future__ import annotations

import pytest

from bnfold.comparison import TensorComparison
from bnfold.examining import Findings, _note_worst


def entry(error: float, *, passed: bool = True, compared: bool = True) -> TensorComparison:
    return TensorComparison("y", (1,), "float32", error, 1.0, 1e-3, passed=passed, compared=compared)


@pytest.mark.parametrize(
    ("worse", "better"),
    [
        (entry(2e-3, passed=False), entry(9e-3)),  # the noise of the other run was larger, and so what was granted
        (entry(2e-3), entry(1e-3)),
        (entry(1e-9), entry(0.5, compared=False)),
        (entry(2e-3, passed=False), entry(1e-3, passed=False)),
    ],
    ids=["failed", "larger error", "compared at all", "larger error of two that failed"],
)
def test_the_worst_run_of_a_tensor_counts_in_whatever_order_they_come(
    worse: TensorComparison, better: TensorComparison
) -> None:
    for runs in ((worse, better), (better, worse)):
        findings = Findings()
        for run in runs:
            _note_worst(findings, run)
        assert findings.worst == {"y": worse}
