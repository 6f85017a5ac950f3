"""Readers of Clip, Relu, and Max and Min with constants: `min(max(x, low), high)` with constant bounds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bnfold.decision import Reason
from bnfold.frontends.onnx_context import Context, barrier, input_at, is_float, name_of
from bnfold.graph import Bounds, Shape
from bnfold.views import Barrier, Clamp, Homogeneous, View

#: The operator set in which Max and Min began to broadcast, and the one in which Clip's bounds became inputs.
BROADCASTS, BOUNDS_ARE_INPUTS = 8, 11

#: A bound of a Clip that is this large is how exporters write "no bound".
_NO_BOUND = float(np.finfo(np.float32).max)

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Stored:
    """The bounds of a node as they stand in the model.

    Attributes:
        bounds: In float64.
        dtype: The dtype in which new ones would be stored.
        data: Which input is the data.
    """

    bounds: Bounds
    dtype: np.dtype[Any]
    data: int


def read_relu(node: ir.Node, context: Context) -> View:
    """Relu; where no bound could be stored it is just homogeneous."""
    dtype = context.shapes.dtype(node.inputs[0])
    version = context.version(node)
    if dtype is None or not is_float(dtype) or not _storable(dtype, version):
        return Homogeneous()
    return Clamp(context.shapes.rank(node.inputs[0]), dtype, version >= BROADCASTS)


def _storable(dtype: np.dtype[Any], version: int) -> bool:
    """Before Max broadcasts, a new bound must be an attribute of Clip, which is a float32."""
    return version >= BROADCASTS or dtype.name == "float32"


def read_clip(node: ir.Node, context: Context) -> View:
    """Clip with constant bounds."""
    bounds = _positions(node, context)
    variable = next((v for v in bounds.values() if context.constants.array(v) is None), None)
    if variable is not None:
        return Barrier(context.constants.why_not(variable, name_of(node), Reason.OPERATOR_IS_NOT_LINEAR))
    return _read(node, context, _clip)


def read_extremum(node: ir.Node, context: Context) -> View:
    """Max and Min of one value and constants."""
    variables = [v for v in node.inputs if v is not None and context.constants.array(v) is None]
    overridable = [v for v in variables if context.constants.overridable(v)]
    if overridable:
        return Barrier(context.constants.why_not(overridable[0], name_of(node), Reason.OPERATOR_HAS_NO_RULE))
    if not variables:
        return barrier(node, Reason.IS_CONSTANT)
    if len(variables) > 1 or len(node.inputs) == 1:
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, f"{node.op_type} of {len(variables)} variables")
    return _read(node, context, _extremum)


def _read(node: ir.Node, context: Context, read: Callable[[ir.Node, Context], Stored | Barrier]) -> View:
    stored = read(node, context)
    if isinstance(stored, Barrier):
        return stored
    version, rank = context.version(node), context.shapes.rank(node.inputs[stored.data])
    if not _storable(stored.dtype, version):
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, f"operator set {version}")
    varying = {a for side in (stored.bounds.low, stored.bounds.high) for a, n in enumerate(side.shape) if n > 1}
    return Clamp(rank, stored.dtype, version >= BROADCASTS, tuple(sorted(varying)))


def stored_bounds(node: ir.Node, context: Context) -> Stored:
    """The bounds of a node that was read as a clamp."""
    if node.op_type == "Relu":
        dtype = context.shapes.dtype(node.inputs[0])
        assert dtype is not None
        return Stored(Bounds(np.zeros(()), np.full((), np.inf)), dtype, 0)
    stored = _clip(node, context) if node.op_type == "Clip" else _extremum(node, context)
    assert isinstance(stored, Stored)
    return stored


def _positions(node: ir.Node, context: Context) -> dict[str, ir.Value]:
    """The bounds of a Clip that are inputs."""
    if context.version(node) < BOUNDS_ARE_INPUTS:
        return {}
    found = {name: input_at(node, position) for name, position in (("min", 1), ("max", 2))}
    return {name: value for name, value in found.items() if value is not None}


def _clip(node: ir.Node, context: Context) -> Stored | Barrier:
    given = {name: context.constants.array(value) for name, value in _positions(node, context).items()}
    if context.version(node) < BOUNDS_ARE_INPUTS:
        given = {k: np.float32(a.as_float()) for k, a in node.attributes.items() if k in ("min", "max")}
    known = [np.asarray(a) for a in given.values() if a is not None]
    dtype = context.shapes.dtype(node.inputs[0]) or next((a.dtype for a in known), None)
    if dtype is None or not is_float(dtype) or any(a.size != 1 for a in known):
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "not one floating-point number for each bound")
    low, high = (_unlimited(given.get(n), dtype, other) for n, other in (("min", -np.inf), ("max", np.inf)))
    return _checked(node, low, high, dtype, 0)


def _unlimited(array: Array | None, dtype: np.dtype[Any], other: float) -> Array:
    """The bound; infinite where it is as large as float32 gets, in the direction in which that limits nothing."""
    value = other if array is None else float(np.asarray(array, np.float64).ravel()[0])
    none = value * np.sign(other) >= _NO_BOUND and dtype.name != "float64"
    return np.asarray(other if none else value, np.float64)


def _extremum(node: ir.Node, context: Context) -> Stored | Barrier:
    arrays = [context.constants.array(v) for v in node.inputs]
    data = next(i for i, array in enumerate(arrays) if array is None)
    known = [a for a in arrays if a is not None]
    shape = context.shapes.shape(node.inputs[data])
    if not all(is_float(a.dtype) for a in known):
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "not a floating-point constant")
    bounds = [_spread(a, shape) for a in known]
    if any(b is None for b in bounds):
        return barrier(node, Reason.AXIS_NOT_PROVEN, "the constant may broadcast the value up")
    is_max = node.op_type == "Max"
    total = bounds[0]
    for bound in bounds[1:]:
        total = np.maximum(total, bound) if is_max else np.minimum(total, bound)  # type: ignore[arg-type]
    none = np.full((), -np.inf if not is_max else np.inf)
    assert total is not None
    low, high = (total, none) if is_max else (none, total)
    return _checked(node, low, high, known[0].dtype, data)


def _spread(array: Array, shape: Shape | None) -> Array | None:
    """The constant with the value's number of axes, or as a scalar; None where it may broadcast the value up."""
    wide = np.asarray(array, np.float64)
    if wide.ndim == 0:
        return wide
    if shape is None or wide.ndim > len(shape) or not wide.size:
        return None
    tail = shape[len(shape) - wide.ndim :]
    if not all(size in (1, dim) for size, dim in zip(wide.shape, tail, strict=True)):
        return None
    return wide.reshape((1,) * (len(shape) - wide.ndim) + wide.shape)


def _checked(node: ir.Node, low: Array, high: Array, dtype: np.dtype[Any], data: int) -> Stored | Barrier:
    if not ((low <= high) & (low < np.inf) & (high > -np.inf)).all():
        return barrier(node, Reason.OPERATOR_HAS_NO_RULE, "the low bound is above the high one, or nothing is between")
    return Stored(Bounds(low, high), dtype, data)
