"""Boxes of YOLO outputs: read from both layouts, thinned out, and matched between two models."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.agreement import Count
from bnfold.boxes import (
    MOST,
    OVERLAP,
    SAME_BOX,
    SCORE,
    Candidates,
    Rounding,
    check_layout,
    match,
    overlaps,
    read_boxes,
    suppress,
)
from bnfold.errors import UsageError

ROUNDING = 1e-5
ALLOWED = Rounding(ROUNDING, 1e-3)


def candidates(*boxes: tuple[float, float, float, float, int, float], classes: int = 3) -> Candidates:
    """From x0, y0, x1, y1, class, score."""
    scores = np.zeros((len(boxes), classes))
    for row, box in zip(scores, boxes, strict=True):
        row[box[4]] = box[5]
    return Candidates(np.array([box[:4] for box in boxes], float), scores)


LEFT, RIGHT = (0.0, 0.0, 10.0, 10.0), (50.0, 0.0, 60.0, 10.0)


def test_both_layouts_hold_the_same_boxes() -> None:
    rows = np.zeros((1, 20, 8), np.float32)
    rows[0, 3] = [5, 6, 4, 2, 0.5, 0, 0.8, 0]
    (old,) = read_boxes(rows)
    without = np.concatenate([rows[..., :4], rows[..., 4:5] * rows[..., 5:]], axis=2).transpose(0, 2, 1)
    (new,) = read_boxes(without)
    for found in (old, new):
        assert found.corners[3] == pytest.approx([3, 5, 7, 7])
        assert found.scores[3] == pytest.approx([0, 0.4, 0])


def scored(*scores: float) -> np.ndarray:
    """An output of 20 anchors and two classes, the first of which have these scores."""
    output = np.full((1, 6, 20), 0.5)
    output[0, 4, : len(scores)] = scores
    return output


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (np.zeros((1, 84)), "has no boxes"),
        (np.zeros((1, 9, 9)), "has no boxes"),
        (np.zeros((1, 4, 9)), "has no classes"),
        (np.zeros((1, 9, 5)), "has no classes"),
        (np.zeros((1, 300, 6)), "chosen already"),
        (np.full((1, 6, 20), 3.0), "not between 0 and 1"),
        (np.full((1, 6, 20), np.nan), "not between 0 and 1"),
        (scored(0.5, 1.002), "not between 0 and 1"),
        (scored(0.5, -0.0012), "not between 0 and 1"),
    ],
)
def test_what_is_no_output_of_boxes_is_refused(output: np.ndarray, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        check_layout(output, "y")


@pytest.mark.parametrize("shape", [(1, 5, 20), (1, 20, 6), (2, 84, 100)])
def test_an_output_of_boxes_is_not(shape: tuple[int, ...]) -> None:
    check_layout(np.random.default_rng(0).random(shape), "y")


def test_scores_may_be_off_by_a_rounding() -> None:
    check_layout(scored(1.0008, -0.0008), "y")


def test_whole_numbers_are_classes_only_in_the_last_column_of_six_and_only_all_of_them() -> None:
    output = np.random.default_rng(0).random((1, 20, 7))
    output[..., 5] = 0  # a class that no box has
    check_layout(output, "y")
    output[..., 5] = np.random.default_rng(1).random((1, 20))
    output[0, 3, 5] = 0
    check_layout(output[..., :6], "y")
    anchors = np.random.default_rng(0).random((1, 5, 6))
    anchors[..., 5] = 1
    check_layout(anchors, "y")


def test_overlaps_are_shares_of_the_union() -> None:
    box = np.array([0.0, 0, 10, 10])
    others = np.array([[0.0, 0, 10, 10], [5, 0, 15, 10], [20, 0, 30, 10], [3, 3, 3, 3]])
    assert overlaps(box, others) == pytest.approx([1, 1 / 3, 0, 0])
    assert overlaps(np.zeros(4), np.zeros((1, 4))) == pytest.approx([0])
    wide, high = np.array([1.0, 2, 9, 4]), np.array([[4.0, 0, 6, 10], [1, 1, 3, 3]])  # 8 x 2; 2 x 10, 2 x 2
    assert overlaps(wide, high) == pytest.approx([4 / (16 + 20 - 4), 2 / (16 + 4 - 2)])
    assert overlaps(wide / 1000, high / 1000) == pytest.approx([4 / 32, 2 / 18])  # of an image of size 1


def test_a_score_below_the_threshold_is_no_box() -> None:
    assert SCORE == 0.25
    assert suppress(candidates((*LEFT, 0, SCORE), (*RIGHT, 0, SCORE - 1e-3))) == [0]
    assert suppress(candidates((*LEFT, 0, float("nan")))) == []


def test_of_two_boxes_on_top_of_each_other_the_one_with_the_lower_score_goes() -> None:
    near, far = (1.0, 0.0, 11.0, 10.0), (3.0, 0.0, 13.0, 10.0)  # overlaps of 9/11 and 7/13
    assert 9 / 11 > OVERLAP > 7 / 13
    assert suppress(candidates((*LEFT, 0, 0.8), (*near, 0, 0.9))) == [1]
    assert suppress(candidates((*LEFT, 0, 0.8), (*far, 0, 0.9))) == [1, 0]
    assert suppress(candidates((*LEFT, 0, 0.8), (*near, 1, 0.9))) == [1, 0]  # another class


def test_the_same_boxes_match() -> None:
    boxes = candidates((*LEFT, 0, 0.8), (*RIGHT, 1, 0.9))
    count = match(boxes, boxes, ALLOWED, 0)
    assert (count.decisions, count.same, count.clear, count.different) == (2, 2, 2, 0)
    pair = candidates((*LEFT, 0, 0.8), (*RIGHT, 0, 0.9))  # of one class
    assert match(pair, pair, ALLOWED, 0) == Count(2, 2, 2)


@pytest.mark.parametrize(("shift", "same"), [(0.4, True), (0.7, False)])
def test_a_box_that_moved_is_another_one(shift: float, same: bool) -> None:
    assert (10 - 0.4) / (10 + 0.4) > SAME_BOX > (10 - 0.7) / (10 + 0.7)
    moved = (shift, 0.0, 10 + shift, 10.0)
    count = match(candidates((*LEFT, 0, 0.8)), candidates((*moved, 0, 0.8)), ALLOWED, 4)
    assert (count.same, count.different) == ((1, 0) if same else (0, 2))
    assert count.first == ("" if same else "sample 4: a box of class 0 with score 0.8 is gone")


@pytest.mark.parametrize(("shift", "same"), [(5e-4, True), (2e-3, False)])
def test_a_box_without_area_is_the_same_within_rounding(shift: float, same: bool) -> None:
    lines = [candidates((x, 0.0, x, 10.0, 0, 0.8)) for x in (5.0, 5.0 + shift)]
    assert (match(*lines, ALLOWED, 0).same == 1) == same


@pytest.mark.parametrize(
    "other", [candidates((*LEFT, 1, 0.8)), candidates((*LEFT, 0, 0.0))], ids=["another class", "no score"]
)
def test_a_box_that_is_lost_is_a_difference(other: Candidates) -> None:
    count = match(candidates((*LEFT, 0, 0.8)), other, ALLOWED, 0)
    assert count.different >= 1
    assert count.same == 0


def test_a_box_that_is_new_is_a_difference() -> None:
    count = match(candidates((*LEFT, 0, 0.0)), candidates((*LEFT, 0, 0.8)), ALLOWED, 0)
    assert (count.decisions, count.clear, count.different) == (1, 1, 1)
    assert "is new" in count.first


def test_two_boxes_need_two_partners() -> None:
    two = candidates((*LEFT, 0, 0.8), (0.0, 0.0, 10.0, 5.0, 0, 0.7))
    one = candidates((*LEFT, 0, 0.8), (*LEFT, 0, 0.0))
    assert match(two, one, ALLOWED, 0).different == 1


@pytest.mark.parametrize(("moved", "different"), [(0.5 * ROUNDING, 0), (3 * ROUNDING, 1)])
def test_a_box_at_the_threshold_may_go_for_a_rounding_and_for_no_more(moved: float, different: int) -> None:
    before = candidates((*LEFT, 0, SCORE + 0.4 * moved))
    count = match(before, candidates((*LEFT, 0, SCORE - 0.6 * moved)), ALLOWED, 0)
    assert (count.decisions, count.same, count.different) == (1, 0, different)


@pytest.mark.parametrize(
    ("above", "below", "clear", "different"),
    [(0.5, 0.4, 0, 0), (1.5, -0.1, 1, 0), (0.5, 2.5, 1, 1), (1.5, 1.5, 1, 1)],
)
def test_a_box_is_clear_where_rounding_cannot_decide_about_it_or_has_not(
    above: float, below: float, clear: int, different: int
) -> None:
    """The box is above the threshold by so many roundings, and in the other model below it."""
    before, after = (candidates((*LEFT, 0, SCORE + by * ROUNDING)) for by in (above, -below))
    count = match(before, after, ALLOWED, 0)
    assert (count.clear, count.different) == (clear, different)
    back = match(after, before, ALLOWED, 0)
    assert (back.clear, back.different) == (different, different)  # new, where it is lost above


def test_only_so_many_boxes_are_looked_at() -> None:
    apart = [(20.0 * place, 0.0, 20.0 * place + 10, 10.0, 0, 0.9 - 1e-4 * place) for place in range(MOST + 2)]
    assert suppress(candidates(*apart)) == list(range(MOST))
    assert MOST == 3000


@pytest.mark.parametrize(("moved", "different"), [(0.5 * ROUNDING, 0), (3 * ROUNDING, 2)])
def test_of_two_equal_boxes_either_may_win_for_a_rounding_and_for_no_more(moved: float, different: int) -> None:
    near = (1.0, 0.0, 11.0, 10.0)
    before = candidates((*LEFT, 0, 0.8 + 0.4 * moved), (*near, 0, 0.8))
    count = match(before, candidates((*LEFT, 0, 0.8 - 0.6 * moved), (*near, 0, 0.8)), ALLOWED, 0)
    assert count.same == 0
    assert (count.different > 0) == (different > 0)
