"""Puts back what a fold took out: the original nodes at their places, the numbers bit by bit, the names as they were.

Places number the original: a node that is as it was has the next place that no changed one claims. So the original
order comes back by sorting, region by region or all at once.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import onnx
import onnx_ir as ir

from bnfold.frontends.onnx_context import LEFT
from bnfold.frontends.onnx_selection import Selection, select
from bnfold.frontends.onnx_skeleton import (
    Tensors,
    assemble,
    bodies,
    first_output,
    label_of,
    labelled,
    reads,
    skeleton,
    tensor_of,
)
from bnfold.manifest import GraphPath, GraphUndo, LostTensor, Place, UndoRegion, UndoStep
from bnfold.packing import unpack

#: The metadata entry with the folds that a model has behind it.
FOLDS_KEY = "bnfold.folds"


def undo(model: ir.Model, step: UndoStep, wanted: Callable[[UndoRegion], bool]) -> tuple[ir.Model, UndoStep | None]:
    """The model with the wanted regions as they were before the fold, and how to undo the others; None if all are.

    Args:
        model: The folded model; not changed.
        step: The fold; it must be that of `model`, and right, which `bnfold.unfolding` sees to.
        wanted: Which regions.
    """
    proto, tensors = skeleton(model)
    records = {record.path: record for record in step.graphs}
    selected = select(records, wanted)
    whole = all(selection.whole for selection in selected.values())
    undone = [_Undo(graph, selected[path]) for path, graph in list(_located(proto.graph, records)) if path in selected]
    for one in undone:  # bodies first: a node is copied with what is in it
        one.restore(tensors)
        one.sweep()
    _restore_frame(proto, onnx.ModelProto.FromString(step.frame), whole=whole)
    left = tuple(one.rest() for one in reversed(undone))
    _restore_metadata(proto, step, None if whole else list(selected.values()))
    return assemble(proto, tensors), None if whole else replace(step, graphs=left)


def _located(
    graph: onnx.GraphProto, records: Mapping[GraphPath, GraphUndo], path: GraphPath = ()
) -> Iterator[tuple[GraphPath, onnx.GraphProto]]:
    """The bodies in a graph, the innermost first, and the graph, each by its path in the original."""
    for (place, new), node in zip(_places(graph, records.get(path)), graph.node, strict=True):
        for name, body in bodies(node) if not new else ():
            yield from _located(body, records, (*path, (place, name)))
    yield path, graph


def _places(graph: onnx.GraphProto, record: GraphUndo | None) -> list[Place]:
    """The place of each node of a folded graph."""
    regions = () if record is None else record.regions
    changed = {name: place for region in regions for name, place in region.after}
    stored = [] if record is None else [*(region.before for region in regions), record.supplies]
    free = _free(place for nodes in stored for place in nodes.places)
    return [changed[name] if (name := first_output(n)) in changed else (next(free), 0) for n in graph.node]


def _free(taken: Iterable[int]) -> Iterator[int]:
    claimed = frozenset(taken)
    return (place for place in count() if place not in claimed)


@dataclass(frozen=True, eq=False)
class _Undo:
    """One graph on its way back.

    Attributes:
        graph: The graph, changed in place.
        selection: What comes back.
    """

    graph: onnx.GraphProto
    selection: Selection

    @property
    def record(self) -> GraphUndo:
        """What the fold did to it."""
        return self.selection.record

    def restore(self, tensors: Tensors) -> None:
        """Put nodes, initializers, inputs and what is said about values back."""
        self._restore_initializers(tensors)
        self._restore_inputs()
        self._restore_nodes()
        _describe(self.graph, self.selection.described, onnx.GraphProto.FromString(self.record.said))

    def _restore_nodes(self) -> None:
        gone = {name for region in self.selection.regions for name, _ in region.after}
        nodes, changed = list[tuple[Place, onnx.NodeProto]](), dict[int, onnx.NodeProto]()
        for place, node in zip(_places(self.graph, self.record), self.graph.node, strict=True):
            if first_output(node) not in gone:
                nodes.append((place, node))
            elif place[1] == 0:
                changed[place[0]] = node
        for at, node in self.selection.nodes:
            nodes.append(((at, 0), _with_bodies(node, changed.get(at))))
        ordered = onnx.GraphProto(node=[node for _, node in sorted(nodes, key=lambda pair: pair[0])])
        del self.graph.node[:]
        self.graph.node.extend(ordered.node)

    def _restore_initializers(self, tensors: Tensors) -> None:
        free, made = _free(tensor.place for tensor in self.record.lost), set(self.record.made)
        stored = [((1, 0) if t.name in made else (0, next(free)), t) for t in self.graph.initializer]
        known = {t.name: tensors[label] for t in self.graph.initializer if (label := label_of(t))}
        stored += [((0, t.place), labelled(tensors, t.name, _numbers(t, known))) for t in self.selection.lost]
        ordered = onnx.GraphProto(initializer=[tensor for _, tensor in sorted(stored, key=lambda pair: pair[0])])
        del self.graph.initializer[:]
        self.graph.initializer.extend(ordered.initializer)

    def _restore_inputs(self) -> None:
        free = _free(tensor.input[0] for tensor in self.record.lost if tensor.input is not None)
        made = set(self.record.made)
        listed = [((1, 0) if value.name in made else (0, next(free)), value) for value in self.graph.input]
        inputs = [tensor.input for tensor in self.selection.lost if tensor.input is not None]
        listed += [((0, place), onnx.ValueInfoProto.FromString(info)) for place, info in inputs]
        ordered = onnx.GraphProto(input=[value for _, value in sorted(listed, key=lambda pair: pair[0])])
        del self.graph.input[:]
        self.graph.input.extend(ordered.input)

    def sweep(self) -> None:
        """Take out the fold's own initializers that nothing reads any more, or that a node computes again."""
        computed = {name for node in self.graph.node for name in node.output}
        idle = set(self.record.made) - (reads(self.graph) - computed)
        for entries in (self.graph.initializer, self.graph.input, self.graph.value_info):
            for i in reversed([i for i, entry in enumerate(entries) if entry.name in idle]):
                del entries[i]

    def rest(self) -> GraphUndo:
        """What is still to be undone."""
        there = {tensor.name for tensor in self.graph.initializer}
        return self.selection.rest([name for name in self.record.made if name in there])


def _with_bodies(node: onnx.NodeProto, changed: onnx.NodeProto | None) -> onnx.NodeProto:
    """The original node with the bodies of the one in its stead, which are put back by themselves."""
    present = {} if changed is None else dict(bodies(changed))
    for attribute in node.attribute:
        if attribute.name in present:
            attribute.g.CopyFrom(present[attribute.name])
    return node


def _numbers(lost: LostTensor, known: Mapping[str, ir.TensorProtocol]) -> ir.TensorProtocol:
    """The lost tensor, from its own text and, if need be, the weight that predicts it."""
    size = ir.DataType[lost.dtype].itemsize
    predicted, width = None, word_width(lost.dtype)
    if lost.prediction is not None:
        predicted = lost.prediction.of(known[lost.prediction.source].numpy()).tobytes()
    elements = 1
    for length in lost.shape:
        elements *= length
    data = unpack(lost.data, -int(-elements * size // 1), width, predicted)
    return tensor_of(lost.dtype, lost.shape, data, lost.name)


def word_width(dtype: str) -> int:
    """How many bytes of a tensor of this type are one number: less than one counts as one, complex parts as two."""
    return int(min(max(ir.DataType[dtype].itemsize, 1), 8))


def _describe(graph: onnx.GraphProto, names: Iterable[str], said: onnx.GraphProto) -> None:
    """What `said` says of the values `names`, in the place of what the graph says."""
    told = frozenset(names)
    for entries, key in ((graph.value_info, "name"), (graph.quantization_annotation, "tensor_name")):
        for i in reversed([i for i, entry in enumerate(entries) if getattr(entry, key) in told]):
            del entries[i]
    graph.value_info.extend(info for info in said.value_info if info.name in told)
    graph.quantization_annotation.extend(note for note in said.quantization_annotation if note.tensor_name in told)
    outputs = {info.name: info for info in said.output if info.name in told}
    for output in graph.output:
        if output.name in outputs:
            output.CopyFrom(outputs[output.name])


def _restore_frame(proto: onnx.ModelProto, frame: onnx.ModelProto, *, whole: bool) -> None:
    """The functions as they were; and the operator sets, beside which those of what stays folded stand till the end."""
    if not frame.ByteSize():
        return
    before = {entry.domain for entry in frame.opset_import}
    more = [] if whole else [entry for entry in proto.opset_import if entry.domain not in before]
    imports = onnx.ModelProto(opset_import=[*frame.opset_import, *more])
    del proto.functions[:]
    proto.functions.extend(frame.functions)
    del proto.opset_import[:]
    proto.opset_import.extend(imports.opset_import)


def _restore_metadata(proto: onnx.ModelProto, step: UndoStep, part: list[Selection] | None) -> None:
    """The entries as they were; while only `part` of the fold is undone, its records leave the lists of records."""
    entries = {entry.key: entry.value for entry in proto.metadata_props}
    if part is None:
        entries |= {key: value for key, value in step.metadata if value is not None}
        for key in (key for key, value in step.metadata if value is None):
            entries.pop(key, None)
    else:
        nodes = {node.name or first_output(node) for selection in part for _, node in selection.nodes}
        gone = {name for selection in part for region in selection.regions for name, _ in region.after}
        values = gone | {name for selection in part for _, node in selection.nodes for name in node.output}
        for key, names in ((FOLDS_KEY, nodes), (LEFT, values)):
            if key in entries:
                entries[key] = _without(entries[key], names)
    del proto.metadata_props[:]
    proto.metadata_props.extend(onnx.StringStringEntryProto(key=k, value=v) for k, v in entries.items())


def _without(record: str, names: set[str]) -> str:
    """The record without what is about `names`; as it is, where somebody else has written there."""
    try:
        return json.dumps([entry for entry in json.loads(record) if not _about(entry) <= names])
    except (ValueError, TypeError, KeyError, AttributeError):
        return record


def _about(entry: Any) -> set[str]:
    """The value that was left, or the BatchNorms that were folded, or what took in what was no BatchNorm."""
    return {entry} if isinstance(entry, str) else set(entry["batchnorms"] or entry["into"])
