"""What one run shows: whether a tensor repeats, follows the input, is finite; and of many runs the worst counts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bnfold.comparison import TensorComparison
from bnfold.examining import Findings, _is_finite, _note_worst, _repeats, _responds


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


def pair(accuracy: str | None = "float32") -> Any:
    """Of the tensors y is computed in floating-point numbers, and z is not."""
    flow = SimpleNamespace(inexact=frozenset({"y"}))
    return SimpleNamespace(accuracy=lambda _: accuracy, before=SimpleNamespace(flow=flow))


ONES = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("accuracy", "part", "expected"),
    [
        ("float32", 0.9e-4, True), ("float32", 1.1e-4, False), (None, 1.1e-4, False), ("bfloat16", 0.02, True),
        ("bfloat16", 0.03, False),
    ],
)  # fmt: skip
def test_a_tensor_repeats_that_agrees_with_itself_ten_times_better_than_it_must(
    accuracy: str | None, part: float, expected: bool
) -> None:
    assert _repeats(pair(accuracy), "y", ONES, ONES * np.float32(1 + part)) == expected


@pytest.mark.parametrize(
    ("accuracy", "part", "expected"),
    [
        ("float32", 0.009, False), ("float32", 0.011, True), (None, 0.009, False), (None, 0.011, True),
        ("float64", 0.009, False), ("bfloat16", 0.24, False), ("bfloat16", 0.26, True),
    ],
)  # fmt: skip
def test_a_tensor_follows_the_input_that_moves_by_more_than_the_tolerance_could_hide(
    accuracy: str | None, part: float, expected: bool
) -> None:
    assert _responds(pair(accuracy), "y", ONES, ONES * np.float32(1 + part)) == expected


def test_only_computed_floating_point_numbers_follow_the_input() -> None:
    """Whole numbers that move may be sizes; what is not computed in floating-point numbers shows no fold."""
    whole = np.arange(6).reshape(2, 3)
    assert not _responds(pair(), "y", whole, whole + 5)
    assert not _responds(pair(), "z", ONES, ONES * 2)
    assert _responds(pair(), "y", ONES, ONES * 2)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ml_dtypes.bfloat16])
def test_nan_and_infinities_are_not_finite_in_any_type(dtype: Any) -> None:
    assert _is_finite(np.array([1, -2], dtype))
    assert not any(_is_finite(np.array([1, bad], dtype)) for bad in (np.nan, np.inf, -np.inf))


def test_whole_numbers_booleans_and_strings_are_finite() -> None:
    assert all(_is_finite(np.array(values)) for values in ([1, 2], [True], ["a"]))
