"""Boxes of a YOLO output: read, thinned out (non-maximum suppression), and matched between two models.

Two layouts are known: `(samples, 4 + classes, anchors)` with `x, y, w, h` and a score of each class (YOLOv8 and later),
and `(samples, anchors, 5 + classes)` with `x, y, w, h, objectness, ...` (YOLOv5, v7), where a score is the product.
`IoU = intersection / (area a + area b - intersection)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.agreement import Count
from bnfold.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

#: A box counts from this score on.
SCORE = 0.25

#: Of two boxes of one class that overlap by more than this the one with the lower score goes.
OVERLAP = 0.7

#: Boxes of two models are the same box from this overlap on.
SAME_BOX = 0.9

#: Boxes that are thinned out, those with the highest scores.
MOST = 3000

_LAYOUT = "boxes are read from (N, 4 + classes, anchors) or (N, anchors, 5 + classes), before their suppression"


@dataclass(frozen=True, eq=False)
class Candidates:
    """All boxes of one sample.

    Attributes:
        corners: x0, y0, x1, y1 of each, shape (anchors, 4).
        scores: Of each class, shape (anchors, classes).
    """

    corners: NDArray[np.float64]
    scores: NDArray[np.float64]


@dataclass(frozen=True)
class Rounding:
    """How far rounding can move a score and a corner of one sample."""

    score: float
    corner: float


def read_boxes(output: NDArray[Any]) -> list[Candidates]:
    """The boxes of every sample of an output in one of the two layouts; the longer axis is that of the anchors."""
    has_objectness = output.shape[2] < output.shape[1]
    rows = output.astype(np.float64) if has_objectness else output.astype(np.float64).transpose(0, 2, 1)
    return [Candidates(_corners(sample[:, :4]), _scores(sample[:, 4:], has_objectness)) for sample in rows]


def check_layout(output: NDArray[Any], where: str) -> None:
    """Refuse what is no output of boxes.

    Args:
        output: The original's output; the folded model's is not asked, as it may be wrong.
        where: Its name.

    Raises:
        UsageError: It is in neither of the two layouts.
    """
    shape = output.shape
    if len(shape) != 3 or shape[1] == shape[2]:
        raise UsageError(f"an output of shape {shape} has no boxes", where=where, remedy=_LAYOUT)
    has_objectness = shape[2] < shape[1]
    if min(shape[1:]) < (6 if has_objectness else 5):
        raise UsageError(f"an output of shape {shape} has no classes", where=where, remedy=_LAYOUT)
    if has_objectness and shape[2] == 6 and (output[..., 5] == np.round(output[..., 5])).all():
        raise UsageError(
            "its last column is whole numbers: these boxes are chosen already", where=where, remedy=_LAYOUT
        )
    for sample in read_boxes(output):
        if not ((sample.scores >= -1e-3) & (sample.scores <= 1 + 1e-3)).all():
            raise UsageError("its scores are not between 0 and 1", where=where, remedy=_LAYOUT)


def match(before: Candidates, after: Candidates, allowed: Rounding, sample: int) -> Count:
    """Which boxes of one sample are the same in both models.

    A box has a partner where the other model has the same box of its class: one that overlaps by `SAME_BOX`, or lies
    within rounding. One without a partner is within rounding where its own anchor has the same box with the same score
    in the other model: then only the threshold, or the order of two scores that are almost equal, can have decided.

    Args:
        before: The original's boxes.
        after: The folded model's.
        allowed: How far rounding can move the original's.
        sample: Its number, for people.
    """
    kept, others = suppress(before), suppress(after)
    lost, new = _without_partner(before, after, kept, others, allowed.corner)
    count = Count(
        len(kept) + len(new), len(kept) - len(lost), int((_best(before)[1][kept] - SCORE > allowed.score).sum())
    )
    for mine, theirs, unmatched, fate in ((before, after, lost, "is gone"), (after, before, new, "is new")):
        classes, scores = _best(mine)
        for anchor in unmatched:
            moved = abs(theirs.scores[anchor, classes[anchor]] - scores[anchor])
            (same,) = _same(mine.corners[anchor], theirs.corners[[anchor]], allowed.corner) >= SAME_BOX
            if not (moved <= allowed.score and same):
                first = f"sample {sample}: a box of class {classes[anchor]} with score {scores[anchor]:.2g} {fate}"
                is_counted = mine is before and scores[anchor] - SCORE > allowed.score
                count += Count(clear=int(not is_counted), different=1, first=first)
    return count


def suppress(boxes: Candidates) -> list[int]:
    """The anchors that are left, by falling score: each with its best class, those of `SCORE` or more."""
    classes, scores = _best(boxes)
    order = np.argsort(-scores, kind="stable")[:MOST]
    order = order[scores[order] >= SCORE]
    kept = []
    while order.size:
        first, order = int(order[0]), order[1:]
        kept.append(first)
        hidden = (overlaps(boxes.corners[first], boxes.corners[order]) > OVERLAP) & (classes[order] == classes[first])
        order = order[~hidden]
    return kept


def overlaps(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """IoU of one box with others, shape (others,); 0 where both have no area."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    shared = np.prod(np.maximum(high - low, 0), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    union = np.prod(box[2:] - box[:2]) + areas - shared
    return np.asarray(np.divide(shared, union, out=np.zeros_like(shared), where=union > 0))


def _same(box: NDArray[np.float64], others: NDArray[np.float64], near: float) -> NDArray[np.float64]:
    """IoU of one box with others; 1 where no corner is farther off than `near`, as a box may have no area."""
    return np.where((np.abs(others - box) <= near).all(axis=1), 1.0, overlaps(box, others))


def _without_partner(
    before: Candidates, after: Candidates, kept: Sequence[int], others: Sequence[int], near: float
) -> tuple[list[int], list[int]]:
    """The anchors of both models whose box the other one has not; each box has one partner at most."""
    (classes, _), (their_classes, _) = _best(before), _best(after)
    free, lost = list(others), []
    for anchor in kept:
        rivals = [other for other in free if their_classes[other] == classes[anchor]]
        found = _same(before.corners[anchor], after.corners[rivals], near)
        if found.size and found.max() >= SAME_BOX:
            free.remove(rivals[int(found.argmax())])
        else:
            lost.append(anchor)
    return lost, free


def _best(boxes: Candidates) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """The class of the highest score of each box, and that score; NaN is no score."""
    scores = np.nan_to_num(boxes.scores, nan=-np.inf)
    return scores.argmax(axis=1), scores.max(axis=1)


def _corners(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """From centre and size."""
    centre, half = boxes[:, :2], boxes[:, 2:] / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def _scores(columns: NDArray[np.float64], has_objectness: bool) -> NDArray[np.float64]:
    return columns[:, :1] * columns[:, 1:] if has_objectness else columns
