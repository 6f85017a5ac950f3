"""How large a model is: what it runs, not what it declares, so a function counts once for each call; and its scales."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx_ir as ir

from bnfold.frontends.onnx_context import is_standard
from bnfold.graph import FoldGraph
from bnfold.report.model import ScaleSpread, Size
from bnfold.views import BatchNorm


def size_of(model: ir.Model) -> Size:
    """Operators, BatchNorms among them, and bytes of weights."""
    nodes = list(_nodes(model, model.graph.all_nodes(), ()))
    batchnorms = sum(node.op_type == "BatchNormalization" and is_standard(node) for node in nodes)
    tensors = [v.const_value for graph in model.graphs() for v in graph.initializers.values()]
    return Size(len(nodes), batchnorms, sum(t.nbytes for t in tensors if t is not None))


def scales_of(parts: Iterable[tuple[FoldGraph, object]]) -> tuple[ScaleSpread, ...]:
    """How the scales of each BatchNorm are spread, before anything is folded; `parts` are graphs with their plans."""
    operators = (operator for graph, _ in parts for operator in graph.operators)
    return tuple(
        ScaleSpread.of(operator.name, operator.view.affine.scale)
        for operator in operators
        if isinstance(operator.view, BatchNorm) and operator.view.affine.channels
    )


def _nodes(model: ir.Model, nodes: Iterable[ir.Node], within: tuple[ir.OperatorIdentifier, ...]) -> Iterator[ir.Node]:
    """The nodes, those of bodies among them, with the nodes of a function in the place of each call."""
    for node in nodes:
        called = model.functions.get(node.op_identifier())
        if called is None or node.op_identifier() in within:
            yield node
        else:
            yield from _nodes(model, called.all_nodes(), (*within, node.op_identifier()))
