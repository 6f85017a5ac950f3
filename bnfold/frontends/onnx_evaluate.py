"""A BatchNorm of a constant is a constant: `y = gamma * (x - mean) / sqrt(var + epsilon) + beta`, computed once.

In training mode, which is how exporters write weight standardisation, mean and variance (of the population) are those
of x itself over every axis but 1. Computed in float64, rounded once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from bnfold.affine import Float64Array
from bnfold.decision import Folded, Subject
from bnfold.frontends.onnx_constants import Constants
from bnfold.frontends.onnx_context import (
    float_attr,
    int_attr,
    is_float,
    is_read,
    is_standard,
    name_of,
)
from bnfold.frontends.onnx_editor import Editor
from bnfold.frontends.onnx_read_batchnorm import trains
from bnfold.frontends.onnx_scopes import Path, scopes
from bnfold.rounding import largest


@dataclass(frozen=True, eq=False)
class Evaluated:
    """A BatchNorm that became a constant.

    Attributes:
        path: The graph in which it stood.
        node: The node, which is no longer in the graph once the model was changed.
        output: The name of its output, and of the constant.
        value: The constant, before it is rounded to `dtype`.
        dtype: The dtype of its input.
        decision: What became of it.
    """

    path: Path
    node: ir.Node
    output: str
    value: Float64Array
    dtype: np.dtype[Any]
    decision: Folded


def find_constant_batchnorms(
    model: ir.Model, wanted: Callable[[str], bool], constants: Constants
) -> tuple[Evaluated, ...]:
    """Every BatchNorm, `wanted` by its name, of constants, of which only the first output is read.

    One whose output the caller or a body hands out stays, since a constant may not stand there.
    """
    return tuple(found for path, graph in scopes(model) for found in _in_graph(path, graph, constants, wanted))


def _in_graph(path: Path, graph: ir.Graph, constants: Constants, wanted: Callable[[str], bool]) -> Iterator[Evaluated]:
    for node in graph:
        if node.op_type != "BatchNormalization" or not is_standard(node) or not wanted(name_of(node)):
            continue
        output = node.outputs[0]
        if output.is_graph_output() or any(is_read(value) for value in node.outputs[1:]):
            continue
        y = _normalised(node, [constants.array(value) for value in node.inputs[:5]], constants.opset)
        if y is not None:
            into = tuple(dict.fromkeys(name_of(use.node) for use in output.uses()))
            subject = Subject(name_of(node), node.op_type, y[0].shape[1], True)
            yield Evaluated(path, node, output.name or "", *y, Folded(subject, "evaluate", into))


def _normalised(
    node: ir.Node, arrays: list[npt.NDArray[Any] | None], opset: int
) -> tuple[Float64Array, np.dtype[Any]] | None:
    """The output in float64, and its dtype; None where an input is variable, or the result is not finite."""
    by_itself = trains(node, opset)
    known = [array for array in (arrays[:3] if by_itself else arrays) if array is not None]
    if len(known) < (3 if by_itself else 5) or not all(is_float(a.dtype) for a in known):
        return None
    x, *parameters = (np.asarray(a, np.float64) for a in known)
    if (
        x.ndim < 2
        or not x.size
        or any(a.shape != x.shape[1:2] for a in parameters)
        or int_attr(node, "spatial", 1) == 0
    ):
        return None
    axes = tuple(axis for axis in range(x.ndim) if axis != 1)
    if by_itself:
        parameters += [x.mean(axis=axes), x.var(axis=axes)]
    gamma, beta, mean, var = (a.reshape((-1, *(1,) * (x.ndim - 2))) for a in parameters)
    with np.errstate(all="ignore"):
        y: Float64Array = gamma * (x - mean) / np.sqrt(var + float_attr(node, "epsilon", 1e-5)) + beta
    return (y, known[0].dtype) if bool((np.abs(y) <= largest(known[0].dtype)).all()) else None


def store(model: ir.Model, found: Sequence[Evaluated]) -> None:
    """Put the constants in the place of the BatchNorms, and drop what nothing reads any more."""
    editor = Editor(model)
    for evaluated in found:
        editor.replace_by_constant(evaluated.node, evaluated.value, evaluated.dtype)
    editor.sweep()
