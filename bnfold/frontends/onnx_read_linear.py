"""Readers of Conv, ConvTranspose, Gemm and MatMul: the conditions under which they are `Linear`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from bnfold.decision import Reason, Refusal
from bnfold.embedding import Geometry
from bnfold.frontends.onnx_context import (
    Context,
    barrier,
    float_attr,
    input_at,
    int_attr,
    is_float,
    is_standard,
    name_of,
)
from bnfold.frontends.onnx_linear import ConvSite, GemmSite, LinearSite, MatMulSite
from bnfold.frontends.onnx_quantised import Dequantised, Stored, input_step, stored, why_not_stored
from bnfold.frontends.onnx_windows import conv_geometry, transposed_sees_every_tap
from bnfold.linear import WeightLayout
from bnfold.quantised import Quantised
from bnfold.views import Barrier, Linear


@dataclass(frozen=True, eq=False)
class ReadLinear:
    """A linear operator as the rules see it, where its constants stand, and its data input."""

    view: Linear
    site: LinearSite
    data: ir.Value


def read_conv(node: ir.Node, context: Context) -> ReadLinear | Barrier:
    """Conv and ConvTranspose of any rank and any groups."""
    data, weight_value, bias_value = (input_at(node, i) for i in range(3))
    weight, bias = stored(weight_value, context), stored(bias_value, context)
    for value, constant in ((weight_value, weight), (bias_value, bias)):
        if value is not None and constant is None:
            return Barrier(why_not_stored(value, name_of(node), context))
    transposed, groups = node.op_type == "ConvTranspose", int_attr(node, "group", 1)
    if data is None or weight is None or not _is_convolution(weight, groups, context.shapes.rank(data)):
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "its weight, groups and input contradict each other")
    per_group = weight.shape[1] * groups
    outputs, inputs = (per_group, weight.shape[0]) if transposed else (weight.shape[0], per_group)
    if bias is not None and bias.shape != (outputs,):
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, f"a bias of shape {bias.shape} for {outputs} channels")
    site = ConvSite(node, WeightLayout(not transposed, groups), weight, bias)
    if transposed:
        shift, geometry = _transposed_shift(node, weight, context), None
    else:
        geometry = conv_geometry(node, weight.shape[2:], context.shapes.shape(data))
        shift = _conv_shift(node, geometry)
    quantised = _quantised(site, outputs, input_step(data, context))
    if isinstance(quantised, Refusal):
        return Barrier(quantised)
    view = Linear(site.layout, 1, 1, outputs, inputs, weight.dtype, shift, geometry=geometry)
    return ReadLinear(_kept_quantised(view, quantised), site, data)


def _kept_quantised(view: Linear, quantised: Quantised | None) -> Linear:
    """Nothing can be added to weights that stay quantised, so that they have no window for the merge to widen."""
    return view if quantised is None else replace(view, quantised=quantised, geometry=None)


def _quantised(site: ConvSite | GemmSite, outputs: int, step: float | None) -> Quantised | Refusal | None:
    """The quantised constants of the operator; why they are not read; None where the weight is not quantised."""
    weight, bias = site.weight, site.bias
    if isinstance(bias, Dequantised) and not (isinstance(weight, Dequantised) and bias.is_bias(outputs)):
        which = "" if isinstance(weight, Dequantised) else ", and the weight is not"
        return Refusal(Reason.WEIGHTS_ARE_QUANTISED, name_of(site.node), f"the bias is {bias.codes.dtype.name}{which}")
    if not isinstance(weight, Dequantised):
        return None
    return Quantised(weight.weight(site.layout), bias.bias(step) if isinstance(bias, Dequantised) else None)


def _is_convolution(weight: Stored, groups: int, rank: int | None) -> bool:
    """A floating-point kernel that divides into the groups and has as many axes as the input, where that is known."""
    divides = weight.ndim >= 3 and groups >= 1 and weight.shape[0] % groups == 0
    return divides and is_float(weight.dtype) and rank in (None, weight.ndim)


def _conv_shift(node: ir.Node, geometry: Geometry | None) -> Refusal | None:
    if geometry is not None and not geometry.is_padded:
        return None
    return Refusal(Reason.SHIFT_MEETS_PADDING, name_of(node), "zero padding")


def _transposed_shift(node: ir.Node, weight: Stored, context: Context) -> Refusal | None:
    if transposed_sees_every_tap(node, weight.shape[2:], context.shapes.shape(node.inputs[0])):
        return None
    return Refusal(Reason.SHIFT_MEETS_PADDING, name_of(node), "not every output receives every tap")


def read_gemm(node: ir.Node, context: Context) -> ReadLinear | Barrier:
    """Gemm with one constant matrix, and C constant or absent."""
    c_value = input_at(node, 2)
    c = stored(c_value, context)
    if c is None and c_value is not None:
        return Barrier(why_not_stored(c_value, name_of(node), context))
    transposed = (bool(int_attr(node, "transA", 0)), bool(int_attr(node, "transB", 0)))
    matrices = [stored(input_at(node, i), context) for i in (0, 1)]
    position = next((i for i in (1, 0) if matrices[i] is not None and matrices[1 - i] is None), None)
    if position is None:
        value = node.inputs[1]
        assert value is not None
        return Barrier(why_not_stored(value, name_of(node), context))
    weight, data = matrices[position], node.inputs[1 - position]
    if weight is None or data is None or weight.ndim != 2 or not is_float(weight.dtype):
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE)
    # B' is (in, out) and stands transposed with transB; A' is (out, in) and stands transposed with transA.
    output_first = transposed[1] if position == 1 else not transposed[0]
    layout = WeightLayout(output_first)
    input_axis = int(not transposed[0]) if position == 1 else int(transposed[1])
    outputs, inputs = weight.shape if output_first else weight.shape[::-1]
    if c is not None and not _broadcasts(c, outputs, position):
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, f"C has the shape {c.shape}")
    site = GemmSite(node, layout, position, weight, c)
    quantised = _quantised(site, outputs, _gemm_step(site, data, context))
    if isinstance(quantised, Refusal):
        return Barrier(quantised)
    view = Linear(layout, input_axis, position, outputs, inputs, weight.dtype, geometry=Geometry.point(()))
    return ReadLinear(_kept_quantised(view, quantised), site, data)


def _gemm_step(site: GemmSite, data: ir.Value, context: Context) -> float | None:
    """The scale of the data, where that times the weight's is the bias's: plain data*weight + C."""
    plain = all(float_attr(site.node, name, 1.0) == 1 for name in ("alpha", "beta")) and site.position == 1
    return input_step(data, context) if plain else None


def _broadcasts(c: Stored, outputs: int, axis: int) -> bool:
    """Whether C has one entry, or one for each output channel, on the output's channel axis."""
    shape = (1,) * (2 - c.ndim) + c.shape
    return len(shape) == 2 and shape[axis] in (1, outputs)


def read_matmul(node: ir.Node, context: Context) -> ReadLinear | Barrier:
    """MatMul with the constant on either side, of any rank but 1."""
    matrices = [stored(input_at(node, i), context) for i in (0, 1)]
    position = next((i for i in (1, 0) if matrices[i] is not None and matrices[1 - i] is None), None)
    if position is None:
        value = node.inputs[1]
        assert value is not None
        return Barrier(why_not_stored(value, name_of(node), context))
    weight, data = matrices[position], node.inputs[1 - position]
    rank, out_rank = context.shapes.rank(data), context.shapes.rank(node.outputs[0])
    if weight is None or data is None or weight.ndim < 2 or not is_float(weight.dtype):
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "a constant of rank 1")
    if rank is None or out_rank is None or rank < 2 - position:
        return barrier(node, Reason.AXIS_NOT_PROVEN, "unknown rank")
    layout = WeightLayout(output_first=position == 0, batch_axes=weight.ndim - 2)
    outputs, inputs = (weight.shape[-1], weight.shape[-2]) if position == 1 else weight.shape[-2:]
    axes = (rank - 1, out_rank - 1) if position == 1 else (rank - 2, out_rank - 2)
    add = _bias_add(node, axes[1], outputs, out_rank, context)
    shift = None
    if weight.ndim > 2:
        shift = Refusal(Reason.COSTS_MORE, name_of(node), "the shift would need a bias for each entry of the batch")
    quantised = Quantised(weight.weight(layout)) if isinstance(weight, Dequantised) else None
    point = Geometry.point(()) if weight.ndim == 2 else None
    view = Linear(layout, *axes, outputs, inputs, weight.dtype, shift, shift_adds_operator=add is None, geometry=point)
    quantised = Quantised(weight.weight(layout)) if isinstance(weight, Dequantised) else None
    return ReadLinear(_kept_quantised(view, quantised), MatMulSite(node, layout, position, weight, add), data)


def _bias_add(
    node: ir.Node, axis: int, outputs: int, rank: int, context: Context
) -> tuple[ir.Node, int, npt.NDArray[Any]] | None:
    """The Add of one constant per output channel that is the only reader of the MatMul."""
    value = node.outputs[0]
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.graph is not node.graph:
        return None
    add, position = uses[0].node, 1 - uses[0].idx
    if add.op_type != "Add" or not is_standard(add):
        return None
    c = context.constants.array(add.inputs[position])
    if c is None or c.ndim > rank or not is_float(c.dtype):
        return None
    shape = (1,) * (rank - c.ndim) + c.shape
    fits = all(size == 1 or (i == axis and size == outputs) for i, size in enumerate(shape))
    return (add, position, c) if fits else None
