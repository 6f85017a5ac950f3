"""What became of a BatchNorm: `Folded`, `Reduced` or `Kept`, and for the last two the `Reason`.

"Cannot fold" is a value that is returned, never an exception, a log line or an OTHER.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal, TypeAlias

#: Into the producers, into the consumers, into a parallel branch, or computed once because it normalises a constant.
Direction: TypeAlias = Literal["pull", "push", "merge", "evaluate"]


class Reason(Enum):
    """Why an affine could not go on; the value is a full clause that a report can print."""

    #: `training_mode=1`, `is_test=0`, or the outputs that only training has are there.
    NORMALISES_BY_BATCH_STATISTICS = "the BatchNorm normalises by the statistics of the batch (training mode)"
    #: gamma, beta, mean or var is computed from the model's inputs.
    PARAMETERS_NOT_CONSTANT = "a parameter of the BatchNorm is computed at run time"
    #: Only with `keep_overridable`: a parameter or weight is a graph input with a default.
    PARAMETER_IS_OVERRIDABLE = "the caller may override the initializer, because it is also a graph input"
    #: `var + epsilon <= 0`, or an infinite or NaN parameter.
    STATISTICS_NOT_FINITE = "a channel's scale or shift is not finite (var + epsilon <= 0, or NaN)"
    #: Parameters whose lengths contradict each other.
    PARAMETERS_MISMATCHED = "the BatchNorm's parameters do not have one entry per channel"
    #: `spatial=0` of opsets below 9: one statistic per element, not per channel.
    NORMALISES_PER_ELEMENT = "the BatchNorm normalises each element by itself (spatial=0)"
    #: Excluded by `keep` or not included by `only`.
    EXCLUDED_BY_CALLER = "the caller asked to keep it"
    #: In a model-local function that nothing calls, or whose operator set or attributes do not allow to write it out.
    INSIDE_FUNCTION = "it is in a model-local function that cannot be written out at its calls"
    #: A pull arrived at an input of the model.
    READS_MODEL_INPUT = "nothing constant produces the value: it is an input of the model"
    #: A pull arrived at a constant tensor.
    IS_CONSTANT = "the value is a constant, which the rule does not rewrite"
    #: A pull would change a value that the caller sees, or a push one that the caller gets.
    IS_MODEL_OUTPUT = "the value is an output of the model and must keep its meaning"
    #: A pull in a body arrived at an input of the body, or at a value of the graphs around it.
    ENTERS_BODY = "the value comes from outside the body of an If, Loop or Scan, and nothing moves across its border"
    #: A pull in a body would change what the body hands on, or a push what it gets.
    LEAVES_BODY = "the value is handed out of the body of an If, Loop or Scan, and nothing moves across its border"
    #: A way through the graph arrived at an If, Loop or Scan itself.
    OPERATOR_HOLDS_BODIES = "the operator is an If, Loop or Scan, and nothing moves across the border of its bodies"
    #: A body of a control-flow operator reads the value.
    CAPTURED_BY_SUBGRAPH = "the body of a control-flow operator reads the value"
    #: A pull would change the value for readers that do not ask for it.
    VALUE_HAS_OTHER_READERS = "other operators read the value as it is"
    #: A push found no reader that could take the affine.
    NOTHING_READS_IT = "no operator reads the value"
    #: Two ways through the graph ask for different affines on one value.
    READERS_DISAGREE = "two readers need different affines on the same value"
    #: Nested sums of variables, each of which can take the shift at either operand.
    TOO_MANY_WAYS = "the ways through the graph are too many to try"
    #: Sigmoid, Softmax, and everything else through which no affine passes.
    OPERATOR_IS_NOT_LINEAR = "the operator is not linear, and no affine passes through it"
    #: A standard operator without a rule.
    OPERATOR_HAS_NO_RULE = "bnfold has no rule that passes an affine through the operator"
    #: A custom domain, or a model-local function.
    OPERATOR_IS_UNKNOWN = "bnfold does not know the operator"
    #: Conv or MatMul of two variables; a bias computed at run time.
    WEIGHTS_NOT_CONSTANT = "the operator's weights or bias are computed at run time"
    #: A bias of 8 bits, a scale that is no float, DequantizeLinear behind an operator that computes.
    WEIGHTS_ARE_QUANTISED = "the operator's weights or bias are quantised in a form that bnfold does not read"
    #: One scale per tensor before operator set 13; factors that differ along another axis than the scales do.
    QUANTISATION_IS_TOO_COARSE = "the quantised weights share a scale where the fold needs different ones"
    #: A negative scale on a channel that uses the whole range of its integers.
    SIGN_DOES_NOT_FIT_INTEGERS = (
        "a channel's quantised weights would change their sign, which their integers do not fit"
    )
    #: An int32 bias whose new scale, input scale times weight scale, is not known.
    BIAS_STEP_NOT_KNOWN = "the scale that the quantised bias would need is not known"
    #: An int32 bias that its new scale is too small for.
    QUANTISED_BIAS_OVERFLOWS = "the quantised bias would not fit 32 bits"
    #: QuantizeLinear, DynamicQuantizeLinear, and the DequantizeLinear behind them.
    ROUNDED_TO_A_GRID = "the value is rounded to a quantisation grid, which the affine would move"
    #: QLinearConv, QLinearMatMul, ConvInteger, MatMulInteger.
    COMPUTES_IN_INTEGERS = "the operator computes with integers, which an affine would have to be rounded to"
    #: The operator adds up entries of the axis that the affine lives on.
    OPERATOR_MIXES_CHANNELS = "the operator works across the axis that the affine lives on"
    #: A shape is unknown, or the axis cannot be followed.
    AXIS_NOT_PROVEN = "it is not proven which axis of the value holds the channels"
    #: A shift would have to enter zero padding.
    SHIFT_MEETS_PADDING = "the shift would be missing in the padding"
    #: f(s*x + t) is not an affine of f(x) when t != 0.
    SHIFT_MEETS_ACTIVATION = "a shift does not pass through the activation"
    #: s*x + z is not an affine of x + z.
    SCALE_IS_ON_ONE_OPERAND = "only one operand of the sum carries the scale"
    #: The shift meets a product with something that is not constant per channel.
    SHIFT_MEETS_PRODUCT = "a shift does not pass through the product"
    #: Max and the activations turn over with a negative scale.
    SCALE_IS_NOT_POSITIVE = "a channel's scale is negative or zero, which does not pass through the operator"
    #: A division by the scale would be needed.
    SCALE_IS_ZERO = "a channel's scale is zero, and the rule would have to divide by it"
    #: MaxPool's second output.
    INDICES_ARE_READ = "the pooling operator's Indices output is read"
    #: float32 to float16, or to an integer.
    CAST_NARROWS = "the Cast rounds, so that nothing passes through it exactly"
    #: A folded weight or bias above the dtype's largest number.
    OVERFLOWS_DTYPE = "a folded number would not fit the stored dtype"
    #: A channel's largest folded weight below 2^10 times the smallest subnormal.
    UNDERFLOWS_DTYPE = "a channel's folded weights would lose precision as subnormal numbers"
    #: The activations along the route might leave float16's range.
    ACTIVATIONS_MIGHT_OVERFLOW = "the activations along the route might not fit float16"
    #: |mean| / sqrt(var + epsilon) above 8: the shift would be added only after cancellation.
    ILL_CONDITIONED = "the mean is too many standard deviations from zero for the shift to move past the operator"
    #: PyTorch: a module called twice, tied or computed weights, hooks; constants in the code of a forward pass.
    MODULE_CANNOT_HOLD_IT = "the PyTorch module has no place of its own for the changed numbers"
    #: PyTorch: LazyBatchNorm2d and its kin, and what a lazy Conv or Linear would have to absorb.
    NOT_INITIALISED = "the module is lazy and was not run yet"
    #: PyTorch: a way through a part of the module arrived at the part's own input or output.
    PART_ENDS_HERE = "the value enters or leaves the part that torch.export captures by itself"
    #: PyTorch: numbers, flags or objects that the forward pass takes, which another call may give otherwise.
    ARGUMENTS_ARE_OPEN = "the forward pass around it may be called with other numbers or flags than the example's"
    #: PyTorch: a branch of the uncaptured code, or a module of a list, that no observed run reached.
    NOT_REACHED = "the runs on the example inputs did not call it"
    #: PyTorch: a branch that no observed run took names the module, a part of it, or a method that may call it.
    CODE_NOT_OBSERVED = "code that the runs on the example inputs did not reach may use the module in another way"
    #: PyTorch: inputs of other ranks or types, for which the part computes something else.
    CALLS_DISAGREE = "the module is called with inputs of several kinds, and not for all of them the fold is the same"
    #: Nodes that the fold would add, or an activation that would get a bound for each channel.
    COSTS_MORE = "the operators that the fold would need cost more than the BatchNorm does"


#: What a user can do about it, where something helps.
REMEDIES: dict[Reason, str] = {
    Reason.NORMALISES_BY_BATCH_STATISTICS: "export the model in eval mode",
    Reason.PARAMETERS_NOT_CONSTANT: "try --simplify, which evaluates what is constant",
    Reason.PARAMETER_IS_OVERRIDABLE: "leave out --keep-overridable",
    Reason.STATISTICS_NOT_FINITE: "recalibrate the statistics",
    Reason.EXCLUDED_BY_CALLER: "change --keep or --only",
    Reason.AXIS_NOT_PROVEN: "give the model static shapes, or try --simplify",
    Reason.OVERFLOWS_DTYPE: "convert the model to float32 first",
    Reason.UNDERFLOWS_DTYPE: "convert the model to float32 first",
    Reason.ACTIVATIONS_MIGHT_OVERFLOW: "convert the model to float32 first",
    Reason.ROUNDED_TO_A_GRID: "quantise the model without a QuantizeLinear beside the BatchNorm, or fold it first",
    Reason.COMPUTES_IN_INTEGERS: "fold before the model is quantised",
    Reason.COSTS_MORE: "try --reduce, which makes activations dearer if BatchNorms vanish by that",
    Reason.SHIFT_MEETS_PADDING: "train with padding by reflection or without padding",
    Reason.MODULE_CANNOT_HOLD_IT: (
        "try as_graph=True, which makes a graph of the module, and reduce=True with it where an activation would get a "
        "bound for each channel"
    ),
    Reason.WEIGHTS_NOT_CONSTANT: "try --simplify, which evaluates what is constant",
    Reason.NOT_INITIALISED: "run the module once before, which gives it its parameters",
    Reason.PART_ENDS_HERE: "let one module hold the BatchNorm and what it follows, with no decision in between",
    Reason.ARGUMENTS_ARE_OPEN: "fold with as_graph=True, or a module whose forward pass takes tensors alone",
    Reason.NOT_REACHED: "give example_inputs for which the forward pass calls it",
    Reason.CODE_NOT_OBSERVED: "give example_inputs for which the forward pass reaches all of its code",
}


@dataclass(frozen=True)
class Refusal:
    """Why an affine stopped, and where.

    Attributes:
        reason: The condition that did not hold.
        where: The node, or the value, at which it did not hold.
        detail: The figures, when there are any.
    """

    reason: Reason
    where: str = ""
    detail: str = ""

    def __str__(self) -> str:
        place = f" at {self.where}" if self.where else ""
        detail = f" ({self.detail})" if self.detail else ""
        return f"{self.reason.value}{place}{detail}"


@dataclass(frozen=True)
class Subject:
    """The BatchNorm, or the constant chain that is one in disguise, that a decision is about.

    Attributes:
        name: The node's name; for a chain that of its first node.
        kind: The operators, joined by "-": "BatchNormalization", "Sub-Mul-Add".
        channels: How many channels it has; 0 when its parameters cannot be read.
        is_batchnorm: Whether it is a BatchNorm by name.
    """

    name: str
    kind: str
    channels: int
    is_batchnorm: bool


@dataclass(frozen=True)
class Folded:
    """It is gone without a trace.

    Attributes:
        subject: What was folded.
        direction: "pull" into the producers, "push" into the consumers, or "evaluate".
        into: The operators that absorbed it; if it was evaluated, those that read the constant.
        through: The operators that the affine passed on the way.
    """

    subject: Subject
    direction: Direction
    into: tuple[str, ...]
    through: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reduced:
    """It became something else: cheaper, or what a compiler without BatchNorm knows.

    Attributes:
        subject: What was reduced.
        direction: "pull" or "push": where the rest of it went; None where nothing of it went anywhere.
        into: The operators that absorbed the rest.
        through: The operators that the affine passed on the way.
        to: The operators that are left of it, joined by "-".
        refusals: Why it is not wholly gone: of the pull and of the push.
    """

    subject: Subject
    direction: Direction | None
    into: tuple[str, ...]
    through: tuple[str, ...]
    to: str
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True)
class Kept:
    """It stayed.

    Attributes:
        subject: What stayed.
        refusals: Why: of the pull and of the push, or the one reason that forbids both.
    """

    subject: Subject
    refusals: tuple[Refusal, ...]

    @property
    def remedy(self) -> str:
        """What would help; empty when nothing does."""
        return next((REMEDIES[r.reason] for r in self.refusals if r.reason in REMEDIES), "")


Decision: TypeAlias = Folded | Reduced | Kept
