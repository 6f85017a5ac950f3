"""Readers of the operators that quantise, and of those that compute with integers: barriers, each with its reason.

`Q(s*x + t)` is no affine of `Q(x)`: the numbers that x was rounded to would move off the grid.
"""

from __future__ import annotations

import onnx_ir as ir

from bnfold.decision import Reason, Refusal
from bnfold.frontends.onnx_context import Context, barrier, is_standard, name_of
from bnfold.views import Barrier, View

#: What computes with integers from end to end; a grid for each input and for the output is part of the operator.
INTEGER_OPERATORS = frozenset(("ConvInteger", "MatMulInteger", "QLinearConv", "QLinearMatMul"))


def read_quantize(node: ir.Node, _context: Context) -> View:
    """QuantizeLinear and DynamicQuantizeLinear."""
    return barrier(node, Reason.ROUNDED_TO_A_GRID)


def read_integer_operator(node: ir.Node, _context: Context) -> View:
    """ConvInteger, MatMulInteger, QLinearConv, QLinearMatMul."""
    return barrier(node, Reason.COMPUTES_IN_INTEGERS, node.op_type)


def read_dequantize(node: ir.Node, _context: Context) -> View:
    """DequantizeLinear of a variable: what came before it says why nothing passes."""
    return integers_behind(node) or barrier(node, Reason.ROUNDED_TO_A_GRID)


def integers_behind(node: ir.Node) -> Barrier | None:
    """The operator that computed the integers which `node` reads, if it is known to compute with them."""
    value = node.inputs[0]
    before = None if value is None else value.producer()
    if before is None or before.op_type not in INTEGER_OPERATORS or not is_standard(before):
        return None
    return Barrier(Refusal(Reason.COMPUTES_IN_INTEGERS, name_of(before), before.op_type))
