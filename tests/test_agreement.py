"""Decisions, counted and added up, and what is said of them."""

from __future__ import annotations

from bnfold.agreement import Agreement, Count


def test_counts_add_up_and_the_first_difference_stays() -> None:
    total = Count(5, 4, 3, 1, "sample 0: a") + Count(7, 7, 6) + Count(2, 0, 2, 2, "sample 2: b")
    assert total == Count(14, 11, 11, 3, "sample 0: a")
    assert Count() + Count(2, 0, 2, 2, "sample 2: b") == Count(2, 0, 2, 2, "sample 2: b")


def test_one_clear_decision_proves_and_one_difference_fails() -> None:
    assert not Agreement("top1", "y", 1, Count(3, 3, 0)).proves
    assert Agreement("top1", "y", 1, Count(3, 3, 1)).proves
    assert not Agreement("top1", "y", 1, Count(3, 3, 1)).failed
    assert Agreement("top1", "y", 1, Count(3, 2, 1, 1)).failed


def test_the_line_has_no_share_of_nothing_and_no_differences_that_are_none() -> None:
    assert str(Agreement("boxes", "y", 1, Count())) == "0 of 0 boxes of y are the same; 1 sample"
    assert str(Agreement("mask", "y", 2, Count(8, 7, 6))) == (
        "7 of 8 pixels of y are the same (87.50%), 1 differ within rounding; 2 samples"
    )
    assert str(Agreement("mask", "y", 2, Count(8, 5, 6, 1, "a pixel"))) == (
        "5 of 8 pixels of y are the same (62.50%), 2 differ within rounding, 1 beyond it (a pixel); 2 samples"
    )
    assert str(Agreement("top1", "y", 2, Count(2, 2, 2))) == "2 of 2 classes of y are the same (100.00%); 2 samples"
