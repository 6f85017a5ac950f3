"""Readers of Add, Sub, Mul and Div with a constant, and of the positively homogeneous activations."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from bnfold.decision import Reason
from bnfold.frontends.onnx_context import Context, barrier, is_float, name_of
from bnfold.graph import Shape
from bnfold.views import Arithmetic, Barrier, ConstantOperand, Homogeneous, Negate, Product, Sum, View

#: By operator: with the constant on the right, and on the left (None where nothing passes).
_ARITHMETIC: dict[str, tuple[Arithmetic, Arithmetic | None]] = {
    "Add": (Arithmetic.ADD, Arithmetic.ADD),
    "Sub": (Arithmetic.SUBTRACT, Arithmetic.SUBTRACT_FROM),
    "Mul": (Arithmetic.MULTIPLY, Arithmetic.MULTIPLY),
    "Div": (Arithmetic.DIVIDE, None),
}


#: Two variables.
_PAIRS: dict[str, View] = {"Add": Sum(), "Sub": Sum(-1), "Mul": Product(), "Div": Product((0,))}


def constant_position(node: ir.Node, context: Context) -> int | None:
    """Which of two operands is constant, if exactly one is."""
    known = [i for i, value in enumerate(node.inputs) if context.constants.array(value) is not None]
    return known[0] if len(known) == 1 and len(node.inputs) == 2 else None


def read_arithmetic(node: ir.Node, context: Context) -> View:
    """A constant operand that provably does not broadcast the other one up."""
    position = constant_position(node, context)
    if position is None:
        return _read_pair(node, context)
    arithmetic = _ARITHMETIC[node.op_type][1 - position]
    constant = context.constants.array(node.inputs[position])
    shape = context.shapes.shape(node.inputs[1 - position])
    if arithmetic is None:
        return barrier(node, Reason.OPERATOR_IS_NOT_LINEAR, "division by the value")
    if constant is None or not is_float(constant.dtype):
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "not a floating-point constant")
    if shape is None or not _fits(constant, shape):
        return barrier(node, Reason.AXIS_NOT_PROVEN, "the constant may broadcast the value up")
    return ConstantOperand(arithmetic, len(shape), constant.dtype)


def _read_pair(node: ir.Node, context: Context) -> View:
    """Two variables; two constants are a constant, and one that can be overridden is none."""
    overridable = [v for v in node.inputs if v is not None and context.constants.overridable(v)]
    if overridable:
        return Barrier(context.constants.why_not(overridable[0], name_of(node), Reason.OPERATOR_HAS_NO_RULE))
    if any(context.constants.array(v) is not None for v in node.inputs):
        return barrier(node, Reason.IS_CONSTANT)
    return _PAIRS[node.op_type] if len(node.inputs) == 2 else barrier(node, Reason.OPERATOR_HAS_NO_RULE)


def _fits(constant: npt.NDArray[Any], shape: Shape) -> bool:
    """Every axis of the constant has length 1 or the proven length of the value's axis."""
    if constant.ndim > len(shape) or not constant.size:
        return False
    tail = shape[len(shape) - constant.ndim :]
    return all(size in (1, dim) for size, dim in zip(constant.shape, tail, strict=True))


def read_negate(_node: ir.Node, _context: Context) -> View:
    """Neg."""
    return Negate()


def read_homogeneous(_node: ir.Node, _context: Context) -> View:
    """LeakyRelu and PRelu: `f(c*x) = c*f(x)` for c > 0, whatever the slope."""
    return Homogeneous()


def read_abs(_node: ir.Node, _context: Context) -> View:
    """Abs."""
    return Homogeneous(is_even=True)
