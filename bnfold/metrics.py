"""Decisions of two models on the caller's data: the class of an image, the boxes in it, the class of each pixel.

Both models run unoptimised. Rounding is measured on every sample: `moved`, the most by which a score of the original
moves when its input moves by 64 roundings, those of the coarsest type on the way to it. A folded model's scores may be
off by `e = max(2 * moved, 64 * u * scale)`, so a class is within rounding where it leads by `2 * e` or less, and a box
where its score is within `e`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.agreement import Agreement, Count
from bnfold.boxes import Rounding, check_layout, match, read_boxes
from bnfold.comparison import NOISE_FACTOR, UNIT_ROUNDOFF
from bnfold.dataflow import coarsest_of, coarsest_types
from bnfold.errors import UsageError
from bnfold.feeds import perturb
from bnfold.runtime import open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import onnx
    from numpy.typing import NDArray

    from bnfold.data_sources import Source

    #: Outputs of the original, of it with its input moved, and of the folded model.
    Three = tuple[NDArray[Any], NDArray[Any], NDArray[Any]]

METRICS = ("top1", "boxes", "mask")

#: Roundings of the largest score that are granted where the measured movement is smaller.
ROUNDINGS = 64.0


@dataclass(frozen=True)
class Metric:
    """What decision is taken from which output."""

    kind: str
    output: str


def choose_metric(kind: str, output: str | None, model: onnx.ModelProto) -> Metric:
    """The metric for this model.

    Args:
        kind: "top1", "boxes" or "mask".
        output: The output to decide by; may be None where there is one only.
        model: The original.

    Raises:
        UsageError: There is no such metric or output, it must be named, or it holds no floating-point numbers.
    """
    if kind not in METRICS:
        raise UsageError(f"there is no metric {kind!r}", remedy=f"choose one of {', '.join(METRICS)}")
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    listed = f"the outputs are {', '.join(types)}"
    if output is None and len(types) > 1:
        raise UsageError("the model has several outputs", where=f"--metric {kind}", remedy=f"{listed}: name one")
    name = next(iter(types)) if output is None else output
    if name not in types:
        raise UsageError(f"the model has no output {name!r}", where=f"--metric {kind}", remedy=listed)
    if types[name] not in (1, 10, 11, 16):  # ONNX's numbers of float, float16, double and bfloat16
        raise UsageError("this output holds no scores", where=name, remedy="name one of floating-point numbers")
    return Metric(kind, name)


def measure(  # noqa: PLR0913
    metric: Metric,
    before: onnx.ModelProto,
    after: onnx.ModelProto,
    *,
    provider: str,
    data: Source,
    fixed: Mapping[str, NDArray[np.generic]],
    progress: Callable[[str], None] | None = None,
) -> Agreement:
    """How often both models decide alike on all of the data.

    Raises:
        ProviderError: A model cannot be run.
        UsageError: The output is not of the shape that the metric needs.
        DataError: The data does not fit the model.
    """
    count, samples, names = Count(), 0, [metric.output]
    original, folded = open_session(before, provider), open_session(after, provider)
    kinds = [coarsest_types(m, s.types).get(metric.output, "float64") for m, s in ((before, original), (after, folded))]
    accuracy = coarsest_of(kinds)
    for batch in data:
        if progress is not None:
            progress(f"counting decisions from sample {samples} on")
        feeds = batch | dict(fixed)
        scores = original.run(names, feeds)[metric.output]
        moved = original.run(names, perturb(feeds, accuracy))[metric.output]
        three = scores, moved, folded.run(names, feeds)[metric.output]
        count += _counted(metric, three, UNIT_ROUNDOFF[accuracy], samples)
        samples += scores.shape[0] if scores.ndim else 1
    return Agreement(metric.kind, metric.output, samples, count)


def _counted(metric: Metric, three: Three, u: float, first: int) -> Count:
    """The decisions on one batch, whose samples are numbered from `first` on."""
    if len({outcome.shape for outcome in three}) > 1:
        return Count(1, 0, 1, 1, f"sample {first}: the shape of {metric.output} differs")
    if metric.kind == "boxes":
        return _boxes(metric.output, three, u, first)
    axis = _class_axis(metric, three[0].shape)
    before, moved, after = (np.moveaxis(outcome.astype(np.float64), axis, -1) for outcome in three)
    counts = (_classes(before[i], moved[i], after[i], u, first + i) for i in range(len(before)))
    return sum(counts, Count())


def _class_axis(metric: Metric, shape: tuple[int, ...]) -> int:
    """Axis 1 of a mask, and of what has nothing but ones behind it; else the last axis."""
    wanted = 3 if metric.kind == "mask" else 2
    axis = 1 if metric.kind == "mask" or all(size == 1 for size in shape[2:]) else len(shape) - 1
    if len(shape) < wanted or shape[axis] < 2:
        form = "(samples, classes, height, width)" if metric.kind == "mask" else "(samples, classes)"
        raise UsageError(
            f"an output of shape {shape} is none for {metric.kind}", where=metric.output, remedy=f"{form} is one"
        )
    return axis


def _classes(
    before: NDArray[np.float64], moved: NDArray[np.float64], after: NDArray[np.float64], u: float, sample: int
) -> Count:
    """The decisions on one sample; all arrays have shape (*places, classes)."""
    allowed = 2 * _allowed(before, moved, u)
    mine, theirs = before.argmax(axis=-1), after.argmax(axis=-1)
    two = np.sort(before, axis=-1)[..., -2:]
    chosen = np.take_along_axis(before, np.stack([mine, theirs], axis=-1), axis=-1)
    with np.errstate(invalid="ignore"):  # what is not finite is not clear
        differs = (mine != theirs) & (chosen[..., 0] - chosen[..., 1] > allowed)
        clear = (two[..., 1] - two[..., 0] > allowed) | differs
    example = ""
    if differs.any():
        place = tuple(int(index) for index in np.argwhere(differs)[0])
        where = f" at {', '.join(map(str, place))}" if any(size > 1 for size in mine.shape) else ""
        example = f"sample {sample}: class {mine[place]} became {theirs[place]}{where}"
    return Count(mine.size, int((mine == theirs).sum()), int(clear.sum()), int(differs.sum()), example)


def _boxes(output: str, three: Three, u: float, first: int) -> Count:
    """The decisions on one batch of boxes."""
    check_layout(three[0], output)
    before, moved, after = map(read_boxes, three)
    allowed = [
        Rounding(_allowed(old.scores, new.scores, u), _allowed(old.corners, new.corners, u))
        for old, new in zip(before, moved, strict=True)
    ]
    pairs = zip(before, after, allowed, strict=True)
    return sum((match(old, new, most, first + i) for i, (old, new, most) in enumerate(pairs)), Count())


def _allowed(numbers: NDArray[np.float64], moved: NDArray[np.float64], u: float) -> float:
    """How far rounding can move a number of one sample."""
    with np.errstate(all="ignore"):
        noise = NOISE_FACTOR * np.abs(moved - numbers).max()
        return float(np.maximum(noise, ROUNDINGS * u * np.abs(numbers).max()))
