"""How far rounding the stored numbers of a region can move its outputs: a second model that computes the bound.

Every tensor x gets two tracks, `M >= |x|` and `E >= |x~ - x| / u`, where x~ is the same region with every stored number
c replaced by `c*(1 + d)`, `|d| <= u`. A stored number has `M = E = |c|`, a fed value `E = 0`, and an operator maps
`a*b: E = Ea*(Mb + u*Eb) + Ma*Eb`, `a + b: E = Ea + Eb`, `max: E = max(Ea, Eb)`. For one Conv `E = |W|*|x| + |b|`.
A quantised weight moves with its scale, `E = |W|`; a quantised bias lies on a grid, `E = step / (2u)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto

from bnfold.errors import ModelError
from bnfold.frontends.onnx_float64 import in_float64
from bnfold.frontends.onnx_magnitude_rules import RULES, is_copy
from bnfold.frontends.onnx_magnitude_tracks import Bound, TracksBuilder, where_of

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

# Shape arithmetic: no float goes in, and what comes out is exact.
# fmt: off
_EXACT = frozenset((
    "Abs", "Add", "And", "Cast", "Concat", "Div", "Equal", "Expand", "Gather", "Greater", "GreaterOrEqual",
    "Identity", "Less", "LessOrEqual", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Range", "ReduceMax",
    "ReduceMin", "ReduceProd", "ReduceSum", "Reshape", "Shape", "Size", "Slice", "Split", "Squeeze", "Sub", "Tile",
    "Transpose", "Unsqueeze", "Where",
))
# fmt: on


def magnitude_model(model: ModelProto, roundoff: float = 0.0, smallest_normal: float = 0.0) -> ModelProto:
    """The model that, fed |x|, computes B: one rounding of every stored number moves an output by at most `roundoff*B`.

    Inputs and outputs keep their names; float outputs are B, of the shape of the original, others are as they were.
    A stored number is an element of a float initializer or Constant, or a bound that Clip holds as an attribute; other
    float attributes (epsilon, alpha, beta) do not move. B counts a product of k stored numbers k times.

    Args:
        model: A small acyclic model, usually a region that was cut out.
        roundoff: The unit roundoff u of the stored numbers, for the terms of second order; with 0 the bound holds to
            first order, that is `u*B*(1 + k*u)` for a chain of k stored factors.
        smallest_normal: That of the stored dtype: a subnormal number is rounded by up to `u*smallest_normal`, however
            small it is.

    Raises:
        ModelError: No bound is known for an operator; the message names it.
    """
    model = in_float64(model)
    tracks = TracksBuilder(model, roundoff, smallest_normal)
    for tensor in model.graph.initializer:
        tracks.add_constant(tensor.name, onnx.numpy_helper.to_array(tensor))
    for value in model.graph.input:
        if value.name not in tracks.constants:
            tracks.add_input(value.name, value.type.tensor_type.elem_type == TensorProto.DOUBLE)
    for node in model.graph.node:
        _visit(tracks, node)
    inputs = [v for v in model.graph.input if v.name not in tracks.constants]
    outputs = [tracks.finish(o.name, where=o.name) for o in model.graph.output]
    graph = onnx.helper.make_graph(tracks.nodes, "magnitude", inputs, outputs, tracks.initializers)
    opsets = [*model.opset_import, onnx.helper.make_opsetid("bnfold", 1)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=model.ir_version)


def _visit(tracks: TracksBuilder, node: NodeProto) -> None:
    read = [name for name in node.input if name]
    floats = [name for name in read if not tracks.is_exact(name)]
    constant = all(name in tracks.constants for name in read)
    if node.domain not in {"", "ai.onnx"}:
        raise _unknown(node)
    if constant and _is_quantised_bias(tracks, node):
        _half_step(tracks, node)
    elif constant and (is_copy(node) or (not floats and node.op_type in _EXACT)):
        # Stored numbers that are only moved about are still stored numbers.
        for name, value in tracks.constant_outputs(node).items():
            tracks.add_constant(name, value)
    elif node.op_type in {"Shape", "Size"}:
        tracks.add_exact(node, [tracks.any_track(read[0])])
    elif not floats and node.op_type in _EXACT:
        tracks.add_exact(node, list(node.input))
    elif node.op_type in RULES:
        RULES[node.op_type](tracks, node)
    else:
        raise _unknown(node)


def _is_quantised_bias(tracks: TracksBuilder, node: NodeProto) -> bool:
    """Whether the node dequantises a vector of 32 bits, as which biases are stored."""
    codes = tracks.constants.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
    return codes is not None and codes.dtype == np.int32 and codes.ndim == 1


def _half_step(tracks: TracksBuilder, node: NodeProto) -> None:
    """A quantised bias is the nearest number of its grid: it is off by at most half a step, `E = step / (2u)`."""
    if not tracks.roundoff:
        raise ModelError("the bound of a quantised bias is a step, not a rounding", where=where_of(node))
    (name, value), *_ = tracks.constant_outputs(node).items()
    tracks.add_constant(name, value)
    error = np.broadcast_to(np.abs(tracks.constants[node.input[1]]) / (2 * tracks.roundoff), value.shape)
    tracks.set_bound(name, Bound(tracks.constant(np.abs(value)), tracks.constant(np.ascontiguousarray(error))))


def _unknown(node: NodeProto) -> ModelError:
    name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
    return ModelError(f"no rounding bound is known for {name}", where=where_of(node))


__all__ = ["magnitude_model"]
