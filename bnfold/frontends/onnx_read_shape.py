"""Readers of operators that only move elements, join values or convert their type."""

from __future__ import annotations

import onnx_ir as ir

from bnfold.decision import Reason
from bnfold.frontends.onnx_context import Context, barrier, input_at, int_attr, ints_attr, is_float
from bnfold.frontends.onnx_read_quantised import integers_behind
from bnfold.views import Cast, Concat, Reshape, Same, Transpose, View


def read_same(_node: ir.Node, _context: Context) -> View:
    """Identity."""
    return Same()


def read_dropout(node: ir.Node, context: Context) -> View:
    """Dropout, unless its third input (version 12 on) may switch training on."""
    training = input_at(node, 2)
    if training is None:
        return Same()
    switch = context.constants.array(training)
    if switch is None or switch.any():
        return barrier(node, Reason.OPERATOR_IS_NOT_LINEAR, "it may be in training mode")
    return Same()


def read_cast(node: ir.Node, context: Context) -> View:
    """Cast and CastLike between floating-point types."""
    source = context.shapes.dtype(node.inputs[0])
    target = context.shapes.dtype(node.outputs[0])
    if source is None or target is None or not (is_float(source) and is_float(target)):
        return integers_behind(node) or barrier(node, Reason.CAST_NARROWS, f"{source} to {target}")
    return Same() if source == target else Cast(source, target)


def read_transpose(node: ir.Node, context: Context) -> View:
    """Transpose; without `perm` it turns the axes round."""
    perm, rank = ints_attr(node, "perm"), context.shapes.rank(node.inputs[0])
    if perm is None and rank is None:
        return barrier(node, Reason.AXIS_NOT_PROVEN, "unknown rank")
    return Transpose(tuple(reversed(range(rank or 0))) if perm is None else perm)


def read_reshape(_node: ir.Node, _context: Context) -> View:
    """Reshape, Flatten, Squeeze, Unsqueeze: the inferred shapes say what they do."""
    return Reshape()


def read_concat(node: ir.Node, context: Context) -> View:
    """Concat."""
    axis, rank = int_attr(node, "axis", 1), context.shapes.rank(node.outputs[0])
    if rank is None:
        return barrier(node, Reason.AXIS_NOT_PROVEN, "unknown rank")
    return Concat(axis % rank)
