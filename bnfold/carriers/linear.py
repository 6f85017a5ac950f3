"""Linear operators absorb: `s*(W*x + b) + t` at the output, `W*(s*x + t) + b` at the input."""

from __future__ import annotations

from bnfold.decision import Reason, Refusal
from bnfold.graph import AbsorbInput, AbsorbOutput, Operator, PlacedAffine, Step
from bnfold.views import Linear


def pull_linear(operator: Operator, view: Linear, wanted: PlacedAffine) -> Step | Refusal:
    """Exact for any geometry, if the affine lives on the output channels."""
    affine = wanted.spread(view.output_axis, view.outputs)
    if affine is None:
        return Refusal(Reason.OPERATOR_MIXES_CHANNELS, operator.name)
    return Step(edits=(AbsorbOutput(operator, affine),))


def push_linear(operator: Operator, view: Linear, seen: PlacedAffine) -> Step | Refusal:
    """The scale always; the shift where the view says that every output sees every tap."""
    affine = seen.spread(view.input_axis, view.inputs)
    if affine is None:
        return Refusal(Reason.OPERATOR_MIXES_CHANNELS, operator.name)
    if view.shift_at_input is not None and not affine.is_pure_scale:
        return view.shift_at_input
    return Step(edits=(AbsorbInput(operator, affine),))
