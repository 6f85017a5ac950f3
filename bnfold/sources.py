"""Where affines come from: runs of BatchNorms and constant per-channel Add, Sub, Mul, Div, composed into one (s, t).

A run without a BatchNorm counts as a BatchNorm in disguise when a Mul or Div in it varies over the channels: Keras and
TensorFlow exporters write those. A lone Add of a vector is a bias, not a BatchNorm.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from bnfold.affine import ChannelAffine
from bnfold.carriers.elementwise import constant_affine
from bnfold.decision import Subject
from bnfold.graph import FoldGraph, Operator, Pending, PlacedAffine, Value
from bnfold.views import Arithmetic, BatchNorm, ConstantOperand


@dataclass(frozen=True, eq=False)
class Source:
    """A run of operators that together compute one affine of one value.

    Attributes:
        operators: The run, in order; each but the last is read by the next one only.
        placed: What the run computes.
        offset: How much cancels: the largest |mean| / sqrt(var + epsilon), or |shift| where no statistics are known.
        offset_after: How much cancels when the affine is undone: the same of what it computes, |beta / gamma|.
        before: An estimate of the largest |x| that comes in; None without statistics.
        after: An estimate of the largest |y| that goes out; None without statistics.
    """

    operators: tuple[Operator, ...]
    placed: PlacedAffine
    offset: float
    offset_after: float
    before: float | None
    after: float | None

    @property
    def input(self) -> Value:
        """The value that the affine is applied to."""
        return self.operators[0].inputs[0]

    @property
    def output(self) -> Value:
        """The value that the affine computes."""
        value = self.operators[-1].outputs[0]
        assert value is not None
        return value

    @property
    def subjects(self) -> list[Subject]:
        """One for each BatchNorm in the run; the run itself when there is none."""
        named = [op for op in self.operators if isinstance(op.view, BatchNorm)]
        if named:
            return [Subject(op.name, op.kind, op.view.affine.channels, True) for op in named]  # type: ignore[union-attr]
        kind = "-".join(op.kind for op in self.operators)
        return [Subject(self.operators[0].name, kind, self.placed.affine.channels, False)]


def runs(graph: FoldGraph, wanted: Callable[[str], bool]) -> Iterator[tuple[Operator, ...]]:
    """Every maximal run of affine operators whose names are `wanted`, in topological order."""
    taken: set[int] = set()
    for operator in graph.operators:
        if operator.index in taken or not _is_affine(operator) or not wanted(operator.name):
            continue
        run = [operator]
        while (following := _only_reader(graph, run[-1])) is not None and wanted(following.name):
            run.append(following)
        taken.update(op.index for op in run)
        yield tuple(run)


def _is_affine(operator: Operator) -> bool:
    return isinstance(operator.view, BatchNorm | ConstantOperand)


def _only_reader(graph: FoldGraph, operator: Operator) -> Operator | None:
    value = operator.outputs[0]
    if value is None or graph.visible(value) is not None:
        return None
    uses = graph.uses(value)
    return uses[0].operator if len(uses) == 1 and _is_affine(uses[0].operator) else None


def compose(run: tuple[Operator, ...], pending: Pending) -> Iterator[Source]:
    """The sources in `run`: usually one; a constant that varies along several axes, or another axis, cuts it.

    Each is composed when it is asked for, because the one before it may be pushed into the rest of the run.
    """
    part: list[tuple[Operator, PlacedAffine]] = []
    for operator in run:
        placed = _placed(operator, pending)
        if part and (placed is None or _then([p for _, p in part], placed) is None):
            yield from _source(part)
            part, placed = [], _placed(operator, pending)
        if placed is not None:
            part.append((operator, placed))
    yield from _source(part)


def _placed(operator: Operator, pending: Pending) -> PlacedAffine | None:
    match operator.view:
        case BatchNorm(axis=axis):
            return PlacedAffine.on_axis(pending.affine(operator), axis)
        case ConstantOperand() as view:
            return constant_affine(view, pending.constant(operator))
    return None


def _then(before: list[PlacedAffine], after: PlacedAffine) -> PlacedAffine | None:
    """All of `before` and then `after`, if they live on one axis; one that is the same everywhere joins any."""
    places = {(p.axes, p.sizes) for p in (*before, after) if p.axes}
    if len(places) > 1:
        return None
    axes, sizes = next(iter(places), ((), ()))
    channels = sizes[0] if sizes else 1
    parts = [p.affine if p.axes else p.affine.repeat(channels) for p in (*before, after)]
    total = parts[0]
    for part in parts[1:]:
        total = total.then(part)
    return PlacedAffine(total, axes, sizes)


def _source(part: list[tuple[Operator, PlacedAffine]]) -> list[Source]:
    operators = tuple(operator for operator, _ in part)
    if not any(_scales_channels(operator, placed) for operator, placed in part):
        return []
    total = _then([p for _, p in part[:-1]], part[-1][1])
    assert total is not None
    views = [op.view for op in operators if isinstance(op.view, BatchNorm)]
    offset = max([v.offset for v in views], default=float(abs(total.affine.shift).max()))
    known = len(views) == len(operators)
    before = views[0].before if known else None
    after = views[-1].after if known else None
    return [Source(operators, total, offset, _offset_after(total.affine, views), before, after)]


def _offset_after(affine: ChannelAffine, views: list[BatchNorm]) -> float:
    """The largest |mean| / deviation of what comes out, `|s*mean + t| / |s*deviation|`."""
    mean, deviation = (views[0].mean, views[0].deviation) if views else (0.0, 1.0)
    with np.errstate(all="ignore"):
        return float(np.abs((affine.scale * mean + affine.shift) / (affine.scale * deviation)).max())


def _scales_channels(operator: Operator, placed: PlacedAffine) -> bool:
    if isinstance(operator.view, BatchNorm):
        return True
    product = isinstance(operator.view, ConstantOperand) and operator.view.arithmetic in (
        Arithmetic.MULTIPLY,
        Arithmetic.DIVIDE,
    )
    return product and bool(placed.axes)
