"""Writes a fold plan into the model it was made for.

Names: the value that now equals a BatchNorm's output takes its name, so that outputs keep theirs; every value whose
meaning changed gets a new name, so that equal names before and after mean equal values.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from bnfold.bench import Bench
from bnfold.changes import Change, Merge
from bnfold.decision import Direction, Folded, Refusal
from bnfold.folding import FoldPlan
from bnfold.frontends.onnx_context import LEFT, marked
from bnfold.frontends.onnx_editor import Editor, Replacement
from bnfold.frontends.onnx_graph import OnnxGraph
from bnfold.frontends.onnx_scopes import values_of
from bnfold.frontends.onnx_write_clamp import write_bounds
from bnfold.graph import Operator, PlacedAffine
from bnfold.leftover_forms import Leftover, Part
from bnfold.requantising import requantised
from bnfold.views import BatchNorm, ConstantOperand
from bnfold.window_views import Pad

#: What is put behind a BatchNorm's name: of the operator, and of each of its constants.
_STEMS = {
    "Sub": ("centred", ("mean",)),
    "Mul": ("scaled", ("scale",)),
    "Add": ("shifted", ("shift",)),
    "Conv": ("scaled", ("scale", "shift")),
    "Identity": ("same", ()),
}


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

    A plan without a fold changes nothing. What is left of BatchNorms is named in the metadata, so that it is not taken
    for a BatchNorm in disguise when the result is folded again, without the statistics to judge it by.
    """
    return write_all([(graph, plan)])


def write_all(plans: Sequence[tuple[OnnxGraph, FoldPlan]]) -> Written:
    """As `write`, for graphs of one model and what is planned for each."""
    changing = [(graph, plan) for graph, plan in plans if plan.bench.folds or plan.leftovers]
    if not changing:
        return Written((), 0)
    model = changing[0][0].model
    editor = Editor(model)
    positions = [_positions(graph, plan) for graph, plan in changing]
    left = list[ir.Value]()
    for (graph, plan), places in zip(changing, positions, strict=True):
        left += _write_one(graph, plan, places, editor)
    if left:
        names = dict.fromkeys([*map(str, marked(model, LEFT)), *(value.name for value in left)])
        model.metadata_props[LEFT] = json.dumps(list(names))
    return Written(tuple(editor.sweep()), editor.cloned_bytes)


def _positions(graph: OnnxGraph, plan: FoldPlan) -> dict[int, int]:
    """Where constant operands stand, which must be known after the graphs have changed under the reader."""
    operators = graph.operators
    touched = {*plan.bench.removed, *plan.bench.constants, *_replaced(plan)}
    return {i: graph.constant_position(operators[i]) for i in touched if isinstance(operators[i].view, ConstantOperand)}


def _write_one(graph: OnnxGraph, plan: FoldPlan, positions: dict[int, int], editor: Editor) -> list[ir.Value]:
    """Change one graph; returns what the operators that are left of BatchNorms compute."""
    values = values_of(graph.graph)
    clamps = {index: graph.stored_bounds(graph.operators[index]) for index in plan.bench.clamps}
    for fold in plan.bench.folds:
        _rename(fold, values, editor)
        if isinstance(fold, Merge):
            _drop_sums(graph, fold, editor)
        elif fold.left is None:
            for operator in fold.source.operators:
                _take_out(graph, operator, positions, editor, takes_name=fold.direction == "pull")
    _store(graph, plan, positions, editor)
    for index, stored in clamps.items():
        node = graph.nodes[index]
        write_bounds(node, graph.context.version(node), stored, plan.bench.clamps[index], editor)
    return [value for leftover in plan.leftovers for value in _leave(graph, leftover, positions, editor)]


def _drop_sums(graph: OnnxGraph, merge: Merge, editor: Editor) -> None:
    """What only brings together goes; the other branches lose their only reader with it, and are swept away."""
    for operator, position in merge.sums:
        if position is not None:
            node, site = graph.nodes[operator.index], graph.sites.get(operator.index)
            data = node.inputs[position if site is None else site.data_position]
            assert data is not None
            last = node if site is None else site.nodes[-1]
            editor.bypass(last, data, takes_name=operator.index in merge.renames)


def _rename(fold: Change, values: dict[str, ir.Value], editor: Editor) -> None:
    for name in sorted(fold.values):
        value = values[name]
        value.name = editor.fresh(f"{name}_folded")


def _replaced(plan: FoldPlan) -> set[int]:
    """The operators whose place a leftover takes."""
    return {op.index for leftover in plan.leftovers for op in leftover.source.operators}


def _take_out(
    graph: OnnxGraph, operator: Operator, positions: dict[int, int], editor: Editor, *, takes_name: bool
) -> None:
    node = graph.nodes[operator.index]
    data = node.inputs[1 - positions[operator.index] if operator.index in positions else 0]
    assert data is not None
    editor.bypass(node, data, takes_name=takes_name)


def _store(graph: OnnxGraph, plan: FoldPlan, positions: dict[int, int], editor: Editor) -> None:
    bench = plan.bench
    gone = {*bench.removed, *_replaced(plan)}
    for index, merge in bench.merged.items():
        graph.sites[index].reshape(merge.geometry, merge.params.weight.shape[0])
    for index in sorted({*bench.absorbed, *bench.merged} - set(bench.removed)):
        operator = graph.operators[index]
        quantised = requantised(bench, operator)
        assert not isinstance(quantised, Refusal)  # or the route would not have been taken
        graph.sites[index].write(bench.linear_params(operator), editor, quantised)
    for index, left in sorted(bench.reduced.items()):
        _become_add(graph, index, left, editor)
    for index in sorted(set(bench.constants) - gone):
        _store_constant(graph, bench, index, positions, editor)
    for index in sorted(set(bench.affines) - gone - set(bench.reduced)):
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
    chain = [_replacement(Part("Add", (shift.reshape(shift.shape[left.axes[0] :]),)))]
    editor.replace(graph.nodes[index], chain, dtype)


def _leave(graph: OnnxGraph, leftover: Leftover, positions: dict[int, int], editor: Editor) -> list[ir.Value]:
    """The leftover takes the BatchNorm's place, and the rest of its source is in it; what the new operators compute."""
    operators, place = leftover.source.operators, leftover.place
    dtype = operators[-1].dtype
    assert dtype is not None
    made = editor.replace(graph.nodes[operators[place].index], [_replacement(p) for p in leftover.parts], dtype)
    for i, operator in enumerate(operators):
        if i != place:
            _take_out(graph, operator, positions, editor, takes_name=i > place)
    return made


def _replacement(part: Part) -> Replacement:
    stem, called = _STEMS[part.kind]
    attributes = []
    if part.kind == "Conv":
        channels, _, *kernel = part.constants[0].shape
        attributes = [ir.AttrInt64("group", channels), ir.AttrInt64s("kernel_shape", kernel)]
    return Replacement(part.kind, stem, dict(zip(called, part.constants, strict=False)), attributes)


def _store_constant(graph: OnnxGraph, bench: Bench, index: int, positions: dict[int, int], editor: Editor) -> None:
    node, view, value = graph.nodes[index], graph.operators[index].view, bench.constants[index]
    match view:
        case ConstantOperand(dtype=dtype):
            editor.set_constant(node, positions[index], value, dtype)
        case Pad() if graph.context.version(node) < 11:
            node.attributes["value"] = ir.AttrFloat32("value", float(np.float32(value)))
        case Pad(dtype=dtype):
            editor.set_constant(node, 2, value, dtype)


def record(model: ir.Model, evaluated: Sequence[Folded], plans: Sequence[FoldPlan], providers: tuple[str, ...]) -> None:
    """Say in the model's metadata what was folded and where the result was verified; nothing folded, nothing said."""
    entries = [_entry([d.subject.name], d.direction, d.into) for d in evaluated]
    for plan in plans:
        entries += [_of_change(change) for change in plan.bench.folds]
        entries += [
            {"batchnorms": [s.name for s in left.source.subjects], "left": left.kind} for left in plan.leftovers
        ]
    if entries:
        model.metadata_props["bnfold.folds"] = json.dumps([*marked(model, "bnfold.folds"), *entries])
        model.metadata_props["bnfold.verified"] = ", ".join(providers) or "no"


def _of_change(change: Change) -> dict[str, object]:
    names = [subject.name for subject in change.subjects]
    if isinstance(change, Merge):
        return _entry(names, "merge", [change.into.name])
    return _entry(names, change.direction, [operator.name for operator in change.into])


def _entry(batchnorms: Sequence[str], direction: Direction | None, into: Sequence[str]) -> dict[str, object]:
    return {"batchnorms": list(batchnorms), "direction": direction, "into": list(into)}
