"""Stores new statistics in an ONNX model, and changes nothing that anything else reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from bnfold.drift import Statistics
from bnfold.frontends.onnx_editor import Editor
from bnfold.observation import Site
from bnfold.rounding import round_once

#: Nothing older can have initializers that are no inputs.
_IR_VERSION = 4


def write_statistics(model: ir.Model, new: Mapping[tuple[int, ...], tuple[Site, Statistics]]) -> None:
    """Store mean and variance, each number rounded once to the dtype that it has in the model.

    An initializer that only these BatchNorms read is overwritten, one that is also an input of the model keeps its name
    and gets another default; where anything else reads it, the BatchNorms get one of their own.

    Args:
        model: The model; changed.
        new: By the places, in the main graph, of the BatchNorm nodes that share them: what they had, what they get.
    """
    nodes, editor = list(model.graph), Editor(model)
    for places, (site, statistics) in new.items():
        readers, (mean, variance) = [nodes[i] for i in places], site.dtypes
        if (statistics.mean != site.old.mean).any():
            _write(editor, readers, 3, round_once(statistics.mean, mean))
        if (statistics.variance != site.old.variance).any():
            _write(editor, readers, 4, round_once(statistics.variance, variance))
    editor.sweep()


def _write(editor: Editor, readers: Sequence[ir.Node], position: int, array: npt.NDArray[Any]) -> None:
    value = readers[0].inputs[position]
    assert value is not None
    if _is_theirs(editor.model.graph, value, readers, position):
        value.const_value = ir.Tensor(array, name=value.name)
        return
    fresh = _initializer(editor, f"{value.name or 'statistics'}_recalibrated", array)
    for reader in readers:
        reader.replace_input_with(position, fresh)
    editor.loosen(value)


def _is_theirs(graph: ir.Graph, value: ir.Value, readers: Sequence[ir.Node], position: int) -> bool:
    """Whether the value is an initializer that these nodes read there, and nothing else anywhere."""
    uses = {(id(use.node), use.idx) for use in value.uses()}
    is_stored = graph.initializers.get(value.name or "") is value
    return is_stored and not value.is_graph_output() and uses == {(id(node), position) for node in readers}


def _initializer(editor: Editor, stem: str, array: npt.NDArray[Any]) -> ir.Value:
    name, graph = editor.fresh(stem), editor.model.graph
    tensor = ir.Tensor(array, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    if editor.model.ir_version < _IR_VERSION:
        graph.inputs.append(value)
    return value
