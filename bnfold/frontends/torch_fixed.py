"""Operators whose constants have no place in the module tree: what would change them is refused.

`x + 1.5` in a forward pass takes no scale, `relu` no new bound; what passes without a change passes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bnfold import carriers
from bnfold.affine import ChannelAffine, Float64Array
from bnfold.decision import Reason, Refusal
from bnfold.graph import Answer, Bounds, Operator, PlacedAffine, SetBounds, Step
from bnfold.views import Carrier, View


@dataclass(frozen=True, eq=False)
class _Stored:
    """The constants of one operator, which never change."""

    held_constant: Float64Array | None
    held_bounds: Bounds | None

    def constant(self, _operator: Operator) -> Float64Array:
        assert self.held_constant is not None
        return self.held_constant

    def bounds(self, _operator: Operator) -> Bounds:
        assert self.held_bounds is not None
        return self.held_bounds

    def affine(self, operator: Operator) -> ChannelAffine:
        raise AssertionError(operator.name)

    @property
    def spends(self) -> bool:
        return True  # so that it is refused for the reason that counts here


def fixed(view: View, constant: Float64Array | None, bounds: Bounds | None) -> Carrier:
    """`view` as a carrier that changes no constant."""
    stored = _Stored(constant, bounds)

    def pull(operator: Operator, wanted: PlacedAffine) -> Step | Refusal:
        return _unchanged(operator, carriers.pull(replace(operator, view=view), wanted, stored))

    def push(operator: Operator, seen: PlacedAffine) -> Step | Refusal:
        return _unchanged(operator, carriers.push(replace(operator, view=view), {0: seen}, stored))

    return Carrier(pull, push)


def _unchanged(operator: Operator, answer: Answer) -> Step | Refusal:
    if isinstance(answer, Refusal):
        return answer
    assert isinstance(answer, Step)  # one input, one way
    if not answer.edits:
        return answer
    is_bound = any(isinstance(edit, SetBounds) and edit.bounds.varies for edit in answer.edits)
    why = "a bound for each channel has no place there" if is_bound else "its constants are part of a forward pass"
    return Refusal(Reason.MODULE_CANNOT_HOLD_IT, operator.name, why)
