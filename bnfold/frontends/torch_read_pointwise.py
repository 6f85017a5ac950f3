"""Readers of arithmetic, of the positively homogeneous activations and of clamps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from bnfold.affine import Float64Array
from bnfold.decision import Reason
from bnfold.frontends.torch_context import Context, arguments, barrier, base_name, dtype_of, scalar
from bnfold.frontends.torch_reading import Reading
from bnfold.graph import Bounds, Shape
from bnfold.views import Arithmetic, Barrier, Clamp, ConstantOperand, Homogeneous, Negate, Product, Sum, View

if TYPE_CHECKING:
    from torch.fx import Node

#: By operator: with the constant on the right, and on the left (None where nothing passes).
_ARITHMETIC: dict[str, tuple[Arithmetic, Arithmetic | None]] = {
    "add": (Arithmetic.ADD, Arithmetic.ADD),
    "sub": (Arithmetic.SUBTRACT, Arithmetic.SUBTRACT_FROM),
    "rsub": (Arithmetic.SUBTRACT_FROM, Arithmetic.SUBTRACT),
    "mul": (Arithmetic.MULTIPLY, Arithmetic.MULTIPLY),
    "div": (Arithmetic.DIVIDE, None),
}

_PAIRS: dict[str, View] = {"add": Sum(), "sub": Sum(-1), "mul": Product(), "div": Product((0,))}


def _kind(node: Node) -> str:
    return base_name(node).removeprefix("aten.").rstrip("_")


def read_arithmetic(node: Node, context: Context) -> Reading | Barrier:  # noqa: PLR0911
    """add, sub, rsub, mul, div of two variables, or of one and a constant that provably does not broadcast it up."""
    found, kind = arguments(node), _kind(node)
    operands, alpha = (found["self"], found["other"]), found.get("alpha", 1)
    if found.get("rounding_mode") is not None or dtype_of(node) is None:
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "not of floating-point numbers")
    constants = [_constant(value, context) for value in operands]
    if constants[0] is None and constants[1] is None:
        return _pair(node, kind, operands, alpha)
    place = 0 if constants[0] is not None else 1
    data, constant = operands[1 - place], constants[place]
    arithmetic = _ARITHMETIC[kind][1 - place]
    if constant is None or constants[1 - place] is not None or dtype_of(data) != dtype_of(node):
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "not a variable and a constant of one type")
    if arithmetic is None:
        return barrier(node, Reason.OPERATOR_IS_NOT_LINEAR, "division by the value")
    if alpha != 1:
        if place == 0 or kind == "rsub" or not isinstance(alpha, int | float):
            return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "alpha is not 1")
        constant = constant * alpha
    shape, dtype = context.shapes[data], dtype_of(node)
    if not _fits(constant, shape):
        return barrier(node, Reason.AXIS_NOT_PROVEN, "the constant may broadcast the value up")
    assert dtype is not None
    return Reading(ConstantOperand(arithmetic, len(shape), dtype), (data,), constant)


def constant_argument(node: Node, context: Context) -> str:
    """Which argument of an operator that `read_arithmetic` read is its constant."""
    found = arguments(node)
    return next(name for name in ("self", "other") if _constant(found[name], context) is not None)


def _constant(value: Any, context: Context) -> Float64Array | None:
    """A number, or a constant tensor of floating-point numbers."""
    number = scalar(value)
    if number is not None or value not in context.constants:
        return number
    return context.constants.array(value) if dtype_of(value) is not None else None


def _pair(node: Node, kind: str, operands: tuple[Any, Any], alpha: Any) -> Reading | Barrier:
    from torch.fx import Node as FxNode  # noqa: PLC0415

    both = all(isinstance(value, FxNode) and dtype_of(value) == dtype_of(node) for value in operands)
    if not both or alpha != 1 or kind not in _PAIRS:
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "not two variables of one type, or alpha is not 1")
    return Reading(_PAIRS[kind], operands)


def _fits(constant: Float64Array, shape: Shape) -> bool:
    """Whether every axis of the constant has length 1 or the proven length of the value's axis."""
    if constant.ndim > len(shape) or not constant.size:
        return False
    tail = shape[len(shape) - constant.ndim :]
    return all(size in (1, dim) for size, dim in zip(constant.shape, tail, strict=True))


def read_negate(node: Node, _context: Context) -> Reading:
    """Neg."""
    return Reading(Negate(), (arguments(node)["self"],))


def read_homogeneous(node: Node, _context: Context) -> Reading:
    """leaky_relu and prelu: `f(c*x) = c*f(x)` for c > 0, whatever the slope."""
    return Reading(Homogeneous(), (arguments(node)["self"],))


def read_abs(node: Node, _context: Context) -> Reading:
    """Abs."""
    return Reading(Homogeneous(is_even=True), (arguments(node)["self"],))


def read_clamp(node: Node, context: Context) -> Reading | Barrier:
    """relu, relu6, hardtanh, clamp, clamp_min, clamp_max with numbers or constant tensors as bounds."""
    found, dtype = arguments(node), dtype_of(node)
    stored = {
        "relu": (0.0, None),
        "relu6": (0.0, 6.0),
        "hardtanh": (found.get("min_val"), found.get("max_val")),
    }.get(_kind(node), (found.get("min"), found.get("max")))
    data = found["self"]
    sides = [_side(side, other, data, context) for side, other in zip(stored, (-np.inf, np.inf), strict=True)]
    low, high = sides
    if dtype is None or low is None or high is None or dtype_of(data) != dtype:
        return barrier(node, Reason.OPERATOR_IS_NOT_LINEAR, "its bounds are not constant")
    if not ((low <= high) & (low < np.inf) & (high > -np.inf)).all():
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "the low bound is above the high one, or nothing is between")
    bounds = Bounds(low, high)
    axes = {a for side in (bounds.low, bounds.high) for a, size in enumerate(side.shape) if size > 1}
    return Reading(Clamp(context.rank(data), dtype, axes=tuple(sorted(axes))), (data,), bounds=bounds)


def _side(side: Any, other: float, data: Node, context: Context) -> Float64Array | None:
    """A bound, of no axes or of those of the value; None where it is not constant or may broadcast the value up."""
    if side is None:
        return np.asarray(other)
    array, shape = _constant(side, context), context.shapes[data]
    if array is None or not _fits(array, shape):
        return None
    return array.reshape((1,) * (len(shape) - array.ndim) + array.shape) if array.ndim else array
