"""Other readers of a pulled value undo its change: `x' = A(x)` is read as `A^-1(x')`, which they absorb at their input.

Exact where no scale is zero and the readers take the shift; the engine asks for it only where nothing else helps.
"""

from __future__ import annotations

from dataclasses import dataclass

from bnfold import carriers
from bnfold.affine import ChannelAffine
from bnfold.bench import Bench
from bnfold.decision import Reason, Refusal
from bnfold.graph import Operator, PlacedAffine, SetAffine, Step, Use, Value
from bnfold.routes import Route, Seen, excluded, see, send
from bnfold.sources import Source
from bnfold.views import BatchNorm, Linear
from bnfold.window_views import Select


@dataclass(frozen=True, eq=False)
class Request:
    """`uses` of `value`, which becomes `placed` of what it was, must go on computing what they did."""

    value: Value
    placed: PlacedAffine
    uses: list[Use]


def is_untouched(bench: Bench, use: Use, placed: PlacedAffine) -> bool:
    """Whether the reader picks only channels on which the affine is the identity."""
    if not isinstance(use.operator.view, Select):
        return False
    step = carriers.push(use.operator, {use.position: placed}, bench)
    return isinstance(step, Step) and all(p.affine.is_identity for p in step.placed.values())


def undo(bench: Bench, source: Source, route: Route, requests: list[Request]) -> Route | Refusal:
    """`route` with what the readers named in `requests` would do; a refusal where one of them cannot."""
    seen: Seen = {}
    back = Route("push")
    for request in requests:
        if not request.placed.affine.scale.all():
            return Refusal(Reason.SCALE_IS_ZERO, request.value, f"read by {request.uses[0].operator.name}")
        twins = [use for use in request.uses if _is_twin(bench, use, request.placed)]
        for use in twins:
            back.took(use.operator, Step(edits=(_neutral(use.operator),)))
        others = [use for use in request.uses if use not in twins]
        see(others, request.placed.with_affine(request.placed.affine.inverse()), seen)
        back.undone += [request.placed] if others else []
    sent = send(bench, seen)
    if isinstance(sent, Refusal):
        return Refusal(Reason.VALUE_HAS_OTHER_READERS, requests[0].value, f"{sent.where}: {sent.reason.value}")
    return _joined(source, route, back.joined(sent)) if requests else route


def _is_twin(bench: Bench, use: Use, placed: PlacedAffine) -> bool:
    """Whether the reader is a BatchNorm that computes just what its input becomes."""
    view = use.operator.view
    if not isinstance(view, BatchNorm) or excluded(bench, use.operator) is not None:
        return False
    return placed.equals(PlacedAffine.on_axis(bench.affine(use.operator), view.axis))


def _neutral(operator: Operator) -> SetAffine:
    assert isinstance(operator.view, BatchNorm)
    return SetAffine(operator, ChannelAffine.identity(operator.view.affine.channels))


def _joined(source: Source, route: Route, back: Route) -> Route | Refusal:
    """Both together, if they meet nowhere but at linear operators, whose two ends are independent."""
    ways = {op.index for op in (*source.operators, *route.through, *route.into) if not isinstance(op.view, Linear)}
    met = [op.name for op in (*back.through, *back.into) if op.index in ways]
    if met:
        return Refusal(Reason.READERS_DISAGREE, met[0])
    return route.joined(Route("pull", beside=[*back.through, *back.into], undone=back.undone, edits=back.edits,
                              values=back.values))  # fmt: skip
