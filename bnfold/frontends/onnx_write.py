"""Writes a fold plan into the model it was made for.

Names: the value that now equals a BatchNorm's output takes its name, so that outputs keep theirs; every value whose
meaning changed gets a new name, so that equal names before and after mean equal values.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bnfold.bench import Bench
from bnfold.changes import Change, Fold, Merge
from bnfold.folding import FoldPlan
from bnfold.frontends.onnx_editor import Editor
from bnfold.frontends.onnx_graph import OnnxGraph
from bnfold.graph import Operator, PlacedAffine
from bnfold.views import BatchNorm, ConstantOperand
from bnfold.window_views import Pad


@dataclass(frozen=True)
class Written:
    """What writing a plan did besides folding.

    Attributes:
        dropped_inputs: Graph inputs that were defaults of folded parameters, and are gone with them.
        cloned_bytes: Bytes of new weights whose original stays, because something else reads it.
    """

    dropped_inputs: tuple[str, ...]
    cloned_bytes: int


def write(graph: OnnxGraph, plan: FoldPlan) -> Written:
    """Change `graph.model` as `plan` says. The graph must not be used afterwards.

    A plan without a fold changes nothing.
    """
    if not plan.bench.folds:
        return Written((), 0)
    editor = Editor(graph.model.graph)
    if graph.model.ir_version < 4:
        editor.initializers_are_inputs()
    positions = {index: graph.constant_position(graph.operators[index]) for index in _constant_operands(plan.bench)}
    values = {
        v.name: v for v in ir.convenience.create_value_mapping(graph.model.graph, include_subgraphs=False).values()
    }
    for fold in plan.bench.folds:
        _rename(fold, values, editor)
        if isinstance(fold, Merge):
            _drop_sums(graph, fold, editor)
        elif fold.left is None:
            for operator in fold.source.operators:
                _take_out(graph, operator, fold, positions, editor)
    _store(graph, plan.bench, positions, editor)
    return Written(tuple(editor.sweep()), editor.cloned_bytes)


def _constant_operands(bench: Bench) -> list[int]:
    """Operators whose constant's position must be known after the graph has changed under the reader."""
    operators = bench.graph.operators
    touched = {*bench.removed, *bench.constants}
    return [i for i in touched if isinstance(operators[i].view, ConstantOperand)]


def _drop_sums(graph: OnnxGraph, merge: Merge, editor: Editor) -> None:
    """What only brings together goes; the other branches lose their only reader with it, and are swept away."""
    for operator, position in merge.sums:
        if position is not None:
            node, site = graph.nodes[operator.index], graph.sites.get(operator.index)
            data = node.inputs[position if site is None else site.data_position]
            assert data is not None
            last = node if site is None else site.nodes[-1]
            editor.bypass(last, data, takes_name=operator.index in merge.renames)


def _rename(fold: Change, values: dict[str | None, ir.Value], editor: Editor) -> None:
    for name in sorted(fold.values):
        value = values[name]
        value.name = editor.fresh(f"{name}_folded")


def _take_out(graph: OnnxGraph, operator: Operator, fold: Fold, positions: dict[int, int], editor: Editor) -> None:
    node = graph.nodes[operator.index]
    data = node.inputs[1 - positions[operator.index] if operator.index in positions else 0]
    assert data is not None
    editor.bypass(node, data, takes_name=fold.direction == "pull")


def _store(graph: OnnxGraph, bench: Bench, positions: dict[int, int], editor: Editor) -> None:
    for index, merge in bench.merged.items():
        graph.sites[index].reshape(merge.geometry, merge.params.weight.shape[0])
    for index in sorted({*bench.absorbed, *bench.merged} - set(bench.removed)):
        graph.sites[index].write(bench.linear_params(graph.operators[index]), editor)
    for index, left in sorted(bench.reduced.items()):
        _become_add(graph, index, left, editor)
    for index in sorted(set(bench.constants) - set(bench.removed)):
        _store_constant(graph, bench, index, positions, editor)
    for index in sorted(set(bench.affines) - set(bench.removed)):
        view = graph.operators[index].view
        assert isinstance(view, BatchNorm)
        for position, values in enumerate(view.stored(bench.affines[index]), start=1):
            editor.set_constant(graph.nodes[index], position, values, view.dtype)


def _become_add(graph: OnnxGraph, index: int, left: PlacedAffine, editor: Editor) -> None:
    """The BatchNorm's place is taken by an Add of the shift that is left."""
    operator = graph.operators[index]
    shape, dtype = operator.input_shapes[0], operator.dtype
    assert shape is not None
    assert dtype is not None
    shift = left.arrays(len(shape))[1]
    editor.replace_by_add(graph.nodes[index], shift.reshape(shift.shape[left.axes[0] :]), dtype)


def _store_constant(graph: OnnxGraph, bench: Bench, index: int, positions: dict[int, int], editor: Editor) -> None:
    node, view, value = graph.nodes[index], graph.operators[index].view, bench.constants[index]
    match view:
        case ConstantOperand(dtype=dtype):
            editor.set_constant(node, positions[index], value, dtype)
        case Pad() if graph.context.version(node) < 11:
            node.attributes["value"] = ir.AttrFloat32("value", float(np.float32(value)))
        case Pad(dtype=dtype):
            editor.set_constant(node, 2, value, dtype)


def record(model: ir.Model, plan: FoldPlan, providers: tuple[str, ...]) -> None:
    """Say in the model's metadata what was folded and where the result was verified; nothing folded, nothing said."""
    if not plan.bench.folds:
        return
    entries = [
        {
            "batchnorms": [s.name for s in fold.subjects],
            "direction": "merge" if isinstance(fold, Merge) else fold.direction,
            "into": [op.name for op in ((fold.into,) if isinstance(fold, Merge) else fold.into)],
        }
        for fold in plan.bench.folds
    ]
    model.metadata_props["bnfold.folds"] = json.dumps([*_earlier(model), *entries])
    model.metadata_props["bnfold.verified"] = ", ".join(providers) or "no"


def _earlier(model: ir.Model) -> list[object]:
    """What an earlier fold recorded; nothing where somebody else has written there."""
    try:
        earlier = json.loads(model.metadata_props.get("bnfold.folds", "[]"))
    except ValueError:
        return []
    return earlier if isinstance(earlier, list) else []
