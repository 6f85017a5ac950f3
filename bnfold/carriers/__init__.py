"""How a channel affine passes each kind of operator: one pull, one push, and the conditions under which they are exact.

*Pull*: an affine wanted after the operator, asked of its inputs. *Push*: an affine on inputs, seen after it.
A rule proposes a `Step` or returns a `Refusal`; it changes nothing.
"""

from __future__ import annotations

from bnfold.carriers import activation, clamp, elementwise, join, linear, pair, pooling, resample, select, shape
from bnfold.decision import Reason, Refusal
from bnfold.graph import Answer, Operator, Pending, PlacedAffine, Step
from bnfold.views import (
    Barrier,
    BatchNorm,
    Carrier,
    Cast,
    Clamp,
    Concat,
    ConstantOperand,
    Homogeneous,
    Linear,
    Negate,
    Product,
    Reshape,
    Same,
    Sum,
    Transpose,
)
from bnfold.window_views import Average, Maximum, Pad, Resample, Select, Spread, Total

__all__ = ["pull", "push"]


def pull(operator: Operator, wanted: PlacedAffine, pending: Pending, output: int = 0) -> Answer:  # noqa: PLR0911, PLR0912
    """What `operator` asks of its inputs so that `wanted` is computed at `output`; the table of all carriers."""
    if isinstance(operator.view, Select):
        return select.pull_select(operator, operator.view, wanted, output)
    if output != 0:
        return Refusal(Reason.OPERATOR_IS_NOT_LINEAR, operator.name, "the value is not its first output")
    match operator.view:
        case Linear() as view:
            return linear.pull_linear(operator, view, wanted)
        case BatchNorm() as view:
            return elementwise.pull_batchnorm(operator, view, wanted, pending)
        case ConstantOperand() as view:
            return elementwise.pull_constant(operator, view, wanted, pending)
        case Cast() as view:
            return elementwise.pull_cast(operator, view, wanted)
        case Same():
            return shape.pull_same(operator, wanted)
        case Transpose() as view:
            return shape.pull_transpose(operator, view, wanted)
        case Reshape():
            return shape.pull_reshape(operator, wanted)
        case Concat() as view:
            return join.pull_concat(operator, view, wanted)
        case Average() as view:
            return pooling.pull_average(operator, view, wanted)
        case Maximum() as view:
            return pooling.pull_maximum(operator, view, wanted)
        case Resample() as view:
            return resample.pull_resample(operator, view, wanted)
        case Pad() as view:
            return resample.pull_pad(operator, view, wanted, pending)
        case Homogeneous() as view:
            return activation.pull_homogeneous(operator, view, wanted)
        case Clamp() as view:
            return clamp.pull_clamp(operator, view, wanted, pending)
        case Sum() as view:
            return pair.pull_sum(operator, view, wanted)
        case Product() as view:
            return pair.pull_product(operator, view, wanted)
        case Total() as view:
            return pooling.pull_total(operator, view, wanted)
        case Negate():
            return elementwise.pull_negate(wanted)
        case Spread() as view:
            return select.pull_spread(operator, view, wanted)
        case Carrier() as view:
            return view.pull(operator, wanted)
        case Barrier() as view:
            return view.refusal


def push(operator: Operator, seen: dict[int, PlacedAffine], pending: Pending) -> Step | Refusal:  # noqa: PLR0911, PLR0912
    """What is seen after `operator` when its inputs at the keys of `seen` carry affines; the table of all carriers."""
    if isinstance(operator.view, Barrier):
        return operator.view.refusal
    if isinstance(operator.view, Concat):
        return join.push_concat(operator, operator.view, seen)
    if isinstance(operator.view, Sum):
        return pair.push_sum(operator, operator.view, seen)
    if isinstance(operator.view, Product):
        return pair.push_product(operator, operator.view, seen)
    if isinstance(operator.view, Barrier):
        return operator.view.refusal
    one = seen.get(0)
    if one is None or len(seen) > 1:
        return Refusal(Reason.OPERATOR_IS_NOT_LINEAR, operator.name, "the affine is on an input that is not the data")
    match operator.view:
        case Linear() as view:
            return linear.push_linear(operator, view, one)
        case BatchNorm() as view:
            return elementwise.push_batchnorm(operator, view, one, pending)
        case ConstantOperand() as view:
            return elementwise.push_constant(operator, view, one, pending)
        case Cast() as view:
            return elementwise.push_cast(operator, view, one)
        case Same():
            return shape.push_same(operator, one)
        case Transpose() as view:
            return shape.push_transpose(operator, view, one)
        case Reshape():
            return shape.push_reshape(operator, one)
        case Average() as view:
            return pooling.push_average(operator, view, one)
        case Maximum() as view:
            return pooling.push_maximum(operator, view, one)
        case Resample() as view:
            return resample.push_resample(operator, view, one)
        case Pad() as view:
            return resample.push_pad(operator, view, one, pending)
        case Homogeneous() as view:
            return activation.push_homogeneous(operator, view, one)
        case Clamp() as view:
            return clamp.push_clamp(operator, view, one, pending)
        case Total() as view:
            return pooling.push_total(operator, view, one)
        case Negate():
            return elementwise.push_negate(one)
        case Select() as view:
            return select.push_select(operator, view, one)
        case Spread() as view:
            return select.push_spread(operator, view, one)
        case Carrier() as view:
            return view.push(operator, one)
