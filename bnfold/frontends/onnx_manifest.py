"""Notes what a fold changes, by comparing the model before and after, node by node; nothing is guessed from the plan.

The plan adds what the comparison cannot know: the names of what was folded, its route, and by what each weight was
multiplied. Operators whose changes meet in a value are one region.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from bnfold.changes import Change, Merge
from bnfold.decision import Subject
from bnfold.errors import InternalError
from bnfold.folding import FoldPlan
from bnfold.frontends.onnx_changes import NodeChange, changes, regions_of, supplies_of
from bnfold.frontends.onnx_context import float_attr, is_standard
from bnfold.frontends.onnx_embedded import MANIFEST_KEY
from bnfold.frontends.onnx_fold import ModelPlan
from bnfold.frontends.onnx_graph import OnnxGraph
from bnfold.frontends.onnx_linear import ConvSite, GemmSite, MatMulSite
from bnfold.frontends.onnx_selection import packed
from bnfold.frontends.onnx_skeleton import bodies, fingerprint, label_of, skeleton
from bnfold.frontends.onnx_unfold import undo, word_width
from bnfold.graph import AbsorbInput, AbsorbOutput, Operator
from bnfold.manifest import FoldedNorm, GraphPath, GraphUndo, LostTensor, Prediction, StoredNodes, UndoRegion, UndoStep
from bnfold.packing import pack

Absorbed = tuple[AbsorbInput | AbsorbOutput, ...]


@dataclass(frozen=True, eq=False)
class _Weight:
    """What the plan knows about the weight of one node: its input, and by what it was multiplied."""

    position: int
    scales: Prediction


class Notes:
    """What must be noted before a plan is written: the nodes as they are, and what the plan knows about them.

    Args:
        model: The model that is about to be changed in place.
    """

    def __init__(self, model: ir.Model) -> None:
        self._nodes = {id(graph): tuple(graph) for graph in model.graphs()}
        self._norms: dict[int, list[FoldedNorm]] = {}
        self._sources: set[int] = set()
        self._weights: dict[int, _Weight] = {}

    def note(self, plan: ModelPlan) -> None:
        """Note what `plan` does; call it before the plan is written."""
        for graph, part in plan.parts:
            self._note(graph, part)
        for constant in plan.evaluated:
            made = constant.decision
            norm = FoldedNorm(made.subject.name, made.subject.kind, made.direction, made.into, made.through)
            self._sources.add(id(constant.node))
            self._norms.setdefault(id(constant.node), []).append(norm)

    def _note(self, graph: OnnxGraph, plan: FoldPlan) -> None:
        for fold in plan.bench.folds:
            self._sources.update(id(node) for operator in fold.operators for node in _nodes(graph, operator))
            for node, norm in _norms(graph, fold):
                self._norms.setdefault(id(node), []).append(norm)
        for left in plan.leftovers:
            self._sources.update(id(node) for operator in left.source.operators for node in _nodes(graph, operator))
            for subject in left.source.subjects:
                operator = next(op for op in left.source.operators if op.name == subject.name)
                norm = FoldedNorm(subject.name, subject.kind, "none", (), (), left.kind)
                node = graph.nodes[operator.index]
                self._norms.setdefault(id(node), []).append(_with_statistics(norm, graph, operator))
        for index, absorbed in plan.bench.absorbed.items():
            if index in plan.bench.merged:
                continue  # a sum does not tell its terms
            if (weight := _weight(graph, index, absorbed)) is not None:
                self._weights[id(graph.nodes[index])] = weight

    def step(self, original: ir.Model, folded: ir.Model, *, simplified: bool = False) -> UndoStep:
        """How to get from `folded`, the model of these notes after the fold, to `original`, which it was made from.

        Raises:
            InternalError: The fold cannot be undone bit by bit.
        """
        old, old_tensors = skeleton(original)
        new, new_tensors = skeleton(folded)
        sides = _Side(old.graph, old_tensors), _Side(new.graph, new_tensors)
        graphs = tuple(self._graphs(*sides, folded.graph, ()))
        prints, frame = (fingerprint(folded), fingerprint(original)), _frame(old, new)
        step = UndoStep(*prints, _metadata(old, new), graphs, simplified, frame)
        restored, _ = undo(folded, step, lambda _region: True)
        if fingerprint(restored) != step.original:
            raise InternalError("the fold cannot be undone", remedy="fold without --manifest")
        return step

    def _graphs(self, old: _Side, new: _Side, graph: ir.Graph, path: GraphPath) -> Iterator[GraphUndo]:
        """What changed in the graph, if anything, and in the bodies of its nodes."""
        places = {id(node): place for place, node in enumerate(self._nodes[id(graph)])}
        nodes = tuple(graph)
        found = changes(old.graph, new.graph, [places.get(id(node)) for node in nodes])
        norms = {place: self._norms[key] for key, place in places.items() if key in self._norms}
        supplies = supplies_of(found, {place for key, place in places.items() if key in self._sources})
        changed = [change for change in found if change not in supplies]
        regions = tuple(_region(group, norms) for group in regions_of(changed))
        lost = tuple(self._lost(old, new, found, self._nodes[id(graph)]))
        made = tuple(name for name in new.tensors if name not in old.tensors)
        if regions or supplies or lost or made:
            yield GraphUndo(path, regions, _stored(supplies), lost, made, *_described(old.graph, new.graph))
        for node, proto in zip(nodes, new.graph.node, strict=True):
            if (place := places.get(id(node))) is not None:
                before = dict(bodies(old.graph.node[place]))
                for name, body in bodies(proto):
                    inner = node.attributes[name].as_graph()
                    sides = _Side(before[name], old.labels), _Side(body, new.labels)
                    yield from self._graphs(*sides, inner, (*path, (place, name)))

    def _lost(
        self, old: _Side, new: _Side, found: Iterable[NodeChange], nodes: tuple[ir.Node, ...]
    ) -> Iterator[LostTensor]:
        """Each initializer that is gone, against the weight that is made of it, if the plan knows one."""
        told: dict[str, Prediction] = {}
        for change in found:
            weight = None if change.place is None else self._weights.get(id(nodes[change.place]))
            if weight is not None and change.before is not None and change.after is not None:
                name, now = (node.input[weight.position] for node in (change.before, change.after))
                if name not in new.tensors and name in old.tensors and now in new.tensors:
                    told.setdefault(name, replace(weight.scales, source=now))
        inputs = {value.name: (i, bytes(value.SerializeToString())) for i, value in enumerate(old.graph.input)}
        for place, (name, tensor) in enumerate(old.tensors.items()):
            if name not in new.tensors:
                yield _lost(LostTensor(name, place, "", (), "", None, inputs.get(name)), tensor, told.get(name), new)


class _Side:
    """One graph of one of the two models.

    Attributes:
        graph: Its skeleton.
        labels: The numbers of the model's initializers, by label.
        tensors: The numbers of the graph's initializers, by name, in order.
    """

    def __init__(self, graph: onnx.GraphProto, labels: Mapping[str, ir.TensorProtocol]) -> None:
        self.graph = graph
        self.labels = labels
        self.tensors = {
            t.name: labels[label] if (label := label_of(t)) else ir.from_proto(t) for t in graph.initializer
        }


def _nodes(graph: OnnxGraph, operator: Operator) -> tuple[ir.Node, ...]:
    """The nodes of an operator; a MatMul has its Add with it."""
    site = graph.sites.get(operator.index)
    return (graph.nodes[operator.index],) if site is None else site.nodes


def _norms(graph: OnnxGraph, fold: Change) -> Iterator[tuple[ir.Node, FoldedNorm]]:
    """One for each subject of a fold, with the node that it was."""
    for subject in fold.subjects:
        operator = next(op for op in fold.operators if op.name == subject.name)
        norm = _with_statistics(_norm(fold, subject), graph, operator)
        yield graph.nodes[operator.index], norm


def _norm(fold: Change, subject: Subject) -> FoldedNorm:
    through = tuple(op.name for op in fold.through)
    if isinstance(fold, Merge):
        return FoldedNorm(subject.name, subject.kind, "merge", (fold.into.name,), through)
    left = "" if fold.left is None else "Add"
    return FoldedNorm(subject.name, subject.kind, fold.direction, tuple(op.name for op in fold.into), through, left)


def _with_statistics(norm: FoldedNorm, graph: OnnxGraph, operator: Operator) -> FoldedNorm:
    """The norm with its parameters, where they stand in the file as ONNX wants them."""
    node = graph.nodes[operator.index]
    if node.op_type != "BatchNormalization" or not is_standard(node) or len(node.inputs) < 5:
        return norm
    arrays = [graph.context.constants.array(value) for value in node.inputs[1:5]]
    gamma, beta, mean, var = (() if a is None else _shortest(a) for a in arrays)
    epsilon = float(str(np.float32(float_attr(node, "epsilon", 1e-5))))
    return replace(norm, epsilon=epsilon, gamma=gamma, beta=beta, mean=mean, var=var)


def _shortest(array: npt.NDArray[Any]) -> tuple[float, ...]:
    """The numbers in as few digits as tell them apart in their dtype."""
    return tuple(float(str(x)) for x in array.reshape(-1))


def _weight(graph: OnnxGraph, index: int, absorbed: Absorbed) -> _Weight | None:
    """By what the weight of a linear operator is multiplied, channel by channel; None for one that is stored anew."""
    site = graph.sites[index]
    if not isinstance(site, ConvSite | GemmSite | MatMulSite):
        return None
    params = graph.linear_params(graph.operators[index])
    outputs, inputs = np.ones(params.outputs), np.ones(params.inputs)
    outputs *= float_attr(site.node, "alpha", 1.0) if isinstance(site, GemmSite) else 1.0
    for edit in absorbed:
        if isinstance(edit, AbsorbOutput):
            outputs = outputs * edit.affine.scale
        else:
            inputs = inputs * edit.affine.scale
    return _Weight(1 if isinstance(site, ConvSite) else site.position, Prediction("", site.layout, outputs, inputs))


def _lost(tensor: LostTensor, numbers: ir.TensorProtocol, told: Prediction | None, new: _Side) -> LostTensor:
    """`tensor` with its numbers, packed against what predicts them, or in full where that is shorter."""
    if numbers.dtype == ir.DataType.STRING:
        raise InternalError("a manifest cannot hold text", where=tensor.name, remedy="fold without --manifest")
    dtype, shape, data = numbers.dtype.name, tuple(int(size) for size in numbers.shape.numpy()), numbers.tobytes()
    width = word_width(dtype)
    whole = replace(tensor, dtype=dtype, shape=shape)
    source = None if told is None else new.tensors[told.source]
    if told is None or source is None or source.dtype != numbers.dtype or tuple(source.shape.numpy()) != shape:
        return replace(whole, data=pack(data, width))
    packed = replace(whole, data=pack(data, width, told.of(source.numpy()).tobytes()), prediction=told)
    if len(packed.data) < len(data) // 2:
        return packed
    return min(packed, replace(whole, data=pack(data, width)), key=lambda t: len(t.data))


def _region(group: list[NodeChange], norms: Mapping[int, list[FoldedNorm]]) -> UndoRegion:
    """A region as it is written down."""
    folds = [norm for change in group if change.place is not None for norm in norms.get(change.place, ())]
    after = [(change.name_after, change.at) for change in group if change.after is not None]
    return UndoRegion(tuple(folds), _stored(group), tuple(after))


def _stored(group: Iterable[NodeChange]) -> StoredNodes:
    """The nodes as they were."""
    return packed([(c.place, c.before) for c in group if c.place is not None and c.before is not None])


def _described(old: onnx.GraphProto, new: onnx.GraphProto) -> tuple[tuple[str, ...], bytes]:
    """Which of the old graph's values the new one describes otherwise, and how the old one does."""
    said, says = _said(old), _said(new)
    there = {name for node in old.node for name in node.output} | {tensor.name for tensor in old.initializer}
    names = [name for name in sorted({*said, *says} & there) if said.get(name) != says.get(name)]
    whole = onnx.GraphProto()
    for name in names:
        whole.MergeFromString(said.get(name, b""))
    return tuple(names), bytes(whole.SerializeToString(deterministic=True))


def _said(graph: onnx.GraphProto) -> dict[str, bytes]:
    """What a graph says about each value, as a graph that says nothing else."""
    found: dict[str, onnx.GraphProto] = {}
    for info in graph.value_info:
        found.setdefault(info.name, onnx.GraphProto()).value_info.append(info)
    for info in graph.output:
        found.setdefault(info.name, onnx.GraphProto()).output.append(info)
    for note in graph.quantization_annotation:
        found.setdefault(note.tensor_name, onnx.GraphProto()).quantization_annotation.append(note)
    return {name: bytes(part.SerializeToString(deterministic=True)) for name, part in found.items()}


def _metadata(old: onnx.ModelProto, new: onnx.ModelProto) -> tuple[tuple[str, str | None], ...]:
    """The old model's entries that the new one does not have so; the manifest itself does not count."""
    had, has = ({entry.key: entry.value for entry in model.metadata_props} for model in (old, new))
    keys = sorted({*had, *has} - {MANIFEST_KEY})
    return tuple((key, had.get(key)) for key in keys if had.get(key) != has.get(key))


def _frame(old: onnx.ModelProto, new: onnx.ModelProto) -> bytes:
    """The old model's functions and operator sets, where the new one has others; else nothing."""
    frames = [onnx.ModelProto(functions=model.functions, opset_import=model.opset_import) for model in (old, new)]
    before, after = (bytes(frame.SerializeToString(deterministic=True)) for frame in frames)
    return b"" if before == after else before
