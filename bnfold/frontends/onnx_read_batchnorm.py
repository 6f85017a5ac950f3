"""Reader of BatchNormalization, operator sets 7 to the newest: `y = gamma * (x - mean) / sqrt(var + epsilon) + beta`.

Inference is: one output and, from version 14 on, `training_mode=0`. Trailing outputs left out by an empty name do
not count. An epsilon that is absent is 1e-5; one of 0.0 is legal.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bnfold.decision import Reason, Refusal
from bnfold.frontends.onnx_context import (
    Context,
    float_attr,
    input_at,
    int_attr,
    is_float,
    is_present,
    name_of,
)
from bnfold.views import Barrier, BatchNorm


def read_batchnorm(node: ir.Node, context: Context) -> BatchNorm | Barrier:
    """The affine that the node computes, or why it computes none."""
    refusal = _refuse_mode(node, context)
    values = [input_at(node, i) for i in range(1, 5)]
    arrays = [context.constants.array(v) for v in values]
    channels = next((int(a.size) for a in arrays if a is not None), 0)
    for value, array in zip(values, arrays, strict=True):
        if refusal is None and array is None:
            reason = Reason.PARAMETERS_NOT_CONSTANT
            refusal = Refusal(reason) if value is None else context.constants.why_not(value, name_of(node), reason)
    known = [a for a in arrays if a is not None]
    if refusal is None:
        refusal = _refuse_shape(node, known, context)
    if refusal is not None:
        return Barrier(refusal, is_batchnorm=True, channels=channels)
    return _view(node, known)


def trains(node: ir.Node, version: int) -> bool:
    """Whether the node normalises by the statistics of its own input, in operator set `version`."""
    if version >= 14:
        return int_attr(node, "training_mode", 0) == 1
    return int_attr(node, "is_test", 1) == 0 or any(is_present(v) for v in node.outputs[1:])


def _refuse_mode(node: ir.Node, context: Context) -> Refusal | None:
    if trains(node, context.version(node)) or any(is_present(v) for v in node.outputs[1:]):
        return Refusal(Reason.NORMALISES_BY_BATCH_STATISTICS, name_of(node))
    if int_attr(node, "spatial", 1) == 0:
        return Refusal(Reason.NORMALISES_PER_ELEMENT, name_of(node))
    return None


def _refuse_shape(node: ir.Node, parameters: list[npt.NDArray[Any]], context: Context) -> Refusal | None:
    shape = context.shapes.shape(node.inputs[0])
    fits = len({p.shape for p in parameters}) == 1 and parameters[0].ndim == 1 and parameters[0].size > 0
    if not fits or not all(is_float(p.dtype) for p in parameters):
        return Refusal(Reason.PARAMETERS_MISMATCHED, name_of(node), ", ".join(str(p.shape) for p in parameters))
    if shape is not None and len(shape) < 2:
        return Refusal(Reason.AXIS_NOT_PROVEN, name_of(node), "its input has one axis")
    if shape is not None and isinstance(shape[1], int) and shape[1] != parameters[0].size:
        return Refusal(Reason.PARAMETERS_MISMATCHED, name_of(node), f"{parameters[0].size} for {shape[1]} channels")
    return None


def _view(node: ir.Node, parameters: list[npt.NDArray[Any]]) -> BatchNorm:
    gamma, beta, mean, var = (np.asarray(p, np.float64) for p in parameters)
    epsilon = float_attr(node, "epsilon", 1e-5)
    return BatchNorm.of_statistics(gamma, beta, mean, var, epsilon, parameters[0].dtype)
