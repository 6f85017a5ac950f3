"""One run of the end-to-end check: what is random, what responds to the input, how noisy it is, and what moved.

On a pattern (`bnfold.patterns`) no scale is taken below the one that the slice has on ordinary inputs, what is not
finite in the original is left out, and the noise is that of the first run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bnfold.comparison import (
    TOLERANCE,
    Noise,
    Scales,
    TensorComparison,
    compare,
    measure_noise,
    measure_scales,
    movement,
)
from bnfold.dataflow import FLOATS, coarsest_of
from bnfold.feeds import perturb
from bnfold.probing import numpy_type
from bnfold.slices import widened

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from bnfold.probing import Pair

    Arrays = dict[str, NDArray[np.generic]]

#: An output that moves by less than this part of its scale when the input is another one proves nothing.
ALIVE = 1e-2
#: The original's own repetition must agree ten times better than the tolerance, or the tensor counts as random.
REPEATABLE = 0.1


@dataclass
class Findings:
    """What the runs showed so far: the worst comparison by name; which tensors are random, which follow the input.

    `usual` has their scales and their noise in the first run, by name, and `dull` the values there of those that other
    numbers of the same kind hardly moved: another kind of input may.
    """

    worst: dict[str, TensorComparison] = field(default_factory=dict)
    random: set[str] = field(default_factory=set)
    alive: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    usual: dict[str, tuple[Scales | None, Noise | None]] = field(default_factory=dict)
    dull: Arrays = field(default_factory=dict)


def examine(pair: Pair, findings: Findings, feeds: Arrays, values: Arrays, other: Arrays | None) -> None:
    """One run: what is random, what responds to the `other` input (first run only), how noisy it is, and what moved."""
    decided = {name: values[name] for name in pair.cut}
    if other is not None:
        repeated = pair.before.session.run(pair.compared, feeds | decided)
        findings.random |= {name for name in pair.compared if not _repeats(pair, name, values[name], repeated[name])}
        del repeated
        moved = pair.original.session.run(pair.compared, other)
        findings.alive |= {name for name in pair.compared if _responds(pair, name, values[name], moved[name])}
        del moved
        findings.dull = {name: values[name] for name in pair.compared if name not in findings.alive}
    perturbed = pair.before.session.run(pair.compared, perturb(feeds, coarsest(pair)) | decided)
    noise = {name: measure_noise(values[name], perturbed[name]) for name in pair.compared}
    del perturbed
    if not findings.usual:
        findings.usual = {name: (measure_scales(values[name]), noise[name]) for name in pair.compared}
    result = _folded(pair, pair.compared, feeds | decided)
    for name in pair.compared:
        now = compare(name, values[name], result[name], accuracy=pair.accuracy(name), noise=noise[name])
        _note_worst(findings, now)


def examine_pattern(pair: Pair, findings: Findings, feeds: Arrays, values: Arrays) -> None:
    """One run on a pattern, after the first ordinary one.

    What is not finite here, or has another shape, shows nothing: it cannot be compared, so it cannot be what moved.
    """
    decided = {name: values[name] for name in pair.cut}
    finite = [name for name in pair.compared if _is_finite(values[name])]
    known = {name: findings.dull[name] for name in finite if name in findings.dull}
    findings.alive |= {name for name, was in known.items() if _moves(pair, name, was, values[name])}
    result = _folded(pair, finite, feeds | decided)
    for name in finite:
        usual, noise = findings.usual[name]
        if usual is None or usual.shape != values[name].shape:
            usual, noise = None, None
        accuracy = pair.accuracy(name)
        now = compare(name, values[name], result[name], accuracy=accuracy, noise=noise, usual=usual)
        _note_worst(findings, now)


def _folded(pair: Pair, names: Sequence[str], feeds: Arrays) -> Arrays:
    """What the folded model computes; an inner tensor, whose floating-point type nobody is promised, in the original's.

    A tool that stores a model in float16 keeps its names.
    """
    found = pair.after.session.run(names, feeds)
    for name in set(found).intersection(pair.inner):
        if found[name].dtype.name in FLOATS:
            found[name] = found[name].astype(numpy_type(pair.before.session.types[name]), copy=False)
    return found


def _is_finite(values: NDArray[np.generic]) -> bool:
    return values.dtype.name not in FLOATS or bool(np.isfinite(widened(values)).all())


def _note_worst(findings: Findings, now: TensorComparison) -> None:
    worst = findings.worst.setdefault(now.name, now)
    if _badness(now) > _badness(worst):
        findings.worst[now.name] = now


def _badness(entry: TensorComparison) -> tuple[bool, bool, float]:
    return entry.failed, entry.compared, entry.error


def _repeats(pair: Pair, name: str, values: NDArray[np.generic], repeated: NDArray[np.generic]) -> bool:
    tolerance = TOLERANCE[pair.accuracy(name) or "float32"] * REPEATABLE
    return not compare(name, values, repeated, tolerance=tolerance).failed


def _responds(pair: Pair, name: str, values: NDArray[np.generic], moved: NDArray[np.generic]) -> bool:
    """Floating-point values that follow the input by more than the tolerance could hide."""
    least = max(ALIVE, TOLERANCE[pair.accuracy(name) or "float32"])
    computed = values.dtype.name in FLOATS and name in pair.before.flow.inexact
    return computed and movement(values, moved) > least


def _moves(pair: Pair, name: str, was: NDArray[np.generic], values: NDArray[np.generic]) -> bool:
    """Numbers of one shape, finite in both runs, that are others."""
    return was.shape == values.shape and _is_finite(was) and _responds(pair, name, was, values)


def coarsest(pair: Pair) -> str:
    """The coarsest floating-point type on the way to anything that is compared."""
    return coarsest_of(pair.accuracy(name) or "float64" for name in pair.compared)
