"""One rule per operator: from the tracks of its inputs to the tracks of its output, each a proven bound.

`M >= |x|`, `E >= |x~ - x| / u`: monotone in both, exact for one stored factor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto

from bnfold.errors import ModelError
from bnfold.frontends.onnx_magnitude_clamps import clips, extremes
from bnfold.frontends.onnx_magnitude_tracks import Bound, TracksBuilder, attribute_of, stored_at, where_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from onnx import NodeProto

# fmt: off
_COPIES = frozenset((
    "Cast", "CastLike", "Concat", "Constant", "ConstantOfShape", "DequantizeLinear", "DepthToSpace", "Dropout",
    "Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
))
# fmt: on


def is_copy(node: NodeProto) -> bool:
    """Whether each element of the output is one stored number, or a code times one stored scale."""
    return node.op_type in _COPIES


def _passes(tracks: TracksBuilder, node: NodeProto) -> None:
    """Operators that are 1-Lipschitz and zero at zero, element by element."""
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
        training = tracks.constants.get(node.input[2])
        if training is None or training.any():
            raise ModelError("no rounding bound is known for Dropout in training mode", where=where_of(node))
    if node.op_type == "Cast" and attribute_of(node, "to", 0) != TensorProto.DOUBLE:
        raise ModelError("no rounding bound is known for Cast to a type that is not float", where=where_of(node))
    tracks.set_bound(node.output[0], tracks.bound(node.input[0]))


def _moves(tracks: TracksBuilder, node: NodeProto) -> None:
    """Operators that are linear in one input with weights >= 0, and maxima: the same operator on both tracks."""
    data = tracks.bound(node.input[0])
    others = [tracks.exact(name, node) for name in node.input[1:]]
    count = 1 if node.op_type == "MaxPool" else len(node.output)
    magnitudes = tracks.outputs(node.op_type, [data.magnitude, *others], node.attribute, count)
    errors: Sequence[str | None] = (
        magnitudes
        if data.rounds_once
        else [None] * count
        if data.error is None
        else tracks.outputs(node.op_type, [data.error, *others], node.attribute, count)
    )
    for name, magnitude, error in zip(node.output, magnitudes, errors, strict=False):
        tracks.set_bound(name, Bound(magnitude, error))


def _joins(tracks: TracksBuilder, node: NodeProto) -> None:
    """Sums, means, Concat and Where: the errors combine as the magnitudes do."""
    op_type = {"Sub": "Add"}.get(node.op_type, node.op_type)
    selector = [tracks.exact(node.input[0], node)] if node.op_type == "Where" else []
    bounds = [tracks.bound(name) for name in node.input[len(selector) :]]
    magnitude = tracks.node(op_type, selector + [b.magnitude for b in bounds], node.attribute)
    error = None
    if any(b.error for b in bounds):
        error = tracks.node(op_type, selector + [tracks.error_or_zeros(b) for b in bounds], node.attribute)
    tracks.set_bound(node.output[0], Bound(magnitude, error))


def _multiplies(tracks: TracksBuilder, node: NodeProto) -> None:
    """Conv, ConvTranspose, Gemm, MatMul, Mul: `M = Ma*Mb + Mc`, `E = Ea*(Mb + u*Eb) + Ma*Eb + Ec`."""
    attributes = [_absolute(a) if a.name in {"alpha", "beta"} else a for a in node.attribute]
    first, second = tracks.bound(node.input[0]), tracks.bound(node.input[1])
    bias = tracks.bound(node.input[2]) if len(node.input) > 2 and node.input[2] else None

    def apply(a: str, b: str, c: str | None) -> str:
        return tracks.node(node.op_type, [a, b] if c is None else [a, b, c], attributes)

    magnitude = apply(first.magnitude, second.magnitude, bias.magnitude if bias else None)
    added, more = bias.error if bias else None, 1 + tracks.roundoff
    bias_rounds_once = bias is None or bias.rounds_once
    one_factor = (second.rounds_once and first.error is None) or (first.rounds_once and second.error is None)
    if one_factor and bias_rounds_once:
        error: str | None = magnitude
    elif second.rounds_once:
        error = apply(tracks.enlarged(first, more), second.magnitude, added)
    elif first.rounds_once:
        error = apply(first.magnitude, tracks.enlarged(second, more), added)
    else:
        terms = [apply(first.error, tracks.enlarged(second, tracks.roundoff), None)] if first.error else []
        terms += [apply(first.magnitude, second.error, None)] if second.error else []
        terms += [apply(tracks.zeros_like(first.magnitude), second.magnitude, added)] if added else []
        error = tracks.node("Sum", terms) if terms else None
    tracks.set_bound(node.output[0], Bound(magnitude, error))


def _divides(tracks: TracksBuilder, node: NodeProto) -> None:
    """`x / c`: `M = Mx/|c|`, `E = (Ex + Mx) / (|c|*(1 - u))`, as `1/c~` is off by at most `u/(1 - u)`.

    A fed divisor has no error: `M = Mx/|c|`, `E = Ex/|c|`. One that is computed has no lower bound.
    """
    data, fed = tracks.bound(node.input[0]), Bound(node.input[1], None)
    if node.input[1] not in tracks.constants and tracks.bound(node.input[1]) == fed:
        error = tracks.node("Div", [data.error, fed.magnitude]) if data.error else None
        tracks.set_bound(node.output[0], Bound(tracks.node("Div", [data.magnitude, fed.magnitude]), error))
        return
    divisor = np.abs(stored_at(tracks, node, 1))
    magnitude = tracks.node("Div", [data.magnitude, tracks.constant(divisor)])
    error = tracks.node("Div", [tracks.enlarged(data, 1.0), tracks.constant(divisor * (1 - tracks.roundoff))])
    tracks.set_bound(node.output[0], Bound(magnitude, error))


def _normalises(tracks: TracksBuilder, node: NodeProto) -> None:
    """BatchNormalization: `M = |s|*(Mx + |mean|) + |beta|`, `s = gamma/sqrt(var + epsilon)`.

    s is off by at most `r*u` of itself, `r = ((1 + u)/sqrt(1 - u) - 1)/u`, 3/2 for u -> 0, so that
    `E = (1 + r*u)*|s|*(Ex + |mean|) + r*|s|*(Mx + |mean|) + |beta|`.
    """
    if attribute_of(node, "training_mode", 0) or sum(bool(o) for o in node.output) > 1:
        raise ModelError("no rounding bound is known for BatchNormalization in training mode", where=where_of(node))
    data, u = tracks.bound(node.input[0]), tracks.roundoff
    gamma, beta, mean, var = (stored_at(tracks, node, i) for i in range(1, 5))
    ratio = ((1 + u) / np.sqrt(1 - u) - 1) / u if u else 1.5

    def apply(x: str, scale: np.ndarray[Any, Any], bias: np.ndarray[Any, Any]) -> str:
        constants = [tracks.constant(v) for v in (scale, bias, -np.abs(mean), var)]
        return tracks.node(node.op_type, [x, *constants], node.attribute)

    magnitude = apply(data.magnitude, np.abs(gamma), np.abs(beta))
    moved = apply(tracks.error_or_zeros(data), np.abs(gamma) * (1 + ratio * u), tracks.rounded(beta))
    scaled = apply(data.magnitude, tracks.rounded(gamma) * ratio, np.zeros_like(beta))
    tracks.set_bound(node.output[0], Bound(magnitude, tracks.node("Add", [moved, scaled])))


def _leaks(tracks: TracksBuilder, node: NodeProto) -> None:
    """LeakyRelu and PRelu: `max(1, |slope|)` times both tracks, and the slope's own error `Eslope*Mx`."""
    data, bound = tracks.bound(node.input[0]), None
    if node.op_type == "PRelu":
        bound = tracks.bound(node.input[1])
        larger = tracks.node("Max", [tracks.enlarged(bound, tracks.roundoff), tracks.constant(np.ones(()))])
    else:
        larger = tracks.constant(np.asarray(max(1.0, abs(float(attribute_of(node, "alpha", np.float32(0.01)))))))
    magnitude = tracks.node("Mul", [data.magnitude, larger])
    error = tracks.node("Mul", [data.error, larger]) if data.error else None
    if bound is not None and bound.error is not None:
        own = tracks.node("Mul", [data.magnitude, bound.error])
        error = own if error is None else tracks.node("Add", [error, own])
    tracks.set_bound(node.output[0], Bound(magnitude, error))


def _pads(tracks: TracksBuilder, node: NodeProto) -> None:
    """Pad: both tracks are padded alike, with |v|; a v that is stored, as tensor or attribute, has the error |v|."""
    data = tracks.bound(node.input[0])
    others = [tracks.exact(name, node) if i != 1 else name for i, name in enumerate(node.input[1:])]
    stored = len(others) > 1 and bool(others[1])
    size = np.abs(stored_at(tracks, node, 2)) if stored else None

    rounded = stored or any(a.name == "value" for a in node.attribute)

    def apply(x: str, value: np.ndarray[Any, Any] | None) -> str:
        inputs = [o if i != 1 or value is None else tracks.constant(value) for i, o in enumerate(others)]
        attributes = [onnx.helper.make_attribute("value", abs(a.f)) if a.name == "value" else a for a in node.attribute]
        return tracks.node("Pad", [x, *inputs], attributes)

    magnitude = apply(data.magnitude, size)
    error = apply(tracks.error_or_zeros(data), size) if rounded or data.error else None
    tracks.set_bound(node.output[0], Bound(magnitude, error))


def _resamples(tracks: TracksBuilder, node: NodeProto) -> None:
    """Resize and Upsample: linear in x with the taps w, so `sum |w|*M`; only cubic has negative taps.

    The operator of domain "bnfold" takes the absolute value of every tap, which is the smallest bound there is.
    """
    data = tracks.bound(node.input[0])
    others = [tracks.exact(name, node) for name in node.input[1:]]
    cubic = attribute_of(node, "mode", b"nearest") == b"cubic"
    op_type, domain = ("AbsoluteResize", "bnfold") if cubic else (node.op_type, "")

    def apply(x: str, keep: float) -> str:
        attributes = [
            onnx.helper.make_attribute(a.name, abs(a.f) * keep) if a.name == "extrapolation_value" else a
            for a in node.attribute
        ]
        return tracks.outputs(op_type, [x, *others], attributes, 1, domain)[0]

    error = None if data.error is None else apply(data.error, 0.0)
    tracks.set_bound(node.output[0], Bound(apply(data.magnitude, 1.0), error))


def _standardises(tracks: TracksBuilder, node: NodeProto) -> None:
    """LayerNormalization and its kin over n elements: `|(x - mean)/sqrt(var + epsilon)| <= sqrt(n)`, whatever x is.

    `M = E = sqrt(n)*|scale| + |bias|`, loose by up to sqrt(n); an x that has an error itself has no bound.
    """
    data = tracks.bound(node.input[0])
    if data.error is not None or sum(bool(o) for o in node.output) > 1:
        what = f"no rounding bound is known for {node.op_type} after a stored number, or with a second output"
        raise ModelError(what, where=where_of(node))
    first_axis = {"InstanceNormalization": 2, "GroupNormalization": 1}.get(node.op_type, attribute_of(node, "axis", -1))
    flat = tracks.node("Flatten", [data.magnitude], [onnx.helper.make_attribute("axis", first_axis)])
    size = tracks.node("Gather", [tracks.node("Shape", [flat]), tracks.constant(np.asarray(1))])
    count = tracks.node("Cast", [size], [onnx.helper.make_attribute("to", int(TensorProto.DOUBLE))])
    groups = tracks.constant(np.asarray(float(attribute_of(node, "num_groups", 1))))
    root = tracks.node("Sqrt", [tracks.node("Div", [count, groups])])
    # Of zeros the operator returns its bias, in the right shape; epsilon may be zero, and 0/0 is no number.
    attributes = [a for a in node.attribute if a.name != "epsilon"]
    attributes.append(onnx.helper.make_attribute("epsilon", 1.0))
    scale, zeros = stored_at(tracks, node, 1), tracks.zeros_like(data.magnitude)

    def spread(value: np.ndarray[Any, Any]) -> str:
        return tracks.node(node.op_type, [zeros, tracks.constant(scale), tracks.constant(np.abs(value))], attributes)

    total = tracks.node("Mul", [root, spread(scale)])
    if len(node.input) > 2 and node.input[2]:
        total = tracks.node("Add", [total, spread(stored_at(tracks, node, 2))])
    tracks.set_bound(node.output[0], Bound(total, total))


def _absolute(attribute: AttributeProto) -> AttributeProto:
    return onnx.helper.make_attribute(attribute.name, abs(attribute.f))


# fmt: off
_MOVING = (
    "AveragePool", "DepthToSpace", "Expand", "Flatten", "Gather", "GlobalAveragePool", "GlobalMaxPool", "MaxPool",
    "ReduceMax", "ReduceMean", "ReduceSum", "Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile",
    "Transpose", "Unsqueeze",
)
# fmt: on
RULES: Final[dict[str, Callable[[TracksBuilder, NodeProto], None]]] = {
    **dict.fromkeys(("Abs", "Cast", "Dropout", "Identity", "Neg", "Relu"), _passes),
    **dict.fromkeys(_MOVING, _moves),
    **dict.fromkeys(("Add", "Concat", "Mean", "Sub", "Sum", "Where"), _joins),
    **dict.fromkeys(("Conv", "ConvTranspose", "Gemm", "MatMul", "Mul"), _multiplies),
    **dict.fromkeys(("GroupNormalization", "InstanceNormalization", "LayerNormalization"), _standardises),
    "BatchNormalization": _normalises,
    "Clip": clips,
    "Div": _divides,
    "LeakyRelu": _leaks,
    "Max": extremes,
    "Min": extremes,
    "PRelu": _leaks,
    "Pad": _pads,
    "Resize": _resamples,
    "Upsample": _resamples,
}
